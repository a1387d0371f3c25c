"""Cut a video into units, and choose each unit's frames by time."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from schemas.errors import ErrorType, UnitError
from schemas.job import SamplingSpec, Segmentation
from schemas.manifest import PartSettings
from schemas.unit import Media


def part_sampling(sampling: SamplingSpec, settings: PartSettings) -> SamplingSpec:
    """How a video of a conversation is sampled: in one piece, and by its own settings.

    They win over the job's: a part with ``fps`` heeds no ``num_frames`` of the job.
    """
    counts = {
        key: value
        for key in ("fps", "num_frames", "min_frames", "max_frames")
        if (value := getattr(settings, key)) is not None
    }
    by_fps: dict[str, Any] = {"num_frames": None} if counts else {}
    whole = {"segmentation": Segmentation(kind="none"), "clock": "media"}
    return sampling.model_copy(update=by_fps | counts | whole)


def stretches(
    media: Media,
    start_seconds: float | None,
    end_seconds: float | None,
    sampling: SamplingSpec,
    shots: Sequence[float] = (),
) -> list[tuple[float, float]]:
    """The units of a video: (start, end) in seconds on the PTS clock, end excluded.

    start_seconds, end_seconds: the stretch that the manifest asks for, cut to what is there.
    shots: where shots begin, ascending, if it is cut by them.

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
    cut = sampling.segmentation
    if cut.kind == "none":
        return [(start, stop)]
    bounds = [start, *(t for t in shots if start < t < stop), stop]
    wholes = _long_enough(bounds, cut.min_seconds)
    return [window for whole in wholes for window in _windows(*whole, cut)]


def _long_enough(bounds: Sequence[float], min_seconds: float) -> list[tuple[float, float]]:
    """Shots; one that is too short belongs to the one before it, the first to the one after."""
    kept = [bounds[0]]
    for bound in bounds[1:-1]:
        if bound - kept[-1] >= min_seconds:
            kept.append(bound)
    if len(kept) > 1 and bounds[-1] - kept[-1] < min_seconds:
        kept.pop()
    return list(pairwise([*kept, bounds[-1]]))


def _windows(start: float, stop: float, cut: Segmentation) -> list[tuple[float, float]]:
    """Windows of equal length, each beginning ``overlap_seconds`` before the last one ends."""
    step = cut.seconds - cut.overlap_seconds
    count = max(1, math.ceil((stop - start - cut.overlap_seconds) / step - 1e-9))
    begins = [start + k * step for k in range(count)]
    if count > 1 and stop - begins[-1] - cut.overlap_seconds < cut.min_seconds:
        begins.pop()  # the last bit joins the window before it
    ends = [begin + cut.overlap_seconds for begin in begins[1:]] + [stop]
    return list(zip(begins, ends, strict=True))


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
        least = sampling.min_frames + sampling.min_frames % 2
        wanted = min(max(wanted, least), sampling.max_frames)
    if average_fps:
        wanted = min(wanted, math.floor(seconds * average_fps + 1e-6))
    return max(2, wanted - wanted % 2)
