"""Check one manifest row and make a media item of it."""

from typing import Any

from pipeline.manifest.messages import read_messages, split_messages
from pipeline.manifest.uris import resolve_uri
from pipeline.manifest.values import (
    RowError,
    brief,
    read_attributes,
    read_json,
    read_number,
    read_text,
    read_texts,
)
from pipeline.storage.protocols import is_utf8
from schemas.job.task_spec import NAME
from schemas.tables.manifest import MEDIA_TYPES, Intrinsics, MediaItem, default_media_id

_INTRINSICS = '{"fx": 900, "fy": 900, "cx": 640, "cy": 360}'
_NOT_WITH_MESSAGES = (
    *("uri", "frames", "sample_fps", "media_type", "start_seconds", "end_seconds", "intrinsics"),
)


def media_item(row: dict[str, Any], further: list[str], base: str) -> MediaItem:
    """Check a row and make its item.

    further: the columns that become attributes.
    base: the folder where relative uris start.

    Raises:
        RowError: a value is wrong.
    """
    frames = tuple(_uri(uri, base) for uri in read_texts(row, "frames"))
    uri = read_text(row, "uri")
    if uri is None and not frames:
        raise RowError("uri is empty; fill in uri, frames or messages, or remove the row")
    start, end = read_number(row, "start_seconds"), read_number(row, "end_seconds")
    for key, seconds in (("start_seconds", start), ("end_seconds", end)):
        if seconds is not None and seconds < 0:
            raise RowError(f"{key} must not be negative, got {seconds}")
    if end is not None and (start or 0.0) >= end:
        raise RowError(f"start_seconds {start or 0.0} must be less than end_seconds {end}")
    media_type = read_text(row, "media_type") or ("video" if frames else None)
    if media_type not in (None, *MEDIA_TYPES) or (frames and media_type == "image"):
        allowed = "video where frames are given" if frames else "image or video"
        raise RowError(f"media_type must be {allowed}, got {media_type!r}")
    if uri is not None and frames and _uri(uri, base) != frames[0]:
        raise RowError("uri and frames are both given; give the video, or its frames")
    sample_fps = read_number(row, "sample_fps")
    if sample_fps is not None and sample_fps <= 0:
        raise RowError(f"sample_fps must be positive, got {sample_fps}")
    uri = _uri(uri, base) if uri is not None else frames[0]
    return MediaItem(
        media_id=read_text(row, "media_id") or default_media_id(frames or [uri]),
        uri=uri,
        frames=frames,
        sample_fps=sample_fps,
        media_type=media_type,
        start_seconds=start,
        end_seconds=end,
        tasks=_tasks(row),
        intrinsics=_intrinsics(row),
        content_version=read_text(row, "content_version"),
        attributes=read_attributes(row, further),
    )


def conversation_item(row: dict[str, Any], further: list[str], base: str) -> MediaItem:
    """Check a row with ``messages`` and make its item. Arguments are those of ``media_item``.

    Raises:
        RowError: a value is wrong.
    """
    for key in _NOT_WITH_MESSAGES:
        if row.get(key) not in (None, "", []):
            raise RowError(f"{key} and messages are both given; give {key} inside the messages")
    messages = read_messages(row["messages"], base)
    _, media = split_messages(messages)
    return MediaItem(
        media_id=read_text(row, "media_id") or default_media_id([messages]),
        uri=media[0].uri if media else "",
        messages=messages,
        tasks=_tasks(row),
        content_version=read_text(row, "content_version"),
        attributes=read_attributes(row, further),
    )


def _uri(text: str, base: str) -> str:
    uri = resolve_uri(text, base)
    if not is_utf8(uri):
        raise RowError(f"uri must be UTF-8, got {brief(uri)}")
    return uri


def _tasks(row: dict[str, Any]) -> tuple[str, ...]:
    """The tasks of a row; empty: all tasks of the job."""
    names = tuple(dict.fromkeys(read_texts(row, "tasks")))
    for name in names:
        if not NAME.fullmatch(name):  # that the job has it is checked with the job
            raise RowError(f"tasks has {brief(name)}, which is no name of a task, such as caption")
    return names


def _intrinsics(row: dict[str, Any]) -> Intrinsics | None:
    value = row.get("intrinsics")
    if isinstance(value, str) and value.strip():  # CSV has only text
        value = read_json(value, "intrinsics", _INTRINSICS)
    if value is None or value == "":
        return None
    if not isinstance(value, dict) or set(value) != {"fx", "fy", "cx", "cy"}:
        raise RowError(f"intrinsics must be {_INTRINSICS}, got {brief(row['intrinsics'])}")
    numbers = {name: read_number(value, name) for name in ("fx", "fy", "cx", "cy")}
    if any(n is None for n in numbers.values()) or min(numbers["fx"] or 0, numbers["fy"] or 0) <= 0:
        raise RowError(
            f"intrinsics must be {_INTRINSICS} with fx and fy over 0, got {brief(value)}"
        )
    return Intrinsics(**{name: number or 0.0 for name, number in numbers.items()})
