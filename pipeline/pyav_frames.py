"""Decode a video's planned frames with PyAV: in one pass, over what key frames lead to, no more.

How a sample time finds its frame (``sampling.frames``):

    exact      the frame on display then: the one with the latest PTS at or before it
    nearest    the closest of the frames that others refer to; the rest is not decoded
    keyframes  the key frame on display then, if there were only key frames
"""

from bisect import bisect_right
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.video.reformatter import Interpolation
from PIL import Image

from pipeline.container import (
    alpha_decoder,
    displayed,
    packet_end,
    quarter_turn,
    to_ticks,
    unreadable,
)
from pipeline.frames import (
    Frames,
    Pixels,
    Resizer,
    check_not_truncated,
    check_size,
    empty_pixels,
)
from pipeline.images import to_rgb
from pipeline.prompt import num_digits, pair_seconds
from schemas.unit import Media, Sampling

_SKIPPED = {"exact": "DEFAULT", "nearest": "NONREF", "keyframes": "NONKEY"}

_JUMP_SECONDS = 0.5
"""A key frame so far ahead is worth a seek."""


def pyav_frames(
    container: Any,
    stream: Any,
    media: Media,
    sampling: Sampling,
    num_threads: int,
    *,
    seek: bool,
) -> Frames | None:
    """Decode the frames of a unit, from a container at its start.

    seek: go to the key frame before a sample time, where that leaves frames out; else decode from
        the start of the file.

    Returns None if there is no frame, if a seek landed too late, or if frames that are not exact
    have times that would not fit the planned prompt.

    Raises:
        UnitError: a frame cannot be decoded, or the file is cut short.
    """
    base, clock = stream.time_base, sampling.times_seconds()
    targets = [to_ticks(t, base) for t in clock]
    second = int(1 / base)
    walk = _Walk(container, stream, num_threads, sampling.frames)
    critical = _critical(sampling)
    if sampling.frames == "nearest":
        walk.all_near = sorted(targets[k] for k in critical)
    # A packet's DTS runs ahead of its PTS, and seeks go by DTS: aim a second early.
    start = targets[0] - second
    sought = seek and start > to_ticks(media.begin_seconds or 0.0, base)
    if sought:
        walk.seek(start)
    keys = [entry.timestamp for entry in stream.index_entries if entry.is_keyframe] if seek else []
    counted = not sought and sampling.frames == "exact"
    pixels, picture_of = empty_pixels(sampling), _Pictures(media, sampling, num_threads)
    chosen: list[tuple[int, int | None]] = []  # (pts, index) of the frame of each target so far

    def keep(frame: Any, position: int) -> None:
        k = len(chosen)
        if chosen and chosen[-1][0] == frame.pts:  # a held frame
            pixels[k] = pixels[k - 1]
        else:
            pixels[k] = picture_of(frame)
        chosen.append((frame.pts, position if counted else _even_index(frame.pts, media, base)))

    current, position = None, -1
    with unreadable("decoding failed"):
        while len(chosen) < len(targets):
            frame = walk.next_frame()
            if frame is None:
                break
            if current is None and walk.sought and frame.pts > targets[len(chosen)]:
                return None
            while current is not None and len(chosen) < len(targets):
                target = targets[len(chosen)]
                if frame.pts <= target:
                    break
                is_closer = frame.pts - target < target - current.pts
                free = sampling.frames == "nearest" and len(chosen) not in critical
                keep(*((frame, position + 1) if free and is_closer else (current, position)))
            current, position = frame, position + 1
            if len(chosen) < len(targets):
                at = bisect_right(keys, targets[len(chosen)] - second) - 1
                if at >= 0 and keys[at] > frame.pts + _JUMP_SECONDS * second:
                    walk.seek(keys[at])
                    current, counted = None, False
        if len(chosen) < len(targets):
            if current is None:
                return None
            last = (current.pts, current.duration or 0, False)
            if sampling.frames == "keyframes":
                last = packet_end(walk.packets)
            check_not_truncated(container, stream, last, sampling)
            while len(chosen) < len(targets):
                keep(current, position)
    pts_seconds = tuple(float(pts * base) for pts, _ in chosen)
    if sampling.frames == "nearest":
        seen = sorted(pts for pts, _ in walk.packets)
        exact = [float(seen[displayed(seen, target)] * base) for target in targets]
        if _widths(pts_seconds, sampling) != _widths(exact, sampling):
            return None
    return Frames(
        pixels=pixels,
        pts_seconds=pts_seconds,
        frame_indices=tuple(index for _, index in chosen),
        decoder="pyav",
    )


