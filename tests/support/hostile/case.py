"""One broken file, and the valid files from which broken ones are made."""

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from tests.support.clips import numbered_frames, write_clip

OK = "ok"
BROKEN = "media_unreadable"
UNSUPPORTED = "media_unsupported"
LARGE = "media_too_large"
CHANGED = "media_changed"
MISSING = "media_missing"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One file, and the results that are allowed for it.

    make: writes the file to a path.
    allowed: ``ok``, or types of errors.
    later: changes the file between plan and decoding.
    """

    kind: str
    name: str
    make: Callable[[Path], None]
    allowed: frozenset[str]
    later: Callable[[Path], None] = field(default=lambda path: None)

    @property
    def id(self) -> str:
        return f"{self.kind}/{self.name}"


class Sound:
    """Valid files as bytes, by name; each is made at its first use."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, bytes] = {}

    def __getitem__(self, name: str) -> bytes:
        if name not in self._files:
            stem, _, suffix = name.partition(".")
            if suffix in PICTURES:
                buffer = io.BytesIO()
                numbered_frames(1, 64, 48)[0].save(buffer, PICTURES[suffix])
                self._files[name] = buffer.getvalue()
            else:
                codec = {"webm": "libvpx-vp9", "avi": "mpeg4"}.get(suffix, "libx264")
                options = {"faststart": {"movflags": "faststart"}}.get(stem, {})
                path = self._folder / name
                frames = numbered_frames(20, 64, 48)
                write_clip(path, frames, codec=codec, gop_size=6, container_options=options)
                self._files[name] = path.read_bytes()
        return self._files[name]


PICTURES = {"jpg": "JPEG", "png": "PNG", "gif": "GIF", "tiff": "TIFF", "webp": "WEBP", "bmp": "BMP"}
VIDEOS = ("clip.mp4", "faststart.mp4", "clip.mkv", "clip.webm", "clip.ts", "clip.avi", "clip.mov")
IMAGES = tuple(f"image.{suffix}" for suffix in PICTURES)


def case(kind: str, name: str, content, *allowed: str, later=None) -> Case:
    """Make a case from bytes, an image, or a function that writes the file."""
    if isinstance(content, bytes):
        make = lambda path: path.write_bytes(content)  # noqa: E731
    elif isinstance(content, Image.Image):
        make = content.save
    else:
        make = content
    more = {"later": later} if later else {}
    return Case(kind=kind, name=name, make=make, allowed=frozenset(allowed), **more)


def clip(frames=None, **options) -> Callable[[Path], None]:
    frames = numbered_frames(12, 64, 48) if frames is None else frames
    return lambda path: write_clip(path, frames, **options)
