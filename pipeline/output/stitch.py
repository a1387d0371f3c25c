"""Merge the events of a video's units, whose time spans may overlap, into one list.

Two units report the same event if it crosses their border. Two events of neighbouring units are the
same if their captions are alike, and if both units agree, for the time that both saw, on its start
and end. If the units only touch, both events must reach the border.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

MIN_LIKENESS = 0.5
"""Minimum share of common words among all words of two captions (Jaccard index)."""

_WORD = re.compile(r"\w+")


@dataclass(frozen=True, kw_only=True)
class UnitEvents:
    """The events of one unit, and the unit's time span, in seconds on the PTS clock.

    step_seconds: time between the unit's frame pairs. The prompt has no other times, so answers
        cannot be more exact.
    events: ``start_seconds``, ``end_seconds`` and ``caption`` each.
    """

    start_seconds: float
    end_seconds: float
    step_seconds: float
    events: Sequence[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class _Merged:
    """One event so far: as the latest unit reported it, and what all its units reported."""

    latest: dict[str, Any]
    starts: tuple[float, ...]  # from units that saw its start
    ends: tuple[float, ...]  # from units that saw its end
    first_start: float
    caption: str
    caption_seconds: float  # seconds of the event in the unit that wrote the caption

    @classmethod
    def of(cls, event: dict[str, Any], unit: UnitEvents) -> "_Merged":
        start, end = event["start_seconds"], event["end_seconds"]
        return cls(
            latest=event,
            starts=(start,) if start > unit.start_seconds + unit.step_seconds else (),
            ends=(end,) if end < unit.end_seconds - unit.step_seconds else (),
            first_start=start,
            caption=event["caption"],
            caption_seconds=end - start,
        )

    def event(self) -> dict[str, Any]:
        start = median(self.starts) if self.starts else self.first_start
        end = median(self.ends) if self.ends else self.latest["end_seconds"]
        return {"start_seconds": start, "end_seconds": max(start, end), "caption": self.caption}


def stitch(units: Sequence[UnitEvents]) -> list[dict[str, Any]]:
    """Merge the events of all units, each event once, ascending by start.

    Start and end are the medians over the units that saw the start or end: overlapping windows see
    it in different frames. The caption is from the unit that saw most of the event.
    """
    ordered = sorted(units, key=lambda unit: (unit.start_seconds, unit.end_seconds))
    done: list[_Merged] = []
    open_events: list[_Merged] = []  # reported by the previous unit
    for k, unit in enumerate(ordered):
        reported: list[_Merged] = []
        unmatched = list(open_events)
        for event in sorted(unit.events, key=lambda event: event["start_seconds"]):
            same = [m for m in unmatched if _is_same(m.latest, event, ordered[k - 1], unit)]
            if same:
                best = max(same, key=lambda m: _likeness(m.latest["caption"], event["caption"]))
                unmatched.remove(best)
                reported.append(_merge(best, _Merged.of(event, unit)))
            else:
                reported.append(_Merged.of(event, unit))
        done += unmatched
        open_events = reported
    events = [merged.event() for merged in [*done, *open_events]]
    return sorted(events, key=lambda event: (event["start_seconds"], event["end_seconds"]))


def _is_same(
    event: dict[str, Any], other: dict[str, Any], first: UnitEvents, second: UnitEvents
) -> bool:
    """Whether an event of the first unit and another one of the second, later unit are the same."""
    if _likeness(event["caption"], other["caption"]) < MIN_LIKENESS:
        return False
    tolerance = 2 * max(first.step_seconds, second.step_seconds)
    begin, end = second.start_seconds, min(first.end_seconds, second.end_seconds)
    if begin > end + tolerance:
        return False  # between the units lies time that no unit saw
    if end - begin < tolerance:
        reaches_border = event["end_seconds"] >= end - tolerance
        return bool(reaches_border and other["start_seconds"] <= begin + tolerance)
    in_overlap, other_in_overlap = _clip(event, begin, end), _clip(other, begin, end)
    if in_overlap is None or other_in_overlap is None:
        return False
    pairs = zip(in_overlap, other_in_overlap, strict=True)
    return all(abs(time - other_time) <= tolerance for time, other_time in pairs)


def _clip(event: dict[str, Any], begin: float, end: float) -> tuple[float, float] | None:
    """The part of an event that lies in a time span; None if no part does."""
    start, stop = max(event["start_seconds"], begin), min(event["end_seconds"], end)
    return (start, stop) if start <= stop else None


def _merge(before: _Merged, now: _Merged) -> _Merged:
    best = max(before, now, key=lambda merged: merged.caption_seconds)
    return _Merged(
        latest=now.latest,
        starts=before.starts + now.starts,
        ends=before.ends + now.ends,
        first_start=before.first_start,
        caption=best.caption,
        caption_seconds=best.caption_seconds,
    )


def _likeness(caption: str, other: str) -> float:
    """Jaccard index of two captions' words."""
    first, second = set(_WORD.findall(caption.lower())), set(_WORD.findall(other.lower()))
    return len(first & second) / len(first | second) if first or second else 1.0
