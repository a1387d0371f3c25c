"""Decode a video's planned frames with PyAV: in one pass, over what key frames lead to, no more.

How a sample time finds its frame (``sampling.frames``):

    exact      the frame on display then: the one with the latest PTS at or before it
    nearest    the closest of the frames that others refer to; the rest is not decoded
    keyframes  the key frame on display then, if there were only key frames

The plan counts the tokens of the exact frames' times. Where the text of another frame's time could
be of another length, the exact frame is taken: so a prompt has its planned length in every case.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from PIL import Image

from pipeline.container import alpha_decoder, quarter_turn, to_ticks, unreadable
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
from schemas.errors import ErrorType, UnitError
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
    lead_seconds: float | None,
) -> Frames | None:
    """Decode the frames of a unit, from a container at its start.

    lead_seconds: seek to the key frame so long before a sample time, where that leaves frames
        out. (Seeks go by DTS, which runs ahead of PTS.) None: never; decode from the start.

    Returns None if a seek landed too late, or if there is no frame of the kind asked for.

    Raises:
        UnitError: a frame cannot be decoded, there is none, or the file is cut short.
    """
    base = stream.time_base
    targets = [to_ticks(t, base) for t in sampling.times_seconds()]
    walk = _Walk(container, stream, num_threads, lead_seconds)
    pixels, picture_of = empty_pixels(sampling), _Pictures(media, sampling, num_threads)
    chosen: dict[int, _Choice] = {}

    def decode(numbers: Sequence[int], rule: str) -> bool:
        before = -1
        choices = walk.choose([targets[k] for k in numbers], rule)
        for k, (frame, choice) in zip(numbers, choices, strict=False):
            if before >= 0 and chosen[before].pts == choice.pts:
                pixels[k] = pixels[before]  # a held frame
            else:
                pixels[k] = picture_of(frame)
            chosen[k], before = choice, k
        return before == numbers[-1]

    with closing(walk), unreadable("decoding failed"):
        walk.seek_before(targets[0], begin=to_ticks(media.begin_seconds or 0.0, base))
        done = decode(range(len(targets)), sampling.frames)
        if walk.at_end:
            check_not_truncated(container, stream, walk.end, sampling)
        is_free = done and sampling.frames != "exact"
        if is_free and (again := _unsure(chosen, targets, base, sampling.origin_seconds)):
            if lead_seconds is None:
                return None
            walk.seek_before(targets[again[0]])
            done = decode(again, "exact")
    if not done:
        if sampling.frames == "exact" and not walk.sought:
            raise UnitError(ErrorType.MEDIA_UNREADABLE, "no frame could be decoded")
        return None
    found = [chosen[k] for k in range(len(targets))]
    return Frames(
        pixels=pixels,
        pts_seconds=tuple(float(choice.pts * base) for choice in found),
        frame_indices=tuple(
            _even_index(choice.pts, media, base) if choice.index is None else choice.index
            for choice in found
        ),
        decoder="pyav",
    )


@dataclass(frozen=True, kw_only=True)
class _Choice:
    """A frame chosen for a sample time.

    pts, floor: in ticks, of this frame, and of one that is not later than the exact frame.
    index: in presentation order, if all frames before were decoded.
    """

    pts: int
    floor: int
    index: int | None


class _Walk:
    """Decodes frames in the order of their PTS, from where the container stands.

    at_end: whether the last frame was reached; ``end`` is its PTS and duration then.
    sought: whether it ever went elsewhere than on.
    """

    def __init__(
        self, container: Any, stream: Any, num_threads: int, lead_seconds: float | None
    ) -> None:
        self._container, self._stream = container, stream
        self._decoder = alpha_decoder(stream)
        self._decoder.thread_count = num_threads
        self._decoder.thread_type = "AUTO"
        second = 1 / stream.time_base
        self._lead = None if lead_seconds is None else int(lead_seconds * second)
        self._far = int(_JUMP_SECONDS * second)
        self._frames = self._decoded()
        self._landed: int | None = None
        self._jumped = -(1 << 62)
        self.at_end = self.sought = False
        self.end: tuple[int, int, bool] | None = None
        self.num_packets = 0

    def close(self) -> None:
        """Let go of the decoder's frames now; their generator refers to this object."""
        self._frames.close()

    def choose(self, targets: list[int], rule: str) -> Iterator[tuple[Any, _Choice]]:
        """The frame of each target, ascending, in ticks. Fewer, if a seek landed after one."""
        self._decoder.skip_frame = _SKIPPED[rule]
        counted = rule == "exact" and not self.sought
        current: Any = None
        index, done = -1, 0
        while done < len(targets):
            frame = next((frame for frame in self._frames if frame.pts is not None), None)
            if frame is None:
                break
            if current is None and self._is_late(frame.pts, targets[done]):
                return
            while current is not None and done < len(targets) and frame.pts > targets[done]:
                target, floor = targets[done], current.pts
                if rule == "nearest" and frame.pts - target < target - floor:
                    yield frame, _Choice(pts=frame.pts, floor=floor, index=None)
                else:
                    known = index if counted else None
                    yield current, _Choice(pts=floor, floor=floor, index=known)
                done += 1
            current, index = frame, index + 1
            if done < len(targets) and self._jump(frame.pts, targets[done], rule):
                counted = False
                if rule != "keyframes":
                    current = None
        self.at_end = done < len(targets)
        if current is None or not self.at_end:
            return
        if rule == "exact":
            self.end = current.pts, current.duration or 0, False
        for _ in targets[done:]:
            known = index if counted else None
            yield current, _Choice(pts=current.pts, floor=current.pts, index=known)

    def seek_before(self, ticks: int, begin: int | None = None) -> None:
        """Go to the key frame well before a time, unless that is the begin."""
        if self._lead is not None and (begin is None or ticks - self._lead > begin):
            self._jumped = -(1 << 62)
            self._seek(ticks - self._lead)

    def _is_late(self, pts: int, target: int) -> bool:
        """Whether decoding began, by a seek, behind the frame that is on display at a time.

        Frames before the key frame in presentation order may lack what they refer to.
        """
        return self.sought and max(pts, pts if self._landed is None else self._landed) > target

    def _jump(self, pts: int, target: int, rule: str) -> bool:
        """Seek ahead if the frames up to a later key frame are not needed."""
        if self._lead is None:
            return False
        entries, least = self._stream.index_entries, pts + self._far
        at, aim = entries.search_timestamp(target - self._lead), target - self._lead
        if rule == "keyframes":
            following = entries.search_timestamp(least, backward=False)
            if following > at:
                # The index has DTS, and FFmpeg seeks in MP4 by PTS: later by what the first is.
                late = max((self._stream.start_time or 0) - entries[0].timestamp, 0)
                at, aim = following, entries[following].timestamp + late
        if at < 0 or entries[at].timestamp <= max(least, self._jumped):
            return False
        self._jumped = entries[at].timestamp
        self._seek(aim)
        return True

    def _seek(self, ticks: int) -> None:
        with unreadable("seeking"):
            self._container.seek(ticks, stream=self._stream, backward=True)
        if self._decoder is not self._stream.codec_context:
            self._decoder.flush_buffers()
        self._frames, self._landed, self.sought = self._decoded(), None, True

    def _decoded(self) -> Generator[Any]:
        for packet in self._container.demux(self._stream):
            if packet.pts is not None and packet.size and not packet.is_discard:
                self.num_packets += 1
                if self._landed is None and packet.is_keyframe:
                    self._landed = packet.pts
                if self.end is None or packet.pts > self.end[0]:
                    self.end = packet.pts, packet.duration or 0, False
            yield from self._decoder.decode(packet)


