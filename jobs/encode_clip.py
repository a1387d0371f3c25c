"""Encode pictures as a real clip with PyAV: codec, container, frame times, rotation, sound."""

import contextlib
import os
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.audio.stream import AudioStream
from av.video.reformatter import Interpolation
from av.video.stream import VideoStream
from numpy.typing import NDArray
from PIL import Image

# What follows is chosen so that the same frames give the same bytes on every machine. By itself
# swscale rounds as the CPU at hand does it fastest; x264 and x265 write other bytes with another
# number of threads, and x264's AVX-512 code was seen to differ by itself, once in some 30 clips.
EXACT_SCALING = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
NUM_THREADS = 1
# And for speed: the archive is rendered in every test session.
FAST_OPTIONS: dict[str, dict[str, str]] = {
    "libx264": {"preset": "veryfast", "crf": "23", "x264-params": "asm=sse4.2"},
    "libx265": {
        "preset": "ultrafast",
        "crf": "26",
        "x265-params": "frame-threads=1:pools=none:log-level=error",
    },
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "crf": "32", "b": "0"},
    # Above 10, some 5 % of its small clips are such as no decoder takes.
    "libsvtav1": {"preset": "10", "crf": "35"},
}


def encode_clip(
    path: Path,
    frames: Iterable[Image.Image | NDArray[np.uint8]],
    *,
    codec: str = "libx264",
    fps: Fraction | int = 10,
    pts_seconds: Sequence[float] | None = None,
    start_seconds: float = 0.0,
    last_frame_seconds: float | None = None,
    time_base: Fraction | None = None,
    pix_fmt: str = "yuv420p",
    gop_size: int = 24,
    max_b_frames: int = 0,
    codec_options: Mapping[str, str] | None = None,
    container_format: str | None = None,
    container_options: Mapping[str, str] | None = None,
    rotation: int = 0,
    audio_seconds: float = 0.0,
) -> None:
    """Encode `frames` (RGB or RGBA images, or uint8 [H, W, 3 or 4]; all of one size) into `path`.

    Args:
        codec: an FFmpeg encoder; `codec_options` add to, or replace, its `FAST_OPTIONS`.
        fps: the constant rate; with `pts_seconds` a hint for rate control, and what the header of
            a Matroska file will claim, as real ones do.
        pts_seconds: one rising time per frame, for a variable frame rate.
        start_seconds: added to every time: the first PTS of the file.
        last_frame_seconds: how long the last frame stays; by default as long as the one before.
        time_base: the encoder's tick. By default one that holds `fps` exactly, or 1/90000 where
            times or a start are given. Containers have the last word: Matroska counts milliseconds.
        container_format: FFmpeg's name, where the suffix of `path` does not tell.
        rotation: clockwise degrees (0, 90, 180, 270) a player turns the picture; MP4 and MOV only.
        audio_seconds: length of a sine tone, which may outlast the pictures; 0 for no audio track.

    Raises:
        ValueError: a rotation that is not one of the four, or not in MP4 or MOV.
    """
    if rotation not in (0, 90, 180, 270) or (rotation and path.suffix not in (".mp4", ".mov")):
        raise ValueError(f"cannot rotate {path.name} by {rotation = }: MP4 or MOV, in quarters")
    fps = Fraction(fps)
    exact = pts_seconds is None and start_seconds == 0.0
    time_base = time_base or Fraction(1, fps.numerator if exact else 90000)
    if codec == "libsvtav1":
        os.environ.setdefault("SVT_LOG", "1")  # it writes its banner past FFmpeg's log

    # Bit exact: Matroska would draw random ids, and a rendering could not be compared with another.
    muxer_options = {"fflags": "+bitexact", **(container_options or {})}
    with av.open(
        str(path), "w", format=container_format, container_options=muxer_options
    ) as container:
        video = cast(VideoStream, container.add_stream(codec, rate=fps))
        video.pix_fmt = pix_fmt
        video.codec_context.time_base = time_base
        video.codec_context.thread_count = NUM_THREADS
        video.codec_context.gop_size = gop_size
        video.codec_context.max_b_frames = max_b_frames
        video.codec_context.options = FAST_OPTIONS.get(codec, {}) | dict(codec_options or {})
        audio = None
        if audio_seconds:
            name = "libopus" if path.suffix == ".webm" else "aac"
            audio = cast(AudioStream, container.add_stream(name, rate=48000, layout="mono"))

        ticks: list[int] = []
        packets: list[av.Packet] = []
        for n, picture in enumerate(frames):
            pixels = np.asarray(picture)
            if n == 0:
                video.height, video.width = pixels.shape[:2]
            frame = av.VideoFrame.from_ndarray(
                pixels, format="rgba" if pixels.shape[2] == 4 else "rgb24"
            )
            seconds = n / fps if pts_seconds is None else Fraction(pts_seconds[n])
            ticks.append(round((seconds + Fraction(start_seconds)) / time_base))
            frame.pts, frame.time_base = ticks[-1], time_base
            packets += video.encode(frame.reformat(format=pix_fmt, interpolation=EXACT_SCALING))
            if n == 0 and codec == "libsvtav1":
                _give_back_priority()
        packets += video.encode(None)
        _set_durations(packets, ticks, round(1 / fps / time_base), last_frame_seconds)
        if audio is not None:
            packets += _encode_tone(audio, audio_seconds)
        for packet in sorted(packets, key=lambda p: (p.dts or 0) * p.time_base):
            container.mux(packet)
    if rotation:
        _set_rotation(path, rotation)


