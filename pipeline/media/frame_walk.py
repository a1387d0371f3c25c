"""Read a video's frames in order with PyAV, seek over unneeded ones, and choose frames."""

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any

from pipeline.media.container import (
    PacketTime,
    decoded_frames,
    seek,
    video_decoder,
    video_packets,
)

_SKIP_FRAME = {"exact": "DEFAULT", "nearest": "NONREF", "keyframes": "NONKEY"}

_MIN_JUMP_SECONDS = 0.5
"""Minimum distance of a key frame for a seek to it."""


@dataclass(frozen=True, kw_only=True)
class FrameChoice:
    """The frame chosen for a sample time.

    pts: ticks.
    floor: ticks; the exact frame for the sample time is not before this one.
    index: in presentation order; None if earlier frames were not decoded.
    """

    pts: int
    floor: int
    index: int | None


class FrameWalk:
    """Decodes frames in the order of their PTS, from the container's current position.

    at_end: the walk reached the last frame; ``end`` is then its time.
    has_sought: the walk has seeked. Without a seek it reads every frame from the first one on.
    """

    def __init__(
        self, container: Any, stream: Any, num_threads: int, lead_seconds: float | None
    ) -> None:
        self._container, self._stream = container, stream
        self._decoder = video_decoder(stream)
        self._decoder.thread_count = num_threads
        self._decoder.thread_type = "AUTO"
        second = 1 / stream.time_base
        self._lead = None if lead_seconds is None else int(lead_seconds * second)
        self._min_jump = int(_MIN_JUMP_SECONDS * second)
        self._frames = self._decode()
        self._first_key: int | None = None
        self._jumped_to = -(1 << 62)
        self.at_end = self.has_sought = False
        self.end: PacketTime | None = None

    def close(self) -> None:
        """Free the decoder's frames now: their generator and this object refer to each other."""
        self._frames.close()

    def choose(self, targets: list[int], rule: str) -> Iterator[tuple[Any, FrameChoice]]:
        """Yield the frame of each target, with its choice.

        targets: sample times in ticks, ascending.
        rule: ``exact``, ``nearest`` or ``keyframes``, see ``pyav``.

        The walk ends early if a seek landed after the next target's frame.

        Raises:
            SeekError: a seek failed.
        """
        self._decoder.skip_frame = _SKIP_FRAME[rule]
        is_counting = rule == "exact" and not self.has_sought
        current: Any = None
        index, done = -1, 0
        while done < len(targets):
            frame = next(self._frames, None)
            if frame is None:
                break
            if current is None and self._is_late(frame.pts, targets[done]):
                return
            while current is not None and done < len(targets) and frame.pts > targets[done]:
                target, floor = targets[done], current.pts
                if rule == "nearest" and frame.pts - target < target - floor:
                    yield frame, FrameChoice(pts=frame.pts, floor=floor, index=None)
                else:
                    known = index if is_counting else None
                    yield current, FrameChoice(pts=floor, floor=floor, index=known)
                done += 1
            current, index = frame, index + 1
            if done < len(targets) and self._jump(frame.pts, targets[done], rule):
                is_counting = False
                if rule != "keyframes":
                    current = None
        self.at_end = done < len(targets)
        if current is None or not self.at_end:
            return
        if rule == "exact":
            self.end = PacketTime(current.pts, current.duration or 0, False)
        for _ in targets[done:]:
            known = index if is_counting else None
            yield current, FrameChoice(pts=current.pts, floor=current.pts, index=known)

    def seek_before(self, ticks: int, begin: int | None = None) -> None:
        """Seek to the key frame ``lead_seconds`` before a time, unless that is before ``begin``."""
        if self._lead is not None and (begin is None or ticks - self._lead > begin):
            self._jumped_to = -(1 << 62)
            self._seek(ticks - self._lead)

    def _is_late(self, pts: int, target: int) -> bool:
        """Whether a seek landed after the frame on display at ``target``.

        Frames displayed before the key frame do not count: their reference frames may be missing.
        """
        first = pts if self._first_key is None else max(pts, self._first_key)
        return self.has_sought and first > target

    def _jump(self, pts: int, target: int, rule: str) -> bool:
        """Seek ahead if the frames up to a later key frame are not needed."""
        if self._lead is None:
            return False
        entries, min_ticks = self._stream.index_entries, pts + self._min_jump
        at, aim = entries.search_timestamp(target - self._lead), target - self._lead
        if rule == "keyframes":
            following = entries.search_timestamp(min_ticks, backward=False)
            if following > at:
                # The index has DTS, but FFmpeg seeks in MP4 by PTS: add the first frame's delay.
                delay = max((self._stream.start_time or 0) - entries[0].timestamp, 0)
                at, aim = following, entries[following].timestamp + delay
        if at < 0 or entries[at].timestamp <= max(min_ticks, self._jumped_to):
            return False
        self._jumped_to = entries[at].timestamp
        self._seek(aim)
        return True

    def _seek(self, ticks: int) -> None:
        seek(self._container, self._stream, ticks)
        if self._decoder is not self._stream.codec_context:
            self._decoder.flush_buffers()
        self._frames, self._first_key, self.has_sought = self._decode(), None, True

    def _decode(self) -> Generator[Any]:
        yield from decoded_frames(self._container, self._decoder, self._packets())

    def _packets(self) -> Iterator[Any]:
        for packet in video_packets(self._container, self._stream):
            if packet.pts is not None and packet.size and not packet.is_discard:
                if self._first_key is None and packet.is_keyframe:
                    self._first_key = packet.pts
                if self.end is None or packet.pts > self.end.pts:
                    self.end = PacketTime(packet.pts, packet.duration or 0, False)
            yield packet
