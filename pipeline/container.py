"""Video containers, opened with PyAV: stream, times, errors. Shared by probe and decode.

Times are kept as integer ticks of the stream's time base until they leave; ``seconds`` are PTS as
ffprobe prints them.
"""

import contextlib
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any, BinaryIO

import av
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from pipeline.storage import MediaFile
from schemas.errors import ErrorType, UnitError

av.logging.set_level(av.logging.PANIC)  # a broken file is a row in the output, not a line on stderr


class _Nameless:
    """A file without its name, by whose extension FFmpeg would guess the container."""

    def __init__(self, file: BinaryIO) -> None:
        self.read = file.read
        self.seek = file.seek
        self.tell = file.tell


@contextmanager
def open_video(media: MediaFile) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open the first real video stream (not cover art) of a container.

    Raises:
        UnitError: not a container FFmpeg knows, broken, or without a video stream.
    """
    with unreadable("the container cannot be opened"):
        media.file.seek(0)
        container = av.open(
            _Nameless(media.file),
            mode="r",
            metadata_errors="replace",
            # A playlist must not make FFmpeg open other files, or addresses inside the cluster.
            options={"protocol_whitelist": ""},
        )
    try:
        pictures = av.stream.Disposition.attached_pic
        streams = [s for s in container.streams.video if not s.disposition & pictures]
        if not streams:
            raise UnitError(ErrorType.MEDIA_UNSUPPORTED, "the file has no video stream")
        yield container, streams[0]
    finally:
        container.close()


@contextmanager
def unreadable(doing: str) -> Iterator[None]:
    """Turn FFmpeg's errors into a UnitError that says what was being done."""
    try:
        yield
    except (av.error.FFmpegError, EOFError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UnitError(ErrorType.MEDIA_UNREADABLE, f"{doing}: {reason}") from error


def alpha_decoder(stream: VideoStream) -> Any:
    """Return the decoder to use for ``stream``.

    FFmpeg's own VP8 and VP9 decoders ignore the alpha plane, which WebM keeps beside the picture;
    libvpx decodes it.
    """
    name = {"vp9": "libvpx-vp9", "vp8": "libvpx"}.get(stream.codec_context.name)
    if name is None or stream.metadata.get("alpha_mode") != "1":
        return stream.codec_context
    context = av.codec.CodecContext.create(name, "r")
    context.extradata = stream.codec_context.extradata
    return context


def header_end_seconds(container: InputContainer, stream: VideoStream) -> tuple[float | None, bool]:
    """Where the header says that the video stream ends (PTS), and whether it speaks of this stream.

    A container-wide duration may be that of a longer audio track.
    """
    begin = stream.start_time or 0
    if stream.duration and stream.time_base:
        return float((begin + stream.duration) * stream.time_base), True
    tag = next((v for k, v in stream.metadata.items() if k.upper().startswith("DURATION")), None)
    if tag:  # Matroska: the end of the last frame, as h:mm:ss.nnnnnnnnn
        with contextlib.suppress(ValueError):
            hours, minutes, seconds = tag.split(":")
            return int(hours) * 3600 + int(minutes) * 60 + float(seconds), True
    if container.duration and container.duration > 0:
        end = (max(container.start_time or 0, 0) + container.duration) / av.time_base
        return end, len(container.streams) == 1
    return None, False


def quarter_turn(frame: VideoFrame) -> int:
    """Counter-clockwise degrees (0, 90, 180, 270) that a frame's display matrix asks for.

    Other angles are not turned: a matrix that is none comes of broken headers.
    """
    return int(frame.rotation % 360) if frame.rotation % 90 == 0 else 0


def to_ticks(seconds: float, time_base: Fraction) -> int:
    """The last tick not after ``seconds``; a thousandth of a tick is forgiven for float noise."""
    return int((Fraction(seconds) / time_base + Fraction(1, 1000)) // 1)


def packet_times(
    container: InputContainer, stream: VideoStream, stop_ticks: int | None = None
) -> tuple[list[tuple[int, int, bool]], bool]:
    """Read packets from where the container stands, without decoding.

    Returns (pts, duration, is_keyframe) in ticks, in presentation order, of all packets up to the
    first whose DTS is past ``stop_ticks``, and whether the end was reached.

    Raises:
        UnitError: the packets carry no times.
    """
    times: list[tuple[int, int, bool]] = []
    ended = True
    with unreadable("reading packets"):
        for packet in container.demux(stream):
            if packet.size == 0 or packet.is_discard:
                continue
            pts = packet.pts if packet.pts is not None else packet.dts
            if pts is None:
                raise UnitError(ErrorType.MEDIA_UNSUPPORTED, "the packets carry no timestamps")
            times.append((pts, packet.duration or 0, packet.is_keyframe))
            if stop_ticks is not None and packet.dts is not None and packet.dts > stop_ticks:
                ended = False
                break
    return sorted(times), ended


def displayed(pts: list[int], ticks: int) -> int:
    """Index into ascending ``pts`` of the frame on display at ``ticks``; 0 if none is yet."""
    return max(bisect_right(pts, ticks) - 1, 0)
