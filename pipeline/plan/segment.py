"""Cut a video into time spans, one per unit, and count the frames of each."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from schemas.errors import ErrorType, UnitError
from schemas.job.sampling import SamplingSpec, Segmentation
from schemas.tables.manifest import PartSettings
from schemas.tables.media import Media


def part_sampling(sampling: SamplingSpec, settings: PartSettings) -> SamplingSpec:
    """The sampling of a video of a conversation: one span, with the video's own settings.

    They replace the job's: if the video has ``fps``, the job's ``num_frames`` does not apply.
    """
    counts = {
        key: value
        for key in ("fps", "num_frames", "min_frames", "max_frames")
        if (value := getattr(settings, key)) is not None
    }
    by_fps: dict[str, Any] = {"num_frames": None} if counts else {}
    whole = {"segmentation": Segmentation(kind="none"), "clock": "media"}
    return sampling.model_copy(update=by_fps | counts | whole)


def segment_spans(
    media: Media,
    start_seconds: float | None,
    end_seconds: float | None,
    sampling: SamplingSpec,
    shots: Sequence[float] = (),
    max_units: int = 1 << 40,
) -> list[tuple[float, float]]:
    """The time spans of a video's units: (start, end) in seconds on the PTS clock, end excluded.

    start_seconds, end_seconds: the span that the manifest requests; it is clipped to the video.
    shots: starts of shots, ascending, for ``segmentation.kind: shots``.

    Raises:
        UnitError: no part of the video lies in the requested span, or there are over ``max_units``.
    """
    begin = media.begin_seconds or 0.0
    end = begin + (media.duration_seconds or 0.0)
    start = begin if start_seconds is None else start_seconds
    stop = end if end_seconds is None else end_seconds
    if start >= min(stop, end) or stop <= begin:
        raise UnitError(
            ErrorType.BAD_REQUEST,
            f"the manifest requests {start:.3f} to {stop:.3f} s, but the video runs from "
            f"{begin:.3f} to {end:.3f} s: change start_seconds and end_seconds",
        )
    start, stop = max(start, begin), min(stop, end)
    segmentation = sampling.segmentation
    if segmentation.kind == "none":
        return [(start, stop)]
    bounds = [start, *(t for t in shots if start < t < stop), stop]
    merged = _merge_short(bounds, segmentation.min_seconds)
    count = sum(_num_windows(*shot, segmentation) for shot in merged)
    if count > max_units:
        raise UnitError(
            ErrorType.TOO_MANY_UNITS,
            f"{stop - start:,.0f} s of video are {count:,} units, over limits.max_units_per_item "
            f"{max_units:,}: raise it if the video is that long, or choose longer windows "
            f"(sampling.segmentation.seconds is {segmentation.seconds:g})",
        )
    return [window for shot in merged for window in _windows(*shot, segmentation)]


def _merge_short(bounds: Sequence[float], min_seconds: float) -> list[tuple[float, float]]:
    """Merge a shot that is too short with the next shot; the last with the one before it."""
    kept = [bounds[0]]
    for bound in bounds[1:-1]:
        if bound - kept[-1] >= min_seconds:
            kept.append(bound)
    if len(kept) > 1 and bounds[-1] - kept[-1] < min_seconds:
        kept.pop()
    return list(pairwise([*kept, bounds[-1]]))


def _num_windows(start: float, stop: float, spec: Segmentation) -> int:
    """Number of windows before a short remainder joins the one before it."""
    step = spec.seconds - spec.overlap_seconds
    return max(1, math.ceil((stop - start - spec.overlap_seconds) / step - 1e-9))


def _windows(start: float, stop: float, spec: Segmentation) -> list[tuple[float, float]]:
    """Cut windows of ``seconds``, the last one shorter or longer, with ``overlap_seconds``."""
    step = spec.seconds - spec.overlap_seconds
    count = _num_windows(start, stop, spec)
    begins = [start + k * step for k in range(count)]
    if count > 1 and stop - begins[-1] - spec.overlap_seconds < spec.min_seconds:
        begins.pop()  # a short remainder is part of the previous window
    ends = [begin + spec.overlap_seconds for begin in begins[1:]] + [stop]
    return list(zip(begins, ends, strict=True))


def num_frames(start: float, end: float, average_fps: float | None, sampling: SamplingSpec) -> int:
    """Number of frames that the model sees of a time span: even, at least 2.

    As in the reference code, the count is rounded down to an even number, and is at most the number
    of frames that the span has; a single frame is shown twice.

    average_fps: of the video; None if unknown.
    """
    seconds = end - start
    if sampling.num_frames is not None:
        count = sampling.num_frames + sampling.num_frames % 2
    else:
        count = math.floor(seconds * sampling.fps + 1e-6)
        min_frames = sampling.min_frames + sampling.min_frames % 2
        count = min(max(count, min_frames), sampling.max_frames)
    if average_fps:
        count = min(count, math.floor(seconds * average_fps + 1e-6))
    return max(2, count - count % 2)
