"""Open video containers with PyAV: stream, packet times, errors. Shared by probe and decoders.

Inside this room times are integer ticks of the stream's time base; results have PTS in seconds, as
ffprobe prints them.
"""

import contextlib
import errno
import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from typing import Any, BinaryIO, NamedTuple

import av
from av.codec.codec import UnknownCodecError
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from pipeline.media.colour import known_matrix
from pipeline.storage.media_file import MediaFile
from schemas.errors import ErrorType, UnitError

_SAME_END_SECONDS = 0.5
_MAX_STEP_BACK_SECONDS = 1.0
_MAX_STEP_AHEAD_SECONDS = 12 * 3600.0
"""FFmpeg takes an MPEG clock that goes back for one that has passed its end, after 26.5 hours."""

av.logging.set_level(av.logging.PANIC)  # a broken file is a row in the output, not a line on stderr


class PacketTime(NamedTuple):
    """Times of one packet, in ticks."""

    pts: int
    duration: int
    is_keyframe: bool


class _UnnamedFile:
    """A file without its name: FFmpeg would guess the container from the extension."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.read = file.read
        self.tell = file.tell

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Seek as FFmpeg's own protocols do: a place before the file is an error code."""
        try:
            return self._file.seek(offset, whence)
        except ValueError:
            return -errno.EINVAL
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return -errno.EINVAL


