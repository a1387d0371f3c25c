"""Values as JSON has them, for all files and pages that are JSON or hold it."""

import datetime
import json
import math
from decimal import Decimal
from typing import Any


def json_values(value: Any) -> Any:
    """Return a value as JSON has it: times as ISO 8601, numbers that JSON lacks as null.

    Python's encoder writes NaN and Infinity, which other readers refuse, with all of the file.
    """
    if isinstance(value, dict):
        return {str(key): json_values(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [json_values(each) for each in value]
    if isinstance(value, Decimal):
        if not value.is_finite():
            return None
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    return value.hex() if isinstance(value, bytes) else str(value)


def json_text(value: Any, indent: int | None = None) -> str:
    """Return a value as JSON text that any reader takes; see `json_values`."""
    return json.dumps(json_values(value), ensure_ascii=False, allow_nan=False, indent=indent)
