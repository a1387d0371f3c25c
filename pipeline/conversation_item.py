"""Check one manifest row with ``messages`` and make a media item of it."""

from typing import Any

from pipeline.manifest_item import RowError, attributes, string, tasks
from pipeline.read_messages import read_messages, split_messages
from schemas.manifest import MediaItem, default_media_id

_OF_ONE_MEDIUM = (
    *("uri", "frames", "sample_fps", "media_type", "start_seconds", "end_seconds", "intrinsics"),
)


def conversation_item(row: dict[str, Any], further: list[str], base: str) -> MediaItem:
    """Check a row and make its item. Arguments are those of ``media_item``.

    Raises:
        RowError: with the value, and what to do.
    """
    for key in _OF_ONE_MEDIUM:
        if row.get(key) not in (None, "", []):
            raise RowError(
                f"{key} and messages are both given; give what it says inside the messages"
            )
    messages = read_messages(row["messages"], base)
    _, media = split_messages(messages)
    return MediaItem(
        media_id=string(row, "media_id") or default_media_id([messages]),
        uri=media[0].uri if media else "",
        messages=messages,
        tasks=tasks(row),
        content_version=string(row, "content_version"),
        attributes=attributes(row, further),
    )
