"""Encode frames as a video file with PyAV: codec, container, frame times, rotation, audio."""

import contextlib
import os
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.video.reformatter import Interpolation
from av.video.stream import VideoStream
from numpy.typing import NDArray
from PIL import Image

# Chosen so that the same frames give the same bytes on every machine. By default swscale rounds
# differently on different CPUs; the output of x264 and x265 depends on the number of threads, and
# x264's AVX-512 code gave different bytes in one of about 30 clips.
EXACT_SCALING = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
NUM_THREADS = 1
# Chosen for speed: every test session renders the archive.
FAST_OPTIONS: dict[str, dict[str, str]] = {
    "libx264": {"preset": "veryfast", "crf": "23", "x264-params": "asm=sse4.2"},
    "libx265": {
        "preset": "ultrafast",
        "crf": "26",
        "x265-params": "frame-threads=1:pools=none:log-level=error",
    },
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "crf": "32", "b": "0"},
    # Above preset 10, no decoder could read some 5 % of its small clips.
    "libsvtav1": {"preset": "10", "crf": "35"},
}


@dataclass(frozen=True, kw_only=True)
class ClipSpec:
    """How a clip is encoded.

    codec: an FFmpeg encoder; ``codec_options`` add to, or replace, its ``FAST_OPTIONS``.
    fps: the constant frame rate; with ``pts_seconds`` only a hint for rate control, and the rate
        that the header of a Matroska file claims, as real ones do.
    pts_seconds: one rising time per frame, for a variable frame rate.
    start_seconds: added to every time: the first PTS of the file.
    last_frame_seconds: duration of the last frame; default: that of the frame before.
    container_format: FFmpeg's name, if the file's suffix does not name the format.
    rotation: clockwise degrees by which a player turns the picture; MP4 and MOV only.
    audio_seconds: length of a sine tone, which may be longer than the video; 0: no audio track.

    Raises:
        ValueError: the rotation is none of 0, 90, 180 and 270.
    """

    codec: str = "libx264"
    fps: Fraction | int = 10
    pts_seconds: Sequence[float] | None = None
    start_seconds: float = 0.0
    last_frame_seconds: float | None = None
    pix_fmt: str = "yuv420p"
    gop_size: int = 24
    max_b_frames: int = 0
    codec_options: Mapping[str, str] = field(default_factory=dict)
    container_format: str | None = None
    container_options: Mapping[str, str] = field(default_factory=dict)
    rotation: int = 0
    audio_seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.rotation not in (0, 90, 180, 270):
            raise ValueError(f"rotation is {self.rotation}, not 0, 90, 180 or 270 degrees")

    @property
    def time_base(self) -> Fraction:
        """The encoder's tick: one that holds ``fps`` exactly, else 1/90000.

        The container may round further: Matroska stores milliseconds.
        """
        is_constant = self.pts_seconds is None and self.start_seconds == 0.0
        return Fraction(1, Fraction(self.fps).numerator if is_constant else 90000)

    def tick(self, n: int) -> int:
        """The PTS of frame ``n``, in ``time_base``."""
        seconds = n / Fraction(self.fps)
        if self.pts_seconds is not None:
            seconds = Fraction(self.pts_seconds[n])
        return round((seconds + Fraction(self.start_seconds)) / self.time_base)


def encode_clip(
    path: Path,
    frames: Iterable[Image.Image | NDArray[np.uint8]],
    spec: ClipSpec | None = None,
) -> None:
    """Encode ``frames`` into ``path``.

    frames: RGB or RGBA images, or uint8 [H, W, 3 or 4]; all of one size.

    Raises:
        ValueError: a rotation in a container other than MP4 and MOV.
    """
    spec = spec or ClipSpec()
    if spec.rotation and path.suffix not in (".mp4", ".mov"):
        raise ValueError(f"cannot rotate {path.name}: only MP4 and MOV store a rotation")
    if spec.codec == "libsvtav1":
        # Else it prints a banner, which FFmpeg's log level does not stop.
        os.environ.setdefault("SVT_LOG", "1")

    # Bit exact: Matroska would draw random ids, and the same frames would give other bytes.
    muxer_options = {"fflags": "+bitexact", **spec.container_options}
    with av.open(
        str(path), "w", format=spec.container_format, container_options=muxer_options
    ) as container:
        video = _add_video(container, spec)
        audio = None
        if spec.audio_seconds:
            name = "libopus" if path.suffix == ".webm" else "aac"
            audio = cast(AudioStream, container.add_stream(name, rate=48000, layout="mono"))
        packets = _encode_frames(video, frames, spec)
        if audio is not None:
            packets += _encode_tone(audio, spec.audio_seconds)
        for packet in sorted(packets, key=lambda p: (p.dts or 0) * p.time_base):
            container.mux(packet)
    if spec.rotation:
        _set_rotation(path, spec.rotation)


