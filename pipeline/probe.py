"""Read the header facts of a media item, by range requests: a few blocks, never the whole file.

Images by Pillow, videos by PyAV. The first frame of a video is decoded too: it tells the true
size, rotation and first PTS, and that the video can be decoded at all.
"""

from fractions import Fraction
from itertools import pairwise
from typing import Any

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from pipeline.container import (
    alpha_decoder,
    displayed,
    header_end_seconds,
    packet_times,
    quarter_turn,
    to_ticks,
    unreadable,
)
from pipeline.images import open_image, upright_size
from pipeline.storage import MediaFile
from schemas.errors import ErrorType, UnitError
from schemas.unit import Media

MAX_FRAME_PIXELS = 1 << 26
"""Largest video frame that is decoded: 8192 x 8192."""

_MAX_REORDER = 16
"""Frames that H.264 and H.265 may hold back for reordering, at most."""


def probe_image(media: MediaFile) -> Media:
    """Read an image's header.

    Raises:
        UnitError: not an image, broken, or more than MAX_IMAGE_PIXELS.
    """
    image = open_image(media)
    try:
        width, height, rotation = upright_size(image)
    except Exception as error:  # hostile EXIF: Pillow's reader raises many exceptions
        raise UnitError(ErrorType.MEDIA_UNREADABLE, f"broken image header: {error}") from error
    return Media(
        media_type="image",
        content_version=media.content_version,
        size_bytes=media.size_bytes,
        container=(image.format or "").lower() or None,
        pixel_format=image.mode,
        has_alpha=image.has_transparency_data,
        width=width,
        height=height,
        rotation=rotation,
    )


class VideoProbe:
    """A video open for probing: its facts, and exact frame times where a plan needs them."""

    def __init__(self, media: MediaFile, container: InputContainer, stream: VideoStream) -> None:
        self._container = container
        self._stream = stream
        with unreadable("the first frame cannot be decoded"):
            frame = self._first_frame()
        if frame.pts is None or stream.time_base is None:
            raise UnitError(ErrorType.MEDIA_UNSUPPORTED, "the frames carry no timestamps")
        self._time_base: Fraction = stream.time_base
        self._begin_ticks: int = frame.pts
        self._cadence = self._index_cadence()
        self._known: list[int] = []
        self._known_until = self._begin_ticks - 1
        turn = quarter_turn(frame)
        turned = turn in (90, 270)
        if frame.width * frame.height > MAX_FRAME_PIXELS:
            raise UnitError(
                ErrorType.MEDIA_TOO_LARGE,
                f"frames of {frame.width}x{frame.height} are over {MAX_FRAME_PIXELS} pixels",
            )
        rate = stream.average_rate or stream.guessed_rate
        self.media = Media(
            media_type="video",
            content_version=media.content_version,
            size_bytes=media.size_bytes,
            container=container.format.name,
            codec=stream.codec_context.name,
            pixel_format=frame.format.name,
            has_alpha=bool(
                frame.format.name.startswith("pal8")
                or any(component.is_alpha for component in frame.format.components)
            ),
            width=frame.height if turned else frame.width,
            height=frame.width if turned else frame.height,
            rotation=-turn % 360,
            begin_seconds=float(self._begin_ticks * self._time_base),
            duration_seconds=self._duration(),
            average_fps=float(rate) if rate else None,
            num_frames=stream.frames or None,
            is_vfr=self._is_vfr(),
        )

        count, fps = self.media.num_frames, self.media.average_fps
        seconds = self.media.duration_seconds or 0.0
        # An AVI file's duration is that of what is there, its number of frames what was promised.
        if container.format.name == "avi" and count and fps and count / fps - seconds > 1.0:
            raise UnitError(
                ErrorType.MEDIA_UNREADABLE,
                f"the file is cut short: its header promises {count} frames, {count / fps:.3f} s, "
                f"and there are {seconds:.3f} s",
            )

    def _first_frame(self) -> av.VideoFrame:
        decoder = alpha_decoder(self._stream)
        decoder.thread_count = 1  # frame threads would read ahead
        for packet in self._container.demux(self._stream):
            frames: list[Any] = decoder.decode(packet)
            if frames:
                return frames[0]  # type: ignore[no-any-return]
        raise UnitError(ErrorType.MEDIA_UNREADABLE, "the video stream holds no frame")

    def _index_cadence(self) -> int | None:
        """Ticks from frame to frame, if the container's index covers every frame evenly."""
        entries = self._stream.index_entries
        if self._stream.frames < 2 or len(entries) != self._stream.frames:
            return None
        steps = {later.timestamp - earlier.timestamp for earlier, later in pairwise(entries)}
        return steps.pop() if len(steps) == 1 and min(steps) > 0 else None

    def _is_vfr(self) -> bool | None:
        if self._cadence is not None:
            return False
        if self._stream.frames > 1 and len(self._stream.index_entries) == self._stream.frames:
            return True
        average, base = self._stream.average_rate, self._stream.base_rate
        # Without an index, two different rates tell; equal ones do not.
        return True if average and base and abs(average / base - 1) > 0.01 else None

    def _duration(self) -> float:
        end, _ = header_end_seconds(self._container, self._stream)
        begin = float(self._begin_ticks * self._time_base)
        if end is not None and end > begin:
            return end - begin
        # No duration in the header (a live recording, say): only the packets tell.
        self._seek(0)
        times, _ = packet_times(self._container, self._stream)
        if not times:
            raise UnitError(ErrorType.MEDIA_UNREADABLE, "the video stream holds no frame")
        rate = self._stream.average_rate or self._stream.guessed_rate
        last = times[-1][1] or (int(1 / rate / self._time_base) if rate else 0)
        return float((times[-1][0] + max(last, 1) - self._begin_ticks) * self._time_base)

    def _seek(self, ticks: int) -> None:
        with unreadable("seeking"):
            self._container.seek(ticks, stream=self._stream, backward=True)

    def displayed_pts(self, seconds: float) -> float:
        """PTS in seconds of the frame on display at ``seconds``: exact, whatever the frame rate.

        With an even index this is arithmetic. Else the packets around that time are read, from
        the key frame before it (nothing is decoded).
        """
        ticks = max(to_ticks(seconds, self._time_base), self._begin_ticks)
        if self._cadence is not None:
            index = min((ticks - self._begin_ticks) // self._cadence, self._stream.frames - 1)
            return float((self._begin_ticks + index * self._cadence) * self._time_base)
        if not self._known or not self._known[0] <= ticks <= self._known_until:
            self._read_around(ticks)
        return float(self._known[displayed(self._known, ticks)] * self._time_base)

    def _read_around(self, ticks: int) -> None:
        second = int(1 / self._time_base)
        for start in (ticks, ticks - 10 * second, self._begin_ticks - 10 * second):
            self._seek(start)
            times, ended = packet_times(self._container, self._stream, ticks + 2 * second)
            pts = [time[0] for time in times]
            # Complete from a key frame on; after any other packet (MPEG-TS), once no frame before
            # it can still be reordered behind it.
            from_key = bool(times) and times[0][2] and pts[0] <= ticks
            if from_key or (times and displayed(pts, ticks) >= _MAX_REORDER):
                break
        if not times:
            at = float(ticks * self._time_base)
            raise UnitError(ErrorType.MEDIA_UNREADABLE, f"no packets near {at:.3f} s")
        self._known = pts
        self._known_until = (1 << 62) if ended else ticks + second
