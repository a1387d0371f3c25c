"""The frames that a decoder returns, and checks of their size and of the file's end."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.media.missing_bytes import missing_bytes
from pipeline.storage.media_file import MediaFile
from schemas.errors import ErrorType, UnitError
from schemas.tables.media import Media, Sampling

Pixels = np.ndarray[Any, np.dtype[np.uint8]]

_MAX_HELD_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class Frames:
    """Decoded frames of a unit.

    pixels: uint8 [T, H, W, 3], RGB; T is even for videos, H and W are multiples of 32.
    pts_seconds, frame_indices: one for each frame; empty for images. An index is None if the
        decoder seeked or skipped frames before it, and the frame rate is not constant.
    end_seconds: end of the video's last frame, if the decoder reached it.
    notes: what was unusual about the file, and what was done about it.
    """

    pixels: Pixels
    pts_seconds: tuple[float, ...] = ()
    frame_indices: tuple[int | None, ...] = ()
    decoder: str
    bytes_read: int | None = None
    end_seconds: float | None = None
    notes: tuple[str, ...] = ()

    def media(self, planned: Media) -> Media:
        """Return ``planned`` with the notes of these frames."""
        return dataclasses.replace(planned, notes=planned.notes + self.notes)

    def sampling(self, planned: Sampling) -> Sampling:
        """Return ``planned`` with the PTS and indices of these frames."""
        return dataclasses.replace(
            planned,
            pts_seconds=self.pts_seconds or None,
            frame_indices=self.frame_indices or None,
            decoder=self.decoder,
        )


def empty_pixels(sampling: Sampling) -> Pixels:
    """Allocate the pixels of a unit: uint8 [T, H, W, 3]."""
    shape = (sampling.num_frames, sampling.resized_height, sampling.resized_width, 3)
    return np.empty(shape, dtype=np.uint8)


def check_size(media: Media, width: int, height: int) -> None:
    """Check that a decoded frame has the planned size.

    Raises:
        UnitError: it has another size.
    """
    if (width, height) != (media.width, media.height):
        raise UnitError(
            ErrorType.MEDIA_CHANGED,
            f"decoded {width}x{height}, but the header says {media.width}x{media.height}",
        )


def check_end(
    frames: Frames, file: MediaFile, container: Any, stream: Any, sampling: Sampling
) -> Frames:
    """Check the end of a file whose last frame is held for more than a second.

    FFmpeg reads a truncated Matroska file like a shorter one, without any error.

    Returns ``frames`` with a note on it.

    Raises:
        UnitError: the unit needs frames, and bytes of the file are missing.
    """
    end, planned_end = frames.end_seconds, sampling.end_seconds or 0.0
    if end is None or sampling.times_seconds()[-1] <= end or planned_end - end <= _MAX_HELD_SECONDS:
        return frames
    if missing_bytes(file.file, file.size_bytes, container, stream):
        # names_missing_bytes, around this, puts their number before it.
        raise UnitError(
            ErrorType.MEDIA_UNREADABLE, f"the last frame that is there ends at {end:.3f} s"
        )
    note = (
        f"the last frame ends at {end:.3f} s, though the header promises more; it was held up to "
        f"{planned_end:.3f} s"
    )
    return dataclasses.replace(frames, notes=(*frames.notes, note))


@contextmanager
def names_missing_bytes(file: MediaFile, container: Any, stream: Any) -> Iterator[None]:
    """If decoding fails in a file that was cut short, let the error say so."""
    try:
        yield
    except UnitError as error:
        if error.error_type != ErrorType.MEDIA_UNREADABLE:
            raise  # the storage may be at fault: do not read on
        missing = missing_bytes(file.file, file.size_bytes, container, stream)
        if not missing:
            raise
        raise UnitError(
            ErrorType.MEDIA_UNREADABLE,
            f"the file is cut short: {missing:,} bytes are missing at its end; {error}",
        ) from error
