"""One broken file, and the sound ones that it is made from."""

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from clips import numbered_frames
from PIL import Image

from jobs.encode_clip import encode_clip

OK = "ok"


BROKEN = "media_unreadable"


UNSUPPORTED = "media_unsupported"


LARGE = "media_too_large"


CHANGED = "media_changed"


MISSING = "media_missing"


BAD = "bad_request"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One file, and what may come of it."""

    kind: str
    name: str
    make: Callable[[Path], None]
    allowed: frozenset[str]
    later: Callable[[Path], None] = field(default=lambda path: None)

    @property
    def id(self) -> str:
        return f"{self.kind}/{self.name}"


class Sound:
    """Sound files, by name, as bytes: what the broken ones are made from."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[str, bytes] = {}

    def __getitem__(self, name: str) -> bytes:
        if name not in self._known:
            stem, _, suffix = name.partition(".")
            if suffix in PICTURES:
                buffer = io.BytesIO()
                numbered_frames(1, 64, 48)[0].save(buffer, PICTURES[suffix])
                self._known[name] = buffer.getvalue()
            else:
                codec = {"webm": "libvpx-vp9", "avi": "mpeg4"}.get(suffix, "libx264")
                options = {"faststart": {"movflags": "faststart"}}.get(stem, {})
                path = self._folder / name
                frames = numbered_frames(20, 64, 48)
                encode_clip(path, frames, codec=codec, gop_size=6, container_options=options)
                self._known[name] = path.read_bytes()
        return self._known[name]


PICTURES = {"jpg": "JPEG", "png": "PNG", "gif": "GIF", "tiff": "TIFF", "webp": "WEBP", "bmp": "BMP"}


VIDEOS = ("clip.mp4", "faststart.mp4", "clip.mkv", "clip.webm", "clip.ts", "clip.avi", "clip.mov")


IMAGES = tuple(f"image.{suffix}" for suffix in PICTURES)


def case(kind: str, name: str, content, *allowed: str, later=None) -> Case:
    """A case from bytes, an image to be saved by its name, or a function that writes the file."""
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
    return lambda path: encode_clip(path, frames, **options)
