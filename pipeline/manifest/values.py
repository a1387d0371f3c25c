"""Read and check single values of a manifest row, from JSON, CSV or Parquet."""

import base64
import datetime
import decimal
import json
import math
from typing import Any

from pipeline.storage.protocols import is_utf8
from schemas.shown import redact_text

_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False)


class RowError(Exception):
    """One row is wrong; the message shows the value and says what to do."""


def read_text(row: dict[str, Any], key: str) -> str | None:
    """Read a text; None if it is missing or empty.

    Raises:
        RowError: the value is not a text.
    """
    value = row.get(key)
    if key == "media_id" and isinstance(value, int) and not isinstance(value, bool):
        value = str(value)  # a database's ids
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if not isinstance(value, str):
        raise RowError(f"{key} must be text, got {brief(value)}")
    if key != "uri" and not is_utf8(value):  # a uri may be the name of a local file
        raise RowError(f"{key} must be UTF-8, got {brief(value)}")
    return value


def read_texts(row: dict[str, Any], key: str) -> list[str]:
    """Read a list of texts; in CSV it is a JSON list, or separated by semicolons.

    Raises:
        RowError: the value is not a list of texts, or one of them is empty.
    """
    value = row.get(key)
    if value is None or value == "":
        return []
    if isinstance(value, str):
        if value.lstrip().startswith("["):
            value = read_json(value, key, '["a", "b"]')
        elif "data:" in value:
            raise RowError(f"{key} with data: uris must be a JSON list")
        else:
            value = [part.strip() for part in value.split(";")]
    if not isinstance(value, list):
        raise RowError(f"{key} must be a list of texts, got {brief(value)}")
    for element in value:
        if not isinstance(element, str) or not element.strip():
            raise RowError(f"{key} must be a list of non-empty texts, got {brief(element)}")
    return value


def read_number(row: dict[str, Any], key: str) -> float | None:
    """Read a finite number, or a text that is one; None if it is missing or empty.

    Raises:
        RowError: the value is not a finite number.
    """
    value = row.get(key)
    if value is None or value == "":
        return None
    if isinstance(value, int | float | str | decimal.Decimal) and not isinstance(value, bool):
        try:
            number = float(value)
        except (ValueError, OverflowError):
            pass
        else:
            if not math.isfinite(number):
                raise RowError(f"{key} must be a finite number, got {number}; leave it empty")
            return number
    raise RowError(f"{key} must be a number such as 12.5, got {brief(value)}")


def read_json(text: str, key: str, example: str) -> Any:
    """Read JSON text.

    Raises:
        RowError: it is not valid; the message shows ``example``.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RowError(f"{key} is not valid JSON, such as {example}: {error}") from None


def read_attributes(row: dict[str, Any], columns: list[str]) -> str | None:
    """Return a row's further columns as one JSON object; None if there are no such columns.

    Times become ISO 8601, durations seconds, bytes base64, NaN and infinities null, decimals with
    more digits than a float has text.

    Raises:
        RowError: a value is nested too deeply.
    """
    if not columns:
        return None
    try:
        return _ENCODER.encode({column: _json_value(row.get(column)) for column in columns})
    except RecursionError:
        raise RowError("a value is nested too deeply") from None


def _json_value(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, decimal.Decimal):
        number = float(value)
        return number if decimal.Decimal(repr(number)) == value else str(value)
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, dict):
        return {str(key): _json_value(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(child) for child in value]
    return str(value)


def brief(value: Any) -> str:
    """Return a value's text for a message, cut to 80 characters."""
    text = redact_text(repr(value))  # before it is cut, which could leave half of an address
    return text if len(text) <= 80 else f"{text[:80]}..."
