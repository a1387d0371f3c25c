"""Decoded frames: what a decoder gives, how it resizes them, and what it refuses."""

import dataclasses
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np

from pipeline.container import header_end_seconds
from schemas.errors import ErrorType, UnitError
from schemas.unit import Media, Sampling

Pixels = np.ndarray[Any, np.dtype[np.uint8]]

_TRUNCATED_SECONDS = 1.0

# B and C of the cubic: Keys' with a = -0.5, as Pillow and torch have it with antialias.
_CUBIC = "flags=bicubic+accurate_rnd:param0=0:param1=0.5"


@dataclass(frozen=True, kw_only=True)
class Frames:
    """What was decoded.

    pixels: uint8 [T, H, W, 3], RGB, T even for videos, H and W multiples of 32.
    pts_seconds, frame_indices: one for each frame; empty for images. An index is None where the
        decoder came there by a seek and the container has no even index, or left frames out.
    """

    pixels: Pixels
    pts_seconds: tuple[float, ...] = ()
    frame_indices: tuple[int | None, ...] = ()
    decoder: str
    bytes_read: int | None = None

    def sampling(self, planned: Sampling) -> Sampling:
        """The planned sampling, with the times and indices found."""
        return dataclasses.replace(
            planned,
            pts_seconds=self.pts_seconds or None,
            frame_indices=self.frame_indices or None,
            decoder=self.decoder,
        )


class Resizer:
    """Resizes video frames as the model's reference code does: bicubic with antialias, on floats.

    FFmpeg's scaler does it two to three times as fast as Pillow and comes nearer. It scales RGB by
    way of YUV, so each colour goes through it as a picture of its own.
    """

    def __init__(self, height: int, width: int, num_threads: int = 1) -> None:
        self._height, self._width = height, width
        self._num_threads = num_threads
        self._graphs: dict[tuple[str, int, int, int], Any] = {}

    def __call__(self, frame: av.VideoFrame, turn: int = 0) -> Pixels:
        """Turn an RGB frame, then resize it to ``uint8 [height, width, 3]``.

        frame: ``rgb24``, or ``gbrp``, which is taken apart faster.
        turn: counter-clockwise degrees: 0, 90, 180 or 270.
        """
        kind = frame.format.name, frame.width, frame.height, turn
        if kind[1:] == (self._width, self._height, 0):
            return frame.to_ndarray(format="rgb24")  # type: ignore[return-value]  # it is uint8
        if kind not in self._graphs:
            self._graphs[kind] = self._graph(*kind)
        frame.pts = 0
        self._graphs[kind].push(frame)
        return self._graphs[kind].pull().to_ndarray()  # type: ignore[no-any-return]

    def _graph(self, pixel_format: str, width: int, height: int, turn: int) -> Any:
        graph = av.filter.Graph()
        graph.threads = self._num_threads
        rgb = av.VideoFormat(pixel_format)
        source = graph.add_buffer(width=width, height=height, format=rgb, time_base=Fraction(1, 1))
        for _ in range(turn // 90):
            turned = graph.add("transpose", "cclock")
            source.link_to(turned)
            source = turned
        parts = graph.add("extractplanes", "r+g+b")
        whole = graph.add("mergeplanes", "map0s=1:map1s=2:map2s=0:format=gbrp")
        source.link_to(parts)
        for colour in range(3):
            scale = graph.add("scale", f"{self._width}:{self._height}:{_CUBIC}")
            parts.link_to(scale, colour, 0)
            scale.link_to(whole, 0, colour)
        packed, sink = graph.add("format", "rgb24"), graph.add("buffersink")
        whole.link_to(packed)
        packed.link_to(sink)
        graph.configure()
        return graph


def empty_pixels(sampling: Sampling) -> Pixels:
    """Room for the frames of a unit."""
    shape = (sampling.num_frames, sampling.resized_height, sampling.resized_width, 3)
    return np.empty(shape, dtype=np.uint8)


def check_size(media: Media, width: int, height: int) -> None:
    """Refuse a picture of another size than was planned."""
    if (width, height) != (media.width, media.height):
        raise UnitError(
            ErrorType.MEDIA_CHANGED,
            f"decoded {width}x{height}, but its header says {media.width}x{media.height}",
        )


def check_not_truncated(
    container: Any, stream: Any, last: tuple[int, int, bool] | None, sampling: Sampling
) -> None:
    """Refuse a file that ends well before its header says, where the unit needs what is missing.

    Matroska files that were cut off read like shorter ones, without any error.
    """
    end, certain = header_end_seconds(container, stream)
    if last is None or end is None or not certain:
        return
    last_end = float((last[0] + last[1]) * stream.time_base)
    wanted = sampling.times_seconds()[-1]
    if end - last_end > _TRUNCATED_SECONDS and wanted > last_end:
        raise UnitError(
            ErrorType.MEDIA_UNREADABLE,
            f"the file is cut short: its header promises frames up to {end:.3f} s, "
            f"the last one ends at {last_end:.3f} s",
        )