@contextmanager
def open_video(media: MediaFile) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a container and its first video stream that is not cover art.

    Raises:
        UnitError: FFmpeg does not know the container, it is broken, or it has no video stream, or
            one that FFmpeg has no decoder for.
    """
    with ffmpeg_errors("the container cannot be opened"):
        media.file.seek(0)
        container = av.open(
            _UnnamedFile(media.file),
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
        if (context := streams[0].codec_context) is None or context.codec is None:
            raise UnitError(
                ErrorType.MEDIA_UNSUPPORTED,
                "FFmpeg has no decoder for the codec of the video stream; transcode it, for "
                "instance to H.264",
            )
        yield container, streams[0]
    finally:
        container.close()


@contextmanager
def ffmpeg_errors(problem: str) -> Iterator[None]:
    """Turn FFmpeg's errors into a UnitError: ``problem``, then FFmpeg's reason."""
    try:
        yield
    except (av.error.FFmpegError, EOFError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        is_unknown = isinstance(error, av.error.DecoderNotFoundError | UnknownCodecError)
        kind = ErrorType.MEDIA_UNSUPPORTED if is_unknown else ErrorType.MEDIA_UNREADABLE
        raise UnitError(kind, f"{problem}: {reason}") from error


class SeekError(Exception):
    """A seek failed. The container is to be opened again, and read from its start."""


def seek(container: InputContainer, stream: VideoStream, ticks: int) -> None:
    """Seek to the last key frame at or before a time.

    Raises:
        SeekError: FFmpeg cannot seek there, as in a live recording without an index.
    """
    try:
        container.seek(ticks, stream=stream, backward=True)
    except (av.error.FFmpegError, ValueError) as error:
        raise SeekError(str(error)) from error


def video_decoder(stream: VideoStream) -> Any:
    """Return the codec context that decodes ``stream`` with its transparency.

    FFmpeg's own VP8 and VP9 decoders ignore WebM's alpha plane; libvpx decodes it.
    """
    name = {"vp9": "libvpx-vp9", "vp8": "libvpx"}.get(stream.codec_context.name)
    if name is None or stream.metadata.get("alpha_mode") != "1":
        return stream.codec_context
    context = av.codec.CodecContext.create(name, "r")
    context.extradata = stream.codec_context.extradata
    return context


def header_end_seconds(container: InputContainer, stream: VideoStream) -> tuple[float | None, bool]:
    """Return the end of the video (PTS) by the header, and whether to rely on it.

    Not relied on: the end of a container with other streams, such as a longer sound track;
    Matroska's tag of the track's end if the file has another one, since tools copy old tags; what
    FFmpeg finds near the end of an MPEG stream, which has no header.
    """
    begin = stream.start_time or 0
    whole = None
    if container.duration and container.duration > 0:
        whole = (max(container.start_time or 0, 0) + container.duration) / av.time_base
    if "matroska" in container.format.name:
        tag = _matroska_end_seconds(stream.metadata)
        if tag is not None and whole is not None:
            return tag, abs(tag - whole) < _SAME_END_SECONDS
        return tag or whole, False
    is_mpeg = container.format.name in ("mpegts", "mpeg")
    if stream.duration and stream.time_base:
        return float((begin + stream.duration) * stream.time_base), not is_mpeg
    return whole, len(container.streams) == 1 and not is_mpeg


def _matroska_end_seconds(tags: Mapping[str, str]) -> float | None:
    """Read the end of the last frame, h:mm:ss.nnnnnnnnn, from ``DURATION`` or a tag of a language.

    FFmpeg writes a new ``DURATION`` and copies the others.
    """
    names = [name for name in sorted(tags, key=len) if name.upper().startswith("DURATION")]
    with contextlib.suppress(ValueError, IndexError):
        hours, minutes, seconds = tags[names[0]].split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    return None


def video_packets(container: InputContainer, stream: VideoStream) -> Iterator[Any]:
    """Read a stream's packets from the container's current position, in the file's order.

    Packets that repeat a frame, as in AVI and Theora, are left out: decoders would take them for
    the end of the stream.

    Raises:
        UnitError: the stream's clock starts again.
    """
    second = 1 / (stream.time_base or Fraction(1))
    latest: int | None = None
    for packet in container.demux(stream):
        if packet.dts is None:
            yield packet  # the last one, which has no bytes, empties the decoder
        elif packet.size:
            if latest is not None and not (
                -_MAX_STEP_BACK_SECONDS * second
                < packet.dts - latest
                < _MAX_STEP_AHEAD_SECONDS * second
            ):
                raise clock_restart(float(latest / second))
            latest = packet.dts
            yield packet


def decoded_frames(
    container: InputContainer, decoder: Any, packets: Iterable[Any]
) -> Iterator[VideoFrame]:
    """Decode packets; yields the frames that have a time, in presentation order.

    AVI has no PTS. Its frames get the times that ffprobe prints: the DTS of the packet with which
    the decoder returned the frame; the last ones follow tick by tick.

    Raises:
        UnitError: the colours cannot be converted.
    """
    latest: int | None = None
    for packet in packets:
        for frame in decoder.decode(packet):
            if container.format.name == "avi":
                following = None if latest is None else latest + 1
                frame.pts = latest = following if frame.dts is None else frame.dts
            if frame.pts is not None:
                frame.colorspace = known_matrix(frame)
                yield frame


def clock_restart(seconds: float) -> UnitError:
    """The error for a video that was joined from parts with clocks of their own."""
    return UnitError(
        ErrorType.MEDIA_UNSUPPORTED,
        f"the video's clock starts again after {seconds:.3f} s, as where recordings were joined; "
        "`ffmpeg -fflags +genpts -i FILE -c copy NEW.mkv` gives it one clock",
    )


def to_ticks(seconds: float, time_base: Fraction) -> int:
    """Last tick at or before ``seconds``; tolerates a float error of 1/1000 tick."""
    return int((Fraction(seconds) / time_base + Fraction(1, 1000)) // 1)


def packet_times(
    container: InputContainer, stream: VideoStream, stop_ticks: int | None = None
) -> tuple[list[PacketTime], bool]:
    """Read packets from the container's current position, without decoding.

    Returns the times of all packets up to the first whose DTS is after ``stop_ticks``, in
    presentation order, and whether the end of the file was reached.

    Raises:
        UnitError: the packets have no timestamps, or the clock starts again.
    """
    times: list[PacketTime] = []
    is_end = True
    with ffmpeg_errors("reading packets failed"):
        for packet in video_packets(container, stream):
            if packet.size == 0 or packet.is_discard:
                continue
            has_pts = packet.pts is not None and container.format.name != "avi"
            pts = packet.pts if has_pts else packet.dts
            if pts is None:
                raise UnitError(ErrorType.MEDIA_UNSUPPORTED, "the packets have no timestamps")
            times.append(PacketTime(pts, packet.duration or 0, packet.is_keyframe))
            if stop_ticks is not None and packet.dts is not None and packet.dts > stop_ticks:
                is_end = False
                break
    return sorted(times), is_end


def displayed_index(pts: list[int], ticks: int) -> int:
    """Index into ascending ``pts`` of the frame on display at ``ticks``; 0 before the first."""
    return max(bisect_right(pts, ticks) - 1, 0)
