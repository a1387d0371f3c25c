"""A manifest row: one media item, or a conversation about several (``messages``).

The manifest is the user's own table; only ``uri`` is required.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Annotated
from urllib.parse import urlsplit

import pyarrow as pa

from schemas.tables.columns import Column, described, struct_of

MEDIA_TYPES = ("image", "video")

# fmt: off
IMAGE_EXTENSIONS = frozenset({
    "jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "tif", "tiff", "avif", "heic",
    "heif", "hif", "heics", "bmp", "jp2", "ppm", "pgm", "pbm", "tga", "apng",
    # Raw files of cameras, of which some are error rows that say so.
    "dng", "nef", "nrw", "cr2", "cr3", "crw", "arw", "sr2", "raf", "rw2", "orf", "pef", "x3f",
    "mrw",
})
VIDEO_EXTENSIONS = frozenset({
    "mp4", "m4v", "mov", "qt", "mkv", "webm", "avi", "ts", "m2ts", "mts", "mpg", "mpeg",
    "mpe", "wmv", "asf", "flv", "f4v", "3gp", "3gpp", "3g2", "ogv", "vob", "mxf", "y4m",
    "mod", "insv", "divx",
})
# fmt: on


@dataclass(frozen=True, kw_only=True)
class Intrinsics:
    """Intrinsics of a pinhole camera, in pixels of the displayed original."""

    fx: Annotated[float, Column("focal length in x", unit="px", nullable=True)]
    fy: Annotated[float, Column("focal length in y", unit="px", nullable=True)]
    cx: Annotated[float, Column("x of the principal point", unit="px", nullable=True)]
    cy: Annotated[float, Column("y of the principal point", unit="px", nullable=True)]


MANIFEST = pa.schema(
    [
        described(
            "uri",
            pa.string(),
            "Where the media is: s3://, https://, file:// or a path (a relative path starts at the "
            "manifest's folder), or a data: URI. A local name that is not UTF-8 is written as a "
            "percent-encoded file:// uri. Required, unless `frames` or `messages` is given.",
        ),
        described(
            "frames",
            pa.list_(pa.string()),
            "A video given as its frames: a list of image uris in order, `sample_fps` per second.",
        ),
        described("sample_fps", pa.float64(), "Frames per second of `frames`; default 2.0."),
        described(
            "messages",
            pa.string(),
            "A conversation for the task `chat`, instead of one media item: JSON text, or a nested "
            "list, of turns with `role` and `content`, as in the model's reference code. "
            "[Conversations](guide.md#conversations) shows it.",
        ),
        described(
            "media_id",
            pa.string(),
            "Your own id of the media item; default: a hash of the uri, or of the messages.",
        ),
        described(
            "media_type",
            pa.string(),
            "`image` or `video`; default: by file extension, else by content.",
        ),
        described(
            "start_seconds",
            pa.float64(),
            "Annotate the video from this time on (PTS); default: its beginning.",
        ),
        described(
            "end_seconds", pa.float64(), "Annotate the video up to this time; default: its end."
        ),
        described(
            "tasks",
            pa.list_(pa.string()),
            "Names of the job's tasks for this item; default: all that fit its media type.",
        ),
        described(
            "intrinsics",
            struct_of(Intrinsics),
            "For objects_3d: focal lengths and principal point in pixels of the displayed "
            "original; default: a field of view of 60 degrees.",
        ),
        described(
            "content_version",
            pa.string(),
            "The object's etag, or size and time, as `reelscribe scan` found it: a manifest with "
            "another version is a new run.",
        ),
    ]
)
"""Columns with a meaning. Any further column passes through to the output as `attributes`."""


@dataclass(frozen=True, kw_only=True)
class PartSettings:
    """Settings of one image or video of a conversation; None: the job's setting.

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
    """One checked manifest row; or one image or video of its messages, with settings.

    uri: for a conversation the uri of its first image or video; empty if there is none.
    messages: JSON text as ``read_messages`` writes it, uris absolute; None: no conversation.
    attributes: the user's further columns as a JSON object; None: there are none.
    content_version: as the listing found it; part of the run's fingerprint.
    """

    media_id: str
    uri: str
    frames: tuple[str, ...] = ()
    sample_fps: float | None = None
    messages: str | None = None
    settings: PartSettings = PartSettings()
    media_type: str | None = None
    start_seconds: float | None = None
    end_seconds: float | None = None
    tasks: tuple[str, ...] = ()
    intrinsics: Intrinsics | None = None
    attributes: str | None = None
    content_version: str | None = None


def default_media_id(uris: Sequence[str]) -> str:
    """Return a hash of a media item's uri, of all uris of its frame list, or of its messages."""
    return hashlib.sha256("\n".join(uris).encode()).hexdigest()[:20]


def guess_media_type(uri: str) -> str | None:
    """Return image or video, by the extension or the data: type; None if unknown."""
    if uri.startswith("data:"):
        kind = re.split("[/;,]", uri[5:], maxsplit=1)[0]
        return kind if kind in MEDIA_TYPES else None
    # Only https uris have a query: in an object key or a file name, ? and # are plain characters.
    path = urlsplit(uri).path if uri.lower().startswith(("http://", "https://")) else uri
    extension = PurePosixPath(path).suffix.lower().lstrip(".")
    if extension in IMAGE_EXTENSIONS:
        return "image"
    return "video" if extension in VIDEO_EXTENSIONS else None