def _add_video(container: OutputContainer, spec: ClipSpec) -> VideoStream:
    video = cast(VideoStream, container.add_stream(spec.codec, rate=Fraction(spec.fps)))
    video.pix_fmt = spec.pix_fmt
    video.codec_context.time_base = spec.time_base
    video.codec_context.thread_count = NUM_THREADS
    video.codec_context.gop_size = spec.gop_size
    video.codec_context.max_b_frames = spec.max_b_frames
    video.codec_context.options = FAST_OPTIONS.get(spec.codec, {}) | dict(spec.codec_options)
    return video


def _encode_frames(
    video: VideoStream, frames: Iterable[Image.Image | NDArray[np.uint8]], spec: ClipSpec
) -> list["av.Packet[Any]"]:
    ticks: list[int] = []
    packets: list[av.Packet[Any]] = []
    for n, picture in enumerate(frames):
        pixels = np.asarray(picture)
        if n == 0:
            video.height, video.width = pixels.shape[:2]
        pixel_format = "rgba" if pixels.shape[2] == 4 else "rgb24"
        frame = av.VideoFrame.from_ndarray(pixels, format=pixel_format)
        ticks.append(spec.tick(n))
        frame.pts, frame.time_base = ticks[-1], spec.time_base
        packets += video.encode(frame.reformat(format=spec.pix_fmt, interpolation=EXACT_SCALING))
        if n == 0 and spec.codec == "libsvtav1":
            _restore_priority()
    packets += video.encode(None)
    _set_durations(packets, ticks, spec)
    return packets


def _restore_priority() -> None:
    """Undo the real-time priority that SVT-AV1 sets for the whole process if it runs as root.

    Later threads and children would inherit it, and starve everything else on the machine.
    """
    for thread in Path("/proc/self/task").glob("*"):
        with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
            os.sched_setscheduler(int(thread.name), os.SCHED_OTHER, os.sched_param(0))


def _set_durations(packets: list["av.Packet[Any]"], ticks: list[int], spec: ClipSpec) -> None:
    """Set each packet's duration to the time until the next frame.

    Encoders take it from the nominal frame rate.
    """
    gaps = [later - earlier for earlier, later in pairwise(ticks)]
    if spec.last_frame_seconds is not None:
        gaps.append(round(Fraction(spec.last_frame_seconds) / packets[0].time_base))
    else:
        gaps.append(gaps[-1] if gaps else round(1 / Fraction(spec.fps) / spec.time_base))
    by_pts = dict(zip(ticks, gaps, strict=True))
    for packet in packets:
        if packet.pts is not None:
            packet.duration = by_pts[packet.pts]


def _encode_tone(stream: AudioStream, seconds: float) -> list["av.Packet[Any]"]:
    rate = stream.codec_context.sample_rate
    wave = 0.2 * np.sin(2 * np.pi * 440 * np.arange(int(seconds * rate)) / rate)
    frame = av.AudioFrame.from_ndarray(wave[None].astype(np.float32), format="fltp", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
    return [*stream.encode(frame), *stream.encode(None)]


def _set_rotation(path: Path, rotation: int) -> None:
    """Write the display matrix of the video track, which PyAV cannot set.

    Source: ISO/IEC 14496-12, 8.3.2. A track header ends with nine numbers of the matrix (16.16, the
    third of each row 2.30), width and height (16.16).
    """
    data = bytearray(path.read_bytes())
    for trak in mp4_boxes(data, (b"moov", b"trak")):
        _, end = next(mp4_boxes(data, (b"tkhd",), *trak))
        width, height = struct.unpack_from(">II", data, end - 8)
        if width == 0:
            continue  # an audio track
        one = 1 << 16
        a, b, x, y = {
            90: (0, one, height, 0),
            180: (-one, 0, width, height),
            270: (0, -one, 0, width),
        }[rotation]
        struct.pack_into(">9i", data, end - 44, a, b, 0, -b, a, 0, x, y, 1 << 30)
    path.write_bytes(data)


def mp4_boxes(
    data: bytearray, kinds: tuple[bytes, ...], start: int = 0, end: int | None = None
) -> Iterator[tuple[int, int]]:
    """Yield start and end of the content of each MP4 box at ``kinds``, such as moov, trak."""
    end = len(data) if end is None else end
    while start < end:
        size, kind = struct.unpack_from(">I4s", data, start)
        if kind == kinds[0] and len(kinds) == 1:
            yield start + 8, start + size
        elif kind == kinds[0]:
            yield from mp4_boxes(data, kinds[1:], start + 8, start + size)
        start += size