def _give_back_priority() -> None:
    """Undo what SVT-AV1 does as root: it takes real-time priority for the process, whose later
    threads and children inherit it and starve everything else on the machine.
    """
    for thread in Path("/proc/self/task").glob("*"):
        with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
            os.sched_setscheduler(int(thread.name), os.SCHED_OTHER, os.sched_param(0))


def _set_durations(
    packets: list[av.Packet], ticks: list[int], usual: int, last_seconds: float | None
) -> None:
    """Give each packet the time to the next frame: encoders guess it from the nominal rate."""
    gaps = [later - earlier for earlier, later in pairwise(ticks)]
    if last_seconds is None:
        gaps.append(gaps[-1] if gaps else usual)
    else:
        gaps.append(round(Fraction(last_seconds) / packets[0].time_base))
    by_pts = dict(zip(ticks, gaps, strict=True))
    for packet in packets:
        if packet.pts is not None:
            packet.duration = by_pts[packet.pts]


def _encode_tone(stream: AudioStream, seconds: float) -> list[av.Packet]:
    rate = stream.codec_context.sample_rate
    wave = 0.2 * np.sin(2 * np.pi * 440 * np.arange(int(seconds * rate)) / rate)
    frame = av.AudioFrame.from_ndarray(wave[None].astype(np.float32), format="fltp", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
    return [*stream.encode(frame), *stream.encode(None)]


def _set_rotation(path: Path, rotation: int) -> None:
    """Write the display matrix of the video track, for which PyAV has no call.

    Source: ISO/IEC 14496-12, 8.3.2. A track header ends in nine numbers of the matrix (16.16, the
    third of each row 2.30), width and height (16.16).
    """
    data = bytearray(path.read_bytes())
    for trak in _boxes(data, (b"moov", b"trak")):
        _, end = next(_boxes(data, (b"tkhd",), *trak))
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


def _boxes(
    data: bytearray, kinds: tuple[bytes, ...], start: int = 0, end: int | None = None
) -> Iterator[tuple[int, int]]:
    """Start and end of the content of every MP4 box at the path `kinds`, such as moov, trak."""
    end = len(data) if end is None else end
    while start < end:
        size, kind = struct.unpack_from(">I4s", data, start)
        if kind == kinds[0] and len(kinds) == 1:
            yield start + 8, start + size
        elif kind == kinds[0]:
            yield from _boxes(data, kinds[1:], start + 8, start + size)
        start += size
