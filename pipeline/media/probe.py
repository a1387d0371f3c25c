"""Read the header facts of a media item by range requests: a few blocks, never the whole file.

Pillow reads images, PyAV videos. The first frame of a video is decoded too: it gives the true size,
rotation and first PTS, and shows that the video can be decoded.
"""

from fractions import Fraction
from itertools import pairwise

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from pipeline.images.orientation import frame_orientation
from pipeline.images.read_image import open_image
from pipeline.media.colour import matrix_notes
from pipeline.media.container import (
    PacketTime,
    SeekError,
    clock_restart,
    decoded_frames,
    displayed_index,
    ffmpeg_errors,
    header_end_seconds,
    packet_times,
    seek,
    to_ticks,
    video_decoder,
    video_packets,
)
from pipeline.media.missing_bytes import missing_bytes
from pipeline.storage.media_file import MediaFile
from schemas.errors import ErrorType, UnitError
from schemas.tables.media import Media

MAX_FRAME_PIXELS = 1 << 26
"""Largest video frame that is decoded: 8192 x 8192."""

_MIN_BYTES_PER_SECOND = 500
"""Of a video whose header is believed. A length that the bytes can hardly hold is checked."""

_MAX_SECONDS_PER_BYTE = 100
"""Of the length of a video. Even one frame an hour that repeats the last one takes more bytes."""

_CLOCK_CHECKS = 8
"""Number of places in an MPEG stream at which its clock is read."""

_MAX_REORDER = 16
"""H.264 and H.265 hold back at most this many frames for reordering."""


def probe_image(media: MediaFile) -> Media:
    """Read an image's header.

    Raises:
        UnitError: as ``open_image``.
    """
    opened = open_image(media)
    image, (width, height) = opened.image, opened.size
    return Media(
        media_type="image",
        content_version=media.content_version,
        size_bytes=media.size_bytes,
        container=(image.format or "").lower() or None,
        pixel_format=image.mode,
        has_alpha=image.has_transparency_data,
        width=width,
        height=height,
        rotation=opened.orientation.rotation,
        is_mirrored=opened.orientation.is_mirrored,
        notes=opened.notes,
    )


