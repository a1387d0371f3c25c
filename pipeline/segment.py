"""Cut a video into units, and choose each unit's frames by time."""

import math
from itertools import pairwise

from schemas.errors import ErrorType, UnitError
from schemas.job import SamplingSpec
from schemas.unit import Media


def stretches(
    media: Media, start_seconds: float | None, end_seconds: float | None, sampling: SamplingSpec
) -> list[tuple[float, float]]:
    """The units of a video: (start, end) in seconds on the PTS clock, end excluded.

    start_seconds, end_seconds: the stretch that the manifest asks for, cut to what is there.

    Raises:
        UnitError: nothing of the video lies in that stretch.
    """
    begin = media.begin_seconds or 0.0
    end = begin + (media.duration_seconds or 0.0)
    start = begin if start_seconds is None else start_seconds
    stop = end if end_seconds is None else end_seconds
    if start >= min(stop, end) or stop <= begin:
        raise UnitError(
            ErrorType.BAD_REQUEST,
            f"the manifest asks for {start:.3f} to {stop:.3f} s, the video runs from "
            f"{begin:.3f} to {end:.3f} s",
        )
    start, stop = max(start, begin), min(stop, end)
    if sampling.segmentation.kind == "none":
        return [(start, stop)]
    length = sampling.segmentation.seconds
    count = max(1, math.ceil((stop - start) / length - 1e-9))
    if count > 1 and (stop - start) - (count - 1) * length < sampling.segmentation.min_seconds:
        count -= 1  # the last bit joins the window before it
    bounds = [start + k * length for k in range(count)] + [stop]
    return list(pairwise(bounds))


def num_frames(start: float, end: float, average_fps: float | None, sampling: SamplingSpec) -> int:
    """How many frames the model sees of the stretch: even, at least 2, at most what is there.

    As in the reference, the count is rounded down to an even one. A stretch with a single frame
    shows it twice.
    """
    seconds = end - start
    if sampling.num_frames is not None:
        wanted = sampling.num_frames + sampling.num_frames % 2
    else:
        wanted = math.floor(seconds * sampling.fps + 1e-6)
        wanted = min(max(wanted, sampling.min_frames), sampling.max_frames)
    if average_fps:
        wanted = min(wanted, math.floor(seconds * average_fps + 1e-6))
    return max(2, wanted - wanted % 2)
