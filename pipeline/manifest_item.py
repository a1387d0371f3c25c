"""Check one manifest row and make a media item of it."""

import decimal
import json
import math
import os
import posixpath
import re
from typing import Any

from pipeline.manifest_rows import attributes_json
from schemas.manifest import MEDIA_TYPES, Intrinsics, MediaItem, default_media_id
from schemas.task_spec import TASK_NAMES

PROTOCOL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|data:")
"""How a uri begins that is no path."""


_FORM = '{"fx": 900, "fy": 900, "cx": 640, "cy": 360}'


class RowError(Exception):
    """What is wrong with one row."""


def media_item(row: dict[str, Any], further: list[str], base: str) -> MediaItem:
    """Check a row and make its item.

    further: the columns that become attributes. base: where relative uris start, see ``resolve``.

    Raises:
        RowError: with the value, and what to do.
    """
    frames = tuple(resolve(uri, base) for uri in _texts(row, "frames"))
    uri = string(row, "uri")
    if uri is None and not frames:
        raise RowError("uri is empty; give it one, or messages, or remove the row")
    start, end = number(row, "start_seconds"), number(row, "end_seconds")
    for key, seconds in (("start_seconds", start), ("end_seconds", end)):
        if seconds is not None and seconds < 0:
            raise RowError(f"{key} must not be negative, got {seconds}")
    if end is not None and (start or 0.0) >= end:
        raise RowError(f"start_seconds {start or 0.0} must be less than end_seconds {end}")
    media_type = string(row, "media_type") or ("video" if frames else None)
    if media_type not in (None, *MEDIA_TYPES) or (frames and media_type == "image"):
        allowed = "video where frames are given" if frames else "image or video"
        raise RowError(f"media_type must be {allowed}, got {media_type!r}")
    if uri is not None and frames and resolve(uri, base) != frames[0]:
        raise RowError("uri and frames are both given; give the video, or its frames")
    sample_fps = number(row, "sample_fps")
    if sample_fps is not None and sample_fps <= 0:
        raise RowError(f"sample_fps must be positive, got {sample_fps}")
    uri = resolve(uri, base) if uri is not None else frames[0]
    return MediaItem(
        media_id=string(row, "media_id") or default_media_id(frames or [uri]),
        uri=uri,
        frames=frames,
        sample_fps=sample_fps,
        media_type=media_type,
        start_seconds=start,
        end_seconds=end,
        tasks=tasks(row),
        intrinsics=_intrinsics(row),
        content_version=string(row, "content_version"),
        attributes=attributes(row, further),
    )


def tasks(row: dict[str, Any]) -> tuple[str, ...]:
    """Read the tasks to ask about a row; empty: all.

    Raises:
        RowError: there is no such task.
    """
    names = tuple(dict.fromkeys(_texts(row, "tasks")))
    for name in names:
        if name not in TASK_NAMES:
            raise RowError(f"tasks has an unknown name {name!r}; known are {', '.join(TASK_NAMES)}")
    return names


def string(row: dict[str, Any], key: str) -> str | None:
    """Read a text; None if it is not there or empty.

    Raises:
        RowError: it is no text.
    """
    value = row.get(key)
    if key == "media_id" and isinstance(value, int) and not isinstance(value, bool):
        value = str(value)  # a database's ids; CSV has no other than text
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if not isinstance(value, str):
        raise RowError(f"{key} must be text, got {brief(value)}")
    return value


def number(row: dict[str, Any], key: str) -> float | None:
    """Read a finite number, or a text that is one; None if it is not there or empty.

    Raises:
        RowError: it is none.
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


def _intrinsics(row: dict[str, Any]) -> Intrinsics | None:
    value = row.get("intrinsics")
    if isinstance(value, str) and value.strip():  # CSV has no other than text
        try:
            value = json.loads(value)
        except ValueError:
            value = _FORM
    if value is None or value == "":
        return None
    if not isinstance(value, dict) or set(value) != {"fx", "fy", "cx", "cy"}:
        raise RowError(f"intrinsics must be {_FORM}, got {brief(row['intrinsics'])}")
    numbers = {name: number(value, name) for name in ("fx", "fy", "cx", "cy")}
    if any(n is None for n in numbers.values()) or min(numbers["fx"] or 0, numbers["fy"] or 0) <= 0:
        raise RowError(f"intrinsics must be {_FORM} with fx, fy over 0, got {brief(value)}")
    return Intrinsics(**{name: number or 0.0 for name, number in numbers.items()})


def _texts(row: dict[str, Any], key: str) -> list[str]:
    """Read a list of strings; as text it is a JSON list, or separated by semicolons."""
    value = row.get(key)
    if value is None or value == "":
        return []
    if isinstance(value, str):
        if value.lstrip().startswith("["):
            try:
                value = json.loads(value)
            except ValueError as error:
                raise RowError(f"{key} is not a valid JSON list: {error}") from None
        elif "data:" in value:
            raise RowError(f"{key} with data: uris must be a JSON list")
        else:
            value = [part.strip() for part in value.split(";")]
    if not isinstance(value, list):
        raise RowError(f"{key} must be a list of texts, got {brief(value)}")
    for element in value:
        if not isinstance(element, str) or not element.strip():
            raise RowError(f"{key} must hold texts that are not empty, got {brief(element)}")
    return value


def attributes(row: dict[str, Any], further: list[str]) -> str | None:
    """Write a row's further columns as one JSON object; None if there are none.

    Raises:
        RowError: they are nested too deeply.
    """
    try:
        return attributes_json(row, further)
    except RecursionError:
        raise RowError("a value is nested too deeply") from None


def read_json(text: str, key: str, form: str) -> Any:
    """Read JSON text. form: an example, for the message.

    Raises:
        RowError: it is no JSON.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RowError(f"{key} is not valid JSON, such as {form}: {error}") from None


def brief(value: Any) -> str:
    """Show a value in a message, cut if it is long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def resolve(uri: str, base: str) -> str:
    """Make a relative uri absolute: it starts at ``base``."""
    if PROTOCOL.match(uri) or uri.startswith("/"):
        return uri
    if uri.startswith("~/"):
        return os.path.expanduser(uri)
    protocol = PROTOCOL.match(base)
    head = protocol[0] if protocol else ""
    return head + posixpath.normpath(posixpath.join(base.removeprefix(head), uri))
