"""Find the cuts of a video: compare its key frames, and all frames only where key frames differ.

Encoders set a key frame where the picture changes. Between two key frames that differ, all frames
are decoded to find the cut's exact PTS. All frames are also decoded between key frames that are
more than MAX_KEY_GAP_SECONDS apart, and after the last key frame. A cut away and back between two
closer key frames is missed.

Cost: an hour of film takes seconds.
Source: PySceneDetect's ContentDetector compares the frames.
"""

from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from typing import Any

from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from pipeline.media.container import (
    SeekError,
    decoded_frames,
    ffmpeg_errors,
    open_video,
    seek,
    video_packets,
)
from pipeline.storage.media_file import MediaFile
from schemas.errors import ResourceError
from schemas.extras import install_command

MAX_KEY_GAP_SECONDS = 12.0
_END = 1 << 62
_COMPARED_WIDTH = 128


def check_shots() -> None:
    """Check that PySceneDetect is installed, before any work starts.

    Raises:
        ResourceError: it is not.
    """
    try:
        import scenedetect.detectors  # noqa: F401
    except ImportError:
        raise ResourceError(
            "sampling.segmentation.kind is shots, which needs PySceneDetect: "
            f"{install_command('shots')}"
        ) from None


def shot_starts(media: MediaFile, threshold: float) -> list[float]:
    """PTS in seconds of the first frame of each shot except the first, ascending.

    threshold: of PySceneDetect's ContentDetector: mean change of hue, saturation and lightness
        (0 to 255) from one frame to the next.

    Raises:
        UnitError: the video cannot be read.
    """
    with open_video(media) as (container, stream), ffmpeg_errors("finding shots failed"):
        base = stream.time_base or Fraction(1, 90000)
        is_cut = _CutDetector(threshold)
        stream.codec_context.skip_frame = "NONKEY"
        keys = [(frame.pts, is_cut(frame)) for frame in _frames(container, stream)]
        stream.codec_context.skip_frame = "DEFAULT"
        starts: list[int] = []
        for (begin, _), (end, differs) in pairwise([*keys, (_END, False)]):
            # After the last key frame there is no other one to compare it with.
            if differs or float((end - begin) * base) > MAX_KEY_GAP_SECONDS:
                cuts = _cuts(container, stream, begin, end, threshold)
                # A slow change has no cut: the new shot starts at the key frame.
                starts += cuts or ([end] if differs else [])
    return [float(ticks * base) for ticks in starts]


def _cuts(
    container: InputContainer, stream: VideoStream, begin: int, end: int, threshold: float
) -> list[int]:
    """PTS in ticks of all frames after ``begin``, ``end`` included, that start a shot."""
    is_cut, cuts = _CutDetector(threshold), []
    try:
        seek(container, stream, begin)
    except SeekError:
        return []  # the shot then starts at its key frame
    for frame in _frames(container, stream):
        if frame.pts > end:
            break
        if frame.pts >= begin and is_cut(frame):
            cuts.append(frame.pts)
    return cuts


def _frames(container: InputContainer, stream: VideoStream) -> Iterator[Any]:
    """Frames from the container's current position."""
    packets = video_packets(container, stream)
    return decoded_frames(container, stream.codec_context, packets)


class _CutDetector:
    """Detects whether a frame starts a new shot, by comparing it with the previous frame."""

    def __init__(self, threshold: float) -> None:
        from scenedetect import FrameTimecode
        from scenedetect.detectors import ContentDetector

        self._detector = ContentDetector(threshold=threshold, min_scene_len=0)
        self._time = FrameTimecode(0, fps=1.0)  # the detector needs one, and does not use it

    def __call__(self, frame: VideoFrame) -> bool:
        height = max(2, round(_COMPARED_WIDTH * frame.height / frame.width))
        small = frame.reformat(width=_COMPARED_WIDTH, height=height, format="bgr24").to_ndarray()
        return bool(self._detector.process_frame(self._time, small))