class _Walk:
    """Decodes frames in the order of their PTS, from where the container stands.

    all_near: around these times, in ticks and ascending, no frame is left out.
    packets: pts and duration of those that were read.
    sought: whether it began elsewhere than at the start of the file.
    """

    def __init__(self, container: Any, stream: Any, num_threads: int, frames: str) -> None:
        self._container, self._stream = container, stream
        self._decoder = alpha_decoder(stream)
        self._decoder.thread_count = num_threads
        self._decoder.thread_type = "AUTO"
        self._usual = self._skipped = _SKIPPED[frames]
        self._decoder.skip_frame = self._usual
        self._second = int(1 / stream.time_base)
        self._frames = self._decoded()
        self.all_near: list[int] = []
        self.packets: list[tuple[int, int]] = []
        self.sought = False

    def seek(self, ticks: int) -> None:
        """Go to the key frame before a time."""
        with unreadable("seeking"):
            self._container.seek(ticks, stream=self._stream, backward=True)
        if self._decoder is not self._stream.codec_context:
            self._decoder.flush_buffers()
        self._frames = self._decoded()
        self.sought = True

    def next_frame(self) -> Any:
        """The next frame that has a time; None at the end."""
        return next((frame for frame in self._frames if frame.pts is not None), None)

    def _decoded(self) -> Iterator[Any]:
        for packet in self._container.demux(self._stream):
            if packet.pts is not None and packet.size:
                self.packets.append((packet.pts, packet.duration or 0))
                if self.all_near:
                    self._skip_unless_near(packet.pts)
            yield from self._decoder.decode(packet)

    def _skip_unless_near(self, pts: int) -> None:
        at = bisect_right(self.all_near, pts - self._second)
        is_near = at < len(self.all_near) and self.all_near[at] <= pts + self._second
        skipped = "DEFAULT" if is_near else self._usual
        if skipped != self._skipped:
            self._skipped = self._decoder.skip_frame = skipped


class _Pictures:
    """Turns decoded frames into the model's pixels: RGB, upright, on white, resized."""

    def __init__(self, media: Media, sampling: Sampling, num_threads: int) -> None:
        self._media, self._is_first = media, True
        self._resized = Resizer(sampling.resized_height, sampling.resized_width, num_threads)

    def __call__(self, frame: Any) -> Pixels:
        turn = quarter_turn(frame)
        if self._is_first:
            sides = frame.width, frame.height
            check_size(self._media, *(sides[::-1] if turn in (90, 270) else sides))
            self._is_first = False
        if self._media.has_alpha:
            rgba = Image.fromarray(frame.to_ndarray(format="rgba"), mode="RGBA")
            rgb = av.VideoFrame.from_ndarray(np.asarray(to_rgb(rgba)), format="rgb24")
        else:
            # Deeper chroma is interpolated as FFmpeg's own tools do.
            way = Interpolation.BICUBIC if is_deep(frame.format.name) else None
            rgb = frame.reformat(format="rgb24", interpolation=way)
        return self._resized(rgb, turn)


def is_deep(pixel_format: str | None) -> bool:
    """Whether a pixel format has more than 8 bits a component."""
    if pixel_format is None:
        return False
    return any(c.bits > 8 for c in av.VideoFormat(pixel_format).components)


def _critical(sampling: Sampling) -> set[int]:
    """Targets near which the text of the time gains a digit: they get the exact frame.

    The plan counts on that digit. Elsewhere a frame next to the exact one has a text as long.
    """
    times = [t - sampling.origin_seconds for t in sampling.times_seconds()]
    near = [num_digits(told - 1) != num_digits(told + 1) for told in pair_seconds(times)]
    return {k for pair, is_near in enumerate(near) if is_near for k in (2 * pair, 2 * pair + 1)}


def _widths(pts_seconds: Any, sampling: Sampling) -> list[int]:
    told = pair_seconds([t - sampling.origin_seconds for t in pts_seconds])
    return [num_digits(seconds) for seconds in told]


def _even_index(pts: int, media: Media, time_base: Fraction) -> int | None:
    """Index of a frame in presentation order, by an even frame rate."""
    if media.is_vfr is False and media.average_fps and media.begin_seconds is not None:
        return round((float(pts * time_base) - media.begin_seconds) * media.average_fps)
    return None