class _Pictures:
    """Turns decoded frames into the model's pixels: RGB, upright, on white, resized."""

    def __init__(self, media: Media, sampling: Sampling, num_threads: int) -> None:
        self._media, self._is_first = media, True
        self._num_threads = num_threads
        self._converted = VideoReformatter()
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
            rgb = self._converted.reformat(
                frame, format=_rgb_format(frame), interpolation=way, threads=self._num_threads
            )
        return self._resized(rgb, turn)


def _rgb_format(frame: Any) -> str:
    """Packed RGB, or the same in planes, which are converted and resized a third faster.

    Only where both have the same pixels: else FFmpeg takes another way for planes, one that (in
    version 8) gets the last columns wrong if the width is no multiple of 16.
    """
    is_same = frame.width % 16 == 0 and frame.height % 2 == 0
    return "gbrp" if is_same and frame.format.name in ("yuv420p", "yuvj420p") else "rgb24"


def is_deep(pixel_format: str | None) -> bool:
    """Whether a pixel format has more than 8 bits a component."""
    if pixel_format is None:
        return False
    return any(c.bits > 8 for c in av.VideoFormat(pixel_format).components)


def _unsure(
    chosen: dict[int, _Choice], targets: list[int], time_base: Fraction, origin_seconds: float
) -> list[int]:
    """Numbers of the frames, in pairs, whose time may be told in a text of another length.

    The exact frame is not before the floor and not after the sample time, so its text is as long
    as theirs where those are equally long.
    """

    def lengths(ticks: Sequence[int]) -> list[int]:
        seconds = [float(t * time_base) - origin_seconds for t in ticks]
        return [num_digits(told) for told in pair_seconds(seconds)]

    choices = [chosen[k] for k in range(len(targets))]
    floors = [choice.floor for choice in choices]
    tops = [max(pair) for pair in zip(targets, floors, strict=True)]
    found = [choice.pts for choice in choices]
    sides = zip(lengths(floors), lengths(tops), lengths(found), strict=True)
    pairs = [k for k, lengths_of_pair in enumerate(sides) if len(set(lengths_of_pair)) > 1]
    return [k for pair in pairs for k in (2 * pair, 2 * pair + 1)]


def _even_index(pts: int, media: Media, time_base: Fraction) -> int | None:
    """Index of a frame in presentation order, by an even frame rate."""
    if media.is_vfr is False and media.average_fps and media.begin_seconds is not None:
        return round((float(pts * time_base) - media.begin_seconds) * media.average_fps)
    return None
