"""Find where a video cuts to another shot: by its key frames, and all frames only where it must.

Encoders set a key frame where the picture changes. So key frames are compared first; between two
that differ all frames are decoded, to find the cut's exact PTS, and so they are where key frames
lie further apart than MAX_KEY_GAP_SECONDS, and after the last one. A cut there and back between
two key frames that are closer is not found. Frames are compared by PySceneDetect.
"""

from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from typing import Any

from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from pipeline.container import open_video, unreadable
from pipeline.storage import MediaFile
from schemas.errors import ResourceError

MAX_KEY_GAP_SECONDS = 12.0
_END = 1 << 62
WIDTH = 128
"""Frames are compared at this width, in pixels."""


def check_shots() -> None:
    """Find out before any work whether shots can be found.

    Raises:
        ResourceError: PySceneDetect is not installed.
    """
    try:
        import scenedetect.detectors  # noqa: F401
    except ImportError:
        raise ResourceError(
            "sampling.segmentation.kind is shots, which needs PySceneDetect: "
            "pip install 'reelscribe[shots]'"
        ) from None


def shot_starts(media: MediaFile, threshold: float) -> list[float]:
    """PTS in seconds of the first frame of every shot but the first, ascending.

    threshold: of PySceneDetect's ContentDetector: mean change of hue, saturation and lightness
        (0 to 255) from one frame to the next.

    Raises:
        UnitError: the video cannot be read.
    """
    with open_video(media) as (container, stream), unreadable("looking for shots"):
        base = stream.time_base or Fraction(1, 90000)
        changed = _Changes(threshold)
        stream.codec_context.skip_frame = "NONKEY"
        keys = [(frame.pts, changed(frame)) for frame in _frames(container, stream)]
        stream.codec_context.skip_frame = "DEFAULT"
        starts: list[int] = []
        for (begin, _), (end, differs) in pairwise([*keys, (_END, False)]):
            # After the last key frame there is none to tell.
            if differs or float((end - begin) * base) > MAX_KEY_GAP_SECONDS:
                cuts = _cuts(container, stream, begin, end, threshold)
                # A slow change has no cut: it is over at the key frame.
                starts += cuts or ([end] if differs else [])
    return [float(ticks * base) for ticks in starts]


def _cuts(
    container: InputContainer, stream: VideoStream, begin: int, end: int, threshold: float
) -> list[int]:
    """PTS in ticks of all frames after ``begin``, up to and with ``end``, that begin a shot."""
    container.seek(begin, stream=stream, backward=True)
    changed, cuts = _Changes(threshold), []
    for frame in _frames(container, stream):
        if frame.pts > end:
            break
        if frame.pts >= begin and changed(frame):
            cuts.append(frame.pts)
    return cuts


def _frames(container: InputContainer, stream: VideoStream) -> Iterator[Any]:
    """Frames that carry a time, from where the container stands."""
    for frame in container.decode(stream):
        if frame.pts is not None:
            yield frame


class _Changes:
    """Tells of each frame whether it is another picture than the one before."""

    def __init__(self, threshold: float) -> None:
        from scenedetect import FrameTimecode
        from scenedetect.detectors import ContentDetector

        self._detector = ContentDetector(threshold=threshold, min_scene_len=0)
        self._now = FrameTimecode(0, fps=1.0)  # what time it is does not matter to it

    def __call__(self, frame: VideoFrame) -> bool:
        height = max(2, round(WIDTH * frame.height / frame.width))
        small = frame.reformat(width=WIDTH, height=height, format="bgr24").to_ndarray()
        return bool(self._detector.process_frame(self._now, small))
