"""Decode a video's planned frames with torchcodec, by frame index."""

import functools
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import av

from pipeline.media.container import PacketTime, displayed_index, to_ticks
from pipeline.media.frames import Frames, empty_pixels
from pipeline.media.resize import Resizer
from schemas.errors import ErrorType, ResourceError, UnitError
from schemas.tables.media import Media, Sampling


@functools.cache
def torchcodec_problem() -> str | None:
    """Why torchcodec cannot be imported here, or None if it can."""
    try:
        from torchcodec.decoders import VideoDecoder  # noqa: F401
    except (ImportError, RuntimeError, OSError) as error:
        return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    return None


def torchcodec_frames(
    content: bytes,
    stream: Any,
    times: list[PacketTime],
    media: Media,
    sampling: Sampling,
    num_threads: int,
) -> Frames | None:
    """Decode the frames of a unit.

    content: the whole file. Not a path: FFmpeg would follow the paths in it.
    stream: the video stream, opened with PyAV.
    times: of all packets; torchcodec gets them as its frame index. Its ``exact`` mode would scan
        the file again; its ``approximate`` mode is wrong for variable frame rates.

    Returns None if torchcodec finds other times or sizes than PyAV did.

    Raises:
        UnitError: a frame cannot be decoded.
    """
    from torchcodec.decoders import VideoDecoder

    pts = [time.pts for time in times]
    if not pts or len(set(pts)) != len(pts):
        return None
    frames = [
        {"pts": time.pts, "duration": time.duration, "key_frame": int(time.is_keyframe)}
        for time in times
    ]
    try:
        decoder = VideoDecoder(
            content,
            stream_index=stream.index,
            dimension_order="NHWC",
            num_ffmpeg_threads=num_threads,
            custom_frame_mappings=json.dumps({"frames": frames}),
        )
    except (RuntimeError, ValueError):
        return None  # torchcodec cannot read this container; PyAV can
    indices = [
        displayed_index(pts, to_ticks(t, stream.time_base)) for t in sampling.times_seconds()
    ]
    pts_seconds = [float(pts[index] * stream.time_base) for index in indices]
    pixels = empty_pixels(sampling)
    resizer = Resizer(sampling.resized_height, sampling.resized_width, num_threads)
    last: int | None = None
    for k, (index, expected) in enumerate(zip(indices, pts_seconds, strict=True)):
        if index == last:  # a held frame
            pixels[k] = pixels[k - 1]
            continue
        with _torchcodec_errors(f"decoding failed at {expected:.3f} s"):
            frame = decoder.get_frame_at(index)
        if abs(frame.pts_seconds - expected) > 1e-6:
            return None
        picture = frame.data.numpy()
        if picture.shape[:2] != (media.height, media.width):
            return None  # torchcodec rotates where PyAV does not, or the file changes its size
        pixels[k] = resizer(av.VideoFrame.from_ndarray(picture, format="rgb24"))
        last = index
    return Frames(
        pixels=pixels,
        pts_seconds=tuple(pts_seconds),
        frame_indices=tuple(indices),
        decoder="torchcodec",
        end_seconds=float((times[-1].pts + times[-1].duration) * stream.time_base),
    )


@contextmanager
def _torchcodec_errors(problem: str) -> Iterator[None]:
    """Turn the errors that torchcodec raises for FFmpeg's into a UnitError."""
    try:
        yield
    except (RuntimeError, ValueError, IndexError) as error:
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        reason = re.sub(r"^.*\.cpp:\d+, ", "", first_line)  # its place in torchcodec's source
        raise UnitError(ErrorType.MEDIA_UNREADABLE, f"{problem}: {reason[:300]}") from error


def check_decoder(decoder: str) -> None:
    """Check that torchcodec loads if a job requires it. decoder: ``sampling.decoder``.

    Raises:
        ResourceError: torchcodec does not load on this machine.
    """
    if decoder == "torchcodec" and (problem := torchcodec_problem()):
        raise ResourceError(
            f"sampling.decoder is torchcodec, which does not load on this machine: {problem}; "
            "install FFmpeg's libraries (apt-get install ffmpeg), or set it to auto or pyav"
        )
