"""Decode a video's planned frames with torchcodec, by frame index."""

import functools
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import av

from pipeline.container import displayed, to_ticks
from pipeline.frames import Frames, Resizer, empty_pixels
from schemas.errors import ErrorType, UnitError
from schemas.unit import Media, Sampling


@functools.cache
def torchcodec_problem() -> str | None:
    """Why torchcodec cannot be used here, or None if it can."""
    try:
        from torchcodec.decoders import VideoDecoder  # noqa: F401
    except (ImportError, RuntimeError, OSError) as error:
        return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    return None


def torchcodec_frames(
    source: Any,
    stream: Any,
    times: list[tuple[int, int, bool]],
    media: Media,
    sampling: Sampling,
    num_threads: int,
) -> Frames | None:
    """Decode a file, or its bytes. None: its times or sizes are not the container's, use PyAV.

    times: pts, duration and key flag of all packets, as ``packet_times`` reads them. They serve as
        its frame index, in place of the scan of its own ``exact`` mode; its ``approximate`` mode
        is wrong for variable frame rates.

    Raises:
        UnitError: a frame cannot be decoded.
    """
    from torchcodec.decoders import VideoDecoder

    pts = [time[0] for time in times]
    if not pts or len(set(pts)) != len(pts):
        return None
    mapping = {
        "frames": [
            {"pts": ticks, "duration": duration, "key_frame": int(key)}
            for ticks, duration, key in times
        ]
    }
    try:
        decoder = VideoDecoder(
            source,
            stream_index=stream.index,
            dimension_order="NHWC",
            num_ffmpeg_threads=num_threads,
            custom_frame_mappings=json.dumps(mapping),
        )
    except (RuntimeError, ValueError):
        return None  # an odd container: PyAV has opened it already
    indices = [displayed(pts, to_ticks(t, stream.time_base)) for t in sampling.times_seconds()]
    pixels = empty_pixels(sampling)
    resized = Resizer(sampling.resized_height, sampling.resized_width, num_threads)
    last: int | None = None
    for k, index in enumerate(indices):
        if index == last:  # a held frame
            pixels[k] = pixels[k - 1]
            continue
        with _torchcodec_errors(f"decoding failed at {float(pts[index] * stream.time_base):.3f} s"):
            frame = decoder.get_frame_at(index)
        if abs(frame.pts_seconds - float(pts[index] * stream.time_base)) > 1e-6:
            return None
        picture = frame.data.numpy()
        if picture.shape[:2] != (media.height, media.width):
            return None  # it turns what PyAV does not, or the file changes its size
        pixels[k] = resized(av.VideoFrame.from_ndarray(picture, format="rgb24"))
        last = index
    return Frames(
        pixels=pixels,
        pts_seconds=tuple(float(pts[index] * stream.time_base) for index in indices),
        frame_indices=tuple(indices),
        decoder="torchcodec",
    )


@contextmanager
def _torchcodec_errors(doing: str) -> Iterator[None]:
    """torchcodec raises RuntimeError for whatever FFmpeg refuses."""
    try:
        yield
    except (RuntimeError, ValueError, IndexError) as error:
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        reason = re.sub(r"^.*\.cpp:\d+, ", "", first_line)  # its place in torchcodec's source
        raise UnitError(ErrorType.MEDIA_UNREADABLE, f"{doing}: {reason[:300]}") from error
