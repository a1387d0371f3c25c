"""A manifest row: one media item to annotate. The user's own table; only ``uri`` is required.

Or a conversation about several media, ``messages``.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from urllib.parse import urlsplit

import pyarrow as pa

MEDIA_TYPES = ("image", "video")

# fmt: off
IMAGE_EXTENSIONS = frozenset({
    "jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "tif", "tiff", "avif", "heic",
    "heif", "bmp", "jp2", "ppm", "pgm", "pbm", "tga",
})
VIDEO_EXTENSIONS = frozenset({
    "mp4", "m4v", "mov", "qt", "mkv", "webm", "avi", "ts", "m2ts", "mts", "mpg", "mpeg",
    "mpe", "wmv", "asf", "flv", "f4v", "3gp", "3g2", "ogv", "vob", "mxf", "y4m",
})
# fmt: on


def _field(name: str, type_: pa.DataType, description: str, *, nullable: bool = True) -> pa.Field:
    return pa.field(name, type_, nullable=nullable, metadata={"description": description})


MANIFEST = pa.schema(
    [
        _field(
            "uri",
            pa.string(),
            "Where the media is: s3://, https://, file:// or a path (a relative path starts at the "
            "manifest's folder), or a data: URI. Required, unless `frames` or `messages` is given.",
        ),
        _field(
            "frames",
            pa.list_(pa.string()),
            "A video given as its frames: a list of image uris in order, `sample_fps` a second.",
        ),
        _field("sample_fps", pa.float64(), "Frames a second of `frames`; default 2.0."),
        _field(
            "messages",
            pa.string(),
            "A conversation for the task `chat`, instead of one media item: JSON text, or a nested "
            "list, of turns with `role` and `content`, as in the model's reference code. "
            "[Conversations](guide.md#conversations) shows it.",
        ),
        _field(
            "media_id",
            pa.string(),
            "Your own id of the media item; default: a hash of the uri, or of the messages.",
        ),
        _field(
            "media_type",
            pa.string(),
            "`image` or `video`; default: by file extension, else by content.",
        ),
        _field(
            "start_seconds", pa.float64(), "Annotate the video from here (PTS); default: its begin."
        ),
        _field("end_seconds", pa.float64(), "Annotate the video up to here; default: its end."),
        _field(
            "tasks",
            pa.list_(pa.string()),
            "Names of the job's tasks to ask about this item; default: all that fit its type.",
        ),
        _field(
            "intrinsics",
            pa.struct([pa.field(name, pa.float64()) for name in ("fx", "fy", "cx", "cy")]),
            "For objects_3d: focal lengths and principal point in pixels of the displayed "
            "original; default: a field of view of 60 degrees.",
        ),
        _field(
            "content_version",
            pa.string(),
            "The object's etag, or size and time, as `reelscribe scan` found it: a manifest with a "
            "changed one is a new run.",
        ),
    ]
)
"""Columns with a meaning. Any further column passes through to the output as `attributes`."""


@dataclass(frozen=True, kw_only=True)
class Intrinsics:
    """Intrinsics of a pinhole camera, in pixels of the displayed original.

    fx, fy: focal lengths. cx, cy: where the axis meets the picture.
    """

    fx: float
    fy: float
    cx: float
    cy: float


@dataclass(frozen=True, kw_only=True)
class PartSettings:
    """What an image or video of a conversation sets for itself; None: as the job says.

    The names are those of the model's reference code.
    """

    fps: float | None = None
    num_frames: int | None = None
    min_frames: int | None = None
    max_frames: int | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None
    total_pixels: int | None = None
    resized_height: int | None = None
    resized_width: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)  # a driver may hold a million
class MediaItem:
    """One manifest row, checked; or an image or video of its messages, with settings.

    uri: of a conversation that of its first image or video; empty if there is none.
    messages: JSON text as ``read_messages`` makes it, uris absolute; None: no conversation.
    attributes: the user's further columns as a JSON object, or None if there are none.
    content_version: as the listing found it; part of the run's fingerprint.
    """

    media_id: str
    uri: str
    frames: tuple[str, ...] = field(default=())
    sample_fps: float | None = None
    messages: str | None = None
    settings: PartSettings = PartSettings()
    media_type: str | None = None
    start_seconds: float | None = None
    end_seconds: float | None = None
    tasks: tuple[str, ...] = field(default=())
    intrinsics: Intrinsics | None = None
    attributes: str | None = None
    content_version: str | None = None


def default_media_id(uris: Sequence[str]) -> str:
    """Hash a media item's uri, all uris of its frame list, or its messages."""
    return hashlib.sha256("\n".join(uris).encode()).hexdigest()[:20]


def guess_media_type(uri: str) -> str | None:
    """Guess image or video from the extension or the data: type; None if neither tells."""
    if uri.startswith("data:"):
        kind = re.split("[/;,]", uri[5:], maxsplit=1)[0]
        return kind if kind in MEDIA_TYPES else None
    # Only https uris have a query: in a key or a file name, ? and # are letters like others.
    path = urlsplit(uri).path if uri.startswith(("http://", "https://")) else uri
    extension = PurePosixPath(path).suffix.lower().lstrip(".")
    if extension in IMAGE_EXTENSIONS:
        return "image"
    return "video" if extension in VIDEO_EXTENSIONS else None