class VideoProbe:
    """An open video: its header facts, ``media``, and exact frame times where a plan needs them.

    Raises:
        UnitError: no frame can be decoded, the frames are too large or have no timestamps, or the
            file is cut short.
    """

    def __init__(self, media: MediaFile, container: InputContainer, stream: VideoStream) -> None:
        self._file = media
        self._container = container
        self._stream = stream
        with ffmpeg_errors("the first frame cannot be decoded"):
            frame = self._first_frame()
        if frame.pts is None or stream.time_base is None:
            raise UnitError(ErrorType.MEDIA_UNSUPPORTED, "the frames have no timestamps")
        self._time_base: Fraction = stream.time_base
        self._begin_ticks: int = frame.pts
        self._frame_ticks = self._constant_frame_ticks()
        self._read_pts: list[int] = []
        self._read_until = self._begin_ticks - 1
        orientation = frame_orientation(frame)
        width, height = orientation.upright_size(frame.width, frame.height)
        if frame.width * frame.height > MAX_FRAME_PIXELS:
            raise UnitError(
                ErrorType.MEDIA_TOO_LARGE,
                f"frames of {frame.width}x{frame.height} are over the limit of {MAX_FRAME_PIXELS} "
                "pixels",
            )
        self._is_mpeg = container.format.name in ("mpegts", "mpeg")
        if self._is_mpeg:
            self._check_clock()
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
            width=width,
            height=height,
            rotation=orientation.rotation,
            is_mirrored=orientation.is_mirrored,
            begin_seconds=float(self._begin_ticks * self._time_base),
            duration_seconds=self._duration(),
            average_fps=self._average_fps(),
            num_frames=stream.frames or None,
            is_vfr=self._is_vfr(),
            notes=matrix_notes(stream.codec_context),
        )

    def _first_frame(self) -> av.VideoFrame:
        decoder = video_decoder(self._stream)
        decoder.thread_count = 1  # frame threads would read ahead
        packets = video_packets(self._container, self._stream)
        for frame in decoded_frames(self._container, decoder, packets):
            return frame
        raise UnitError(ErrorType.MEDIA_UNREADABLE, "the video stream has no frames with a time")

    def _constant_frame_ticks(self) -> int | None:
        """Ticks from frame to frame, if the container's index shows a constant rate."""
        entries = self._stream.index_entries
        if self._stream.frames < 2 or len(entries) != self._stream.frames:
            return None
        steps = {later.timestamp - earlier.timestamp for earlier, later in pairwise(entries)}
        return steps.pop() if len(steps) == 1 and min(steps) > 0 else None

    def _is_vfr(self) -> bool | None:
        if self._frame_ticks is not None:
            return False
        if self._stream.frames > 1 and len(self._stream.index_entries) == self._stream.frames:
            return True
        average, base = self._stream.average_rate, self._stream.base_rate
        # Without an index, different rates mean a variable one; equal rates prove nothing.
        return True if average and base and abs(average / base - 1) > 0.01 else None

    def _average_fps(self) -> float | None:
        rate = self._stream.average_rate or self._stream.guessed_rate
        if rate and self._is_mpeg and 1 / rate == self._time_base:
            return None  # FFmpeg takes the clock of a slow stream for its rate
        return float(rate) if rate else None

    def _check_clock(self) -> None:
        """Check at some places of an MPEG stream that its clock does not start again.

        Raises:
            UnitError: it does.
        """
        second, size_bytes = 1 / self._time_base, self._file.size_bytes
        max_seconds = max(60, size_bytes / _CLOCK_CHECKS / _MIN_BYTES_PER_SECOND)
        latest: int | None = None
        for k in range(_CLOCK_CHECKS):
            place = size_bytes * k // _CLOCK_CHECKS
            try:
                self._container.seek(place, unsupported_byte_offset=True)
                packets = video_packets(self._container, self._stream)
                ticks = next((packet.dts for packet in packets if packet.dts is not None), None)
            except (av.error.FFmpegError, ValueError):
                continue
            if ticks is None:
                continue
            if latest is not None and not -second < ticks - latest < max_seconds * second:
                raise clock_restart(float(latest * self._time_base))
            latest = ticks

    def _duration(self) -> float:
        """Seconds from the first frame to the end of the last one.

        If the header is not to be relied on, the packets near the end are read.

        Raises:
            UnitError: the file has too few bytes for that length.
        """
        seconds, size_bytes = self._claimed_duration(), self._file.size_bytes
        if seconds > size_bytes * _MAX_SECONDS_PER_BYTE:
            raise UnitError(
                ErrorType.MEDIA_UNREADABLE,
                f"the file claims {seconds:,.0f} s of video, which its {size_bytes:,} bytes cannot "
                "hold",
            )
        return seconds

    def _claimed_duration(self) -> float:
        end, is_certain = header_end_seconds(self._container, self._stream)
        begin = float(self._begin_ticks * self._time_base)
        seconds = 0.0 if end is None else end - begin
        if self._container.format.name == "avi" and self._stream.duration:
            # Its end is by DTS, which is earlier than the times of its frames.
            ticks = self._stream.duration
            if self._stream.frames > ticks and self._missing_bytes():
                ticks = self._stream.frames
            seconds = float(ticks * self._time_base)
        if is_certain and seconds > 0 and self._file.size_bytes / seconds > _MIN_BYTES_PER_SECOND:
            return seconds
        last_end = self._last_end_seconds(end)
        if last_end < begin + seconds - 1.0 and self._missing_bytes():
            return seconds  # so that what is missing becomes rows with an error
        return last_end - begin

    def _missing_bytes(self) -> int:
        return missing_bytes(self._file.file, self._file.size_bytes, self._container, self._stream)

    def _last_end_seconds(self, header_end: float | None) -> float:
        """End (PTS) of the last frame, by the last packets, or by all if they are not found."""
        fps = self._average_fps()
        # FFmpeg seeks by DTS: the frame of the latest PTS may be before the last packet.
        lead_seconds = max(1.0, _MAX_REORDER / fps) if fps else 30.0
        times: list[PacketTime] = []
        for start in (None if header_end is None else header_end - lead_seconds, 0.0):
            if start is not None and not times:
                self._seek(to_ticks(start, self._time_base))
                times, _ = packet_times(self._container, self._stream)
        if not times:
            raise UnitError(ErrorType.MEDIA_UNREADABLE, "the video stream has no frames")
        last = times[-1]
        if last.duration > 1:
            duration = last.duration
        elif len(times) > 1:
            duration = last.pts - times[-2].pts
        else:
            duration = int(1 / (fps * self._time_base)) if fps else 0
        return float((last.pts + max(duration, 1)) * self._time_base)

    def _seek(self, ticks: int) -> None:
        """Seek to the key frame at or before a time; to the start of the file if that fails."""
        try:
            seek(self._container, self._stream, ticks)
        except SeekError:
            with ffmpeg_errors("seeking failed"):
                self._container.seek(0, unsupported_byte_offset=True)

    def displayed_pts(self, seconds: float) -> float:
        """PTS in seconds of the frame on display at ``seconds``; exact for any frame rate.

        Cost: arithmetic if the container has an index with a constant rate. Otherwise the packets
        around that time are read, from the key frame before it; nothing is decoded.

        Raises:
            UnitError: the packets cannot be read.
        """
        ticks = max(to_ticks(seconds, self._time_base), self._begin_ticks)
        if self._frame_ticks is not None:
            index = min((ticks - self._begin_ticks) // self._frame_ticks, self._stream.frames - 1)
            return float((self._begin_ticks + index * self._frame_ticks) * self._time_base)
        if not self._read_pts or not self._read_pts[0] <= ticks <= self._read_until:
            self._read_around(ticks)
        return float(self._read_pts[displayed_index(self._read_pts, ticks)] * self._time_base)

    def _read_around(self, ticks: int) -> None:
        second = int(1 / self._time_base)
        for start in (ticks, ticks - 10 * second, self._begin_ticks - 10 * second):
            self._seek(start)
            times, is_end = packet_times(self._container, self._stream, ticks + 2 * second)
            pts = [time.pts for time in times]
            # The frames are complete from a key frame on. After any other packet (MPEG-TS) they are
            # complete once no earlier frame can still be reordered behind it.
            from_key = bool(times) and times[0].is_keyframe and pts[0] <= ticks
            if from_key or (times and displayed_index(pts, ticks) >= _MAX_REORDER):
                break
        if not times:
            at = float(ticks * self._time_base)
            raise UnitError(ErrorType.MEDIA_UNREADABLE, f"no packets near {at:.3f} s")
        self._read_pts = pts
        self._read_until = (1 << 62) if is_end else ticks + second
