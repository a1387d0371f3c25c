"""Make one list of events out of those of a video's units, whose stretches may overlap.

An event that lies across a border is told by both units. Two events of neighbouring units are one
if their captions are alike and both units, where both saw it, say the same of it: begun or not,
ended or not. Of units that only touch, both must reach the border.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

ALIKE = 0.5
"""Least share of common words, of all words of two captions (Jaccard index)."""

_WORD = re.compile(r"\w+")


@dataclass(frozen=True, kw_only=True)
class Seen:
    """The events that one unit tells of its stretch, in seconds on the PTS clock.

    step_seconds: how far its frame pairs, which the model is told the times of, lie apart: what it
        says cannot be finer.
    """

    start_seconds: float
    end_seconds: float
    step_seconds: float
    events: Sequence[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class _Open:
    """An event so far: as the latest unit tells it, and what all units that tell it say."""

    told: dict[str, Any]
    starts: tuple[float, ...]  # of units that saw it begin
    ends: tuple[float, ...]  # of units that saw it end
    first_start: float
    caption: str
    caption_seconds: float  # how much of it the unit saw whose caption it is

    @classmethod
    def of(cls, event: dict[str, Any], unit: Seen) -> "_Open":
        start, end = event["start_seconds"], event["end_seconds"]
        return cls(
            told=event,
            starts=(start,) if start > unit.start_seconds + unit.step_seconds else (),
            ends=(end,) if end < unit.end_seconds - unit.step_seconds else (),
            first_start=start,
            caption=event["caption"],
            caption_seconds=end - start,
        )

    def closed(self) -> dict[str, Any]:
        start = median(self.starts) if self.starts else self.first_start
        end = median(self.ends) if self.ends else self.told["end_seconds"]
        return {"start_seconds": start, "end_seconds": max(start, end), "caption": self.caption}


def stitch(units: Sequence[Seen]) -> list[dict[str, Any]]:
    """Events of all units, ascending by start; one that several units saw is there once.

    Its begin is the median of what those say that saw it begin, and so is its end: windows that
    overlap see it in frames at other times. Its caption is that of the unit which saw most of it.
    """
    ordered = sorted(units, key=lambda unit: (unit.start_seconds, unit.end_seconds))
    done: list[_Open] = []
    before: list[_Open] = []
    for k, unit in enumerate(ordered):
        now: list[_Open] = []
        free = list(before)
        for event in sorted(unit.events, key=lambda event: event["start_seconds"]):
            alike = [o for o in free if _is_same(o, event, ordered[k - 1], unit)]
            if alike:
                same = max(alike, key=lambda o: _likeness(o.told["caption"], event["caption"]))
                free.remove(same)
                now.append(_continued(same, _Open.of(event, unit)))
            else:
                now.append(_Open.of(event, unit))
        done += free
        before = now
    found = [o.closed() for o in [*done, *before]]
    return sorted(found, key=lambda event: (event["start_seconds"], event["end_seconds"]))


def _is_same(open_event: _Open, event: dict[str, Any], first: Seen, second: Seen) -> bool:
    told = open_event.told
    if _likeness(told["caption"], event["caption"]) < ALIKE:
        return False
    near = 2 * max(first.step_seconds, second.step_seconds)
    begin, end = second.start_seconds, min(first.end_seconds, second.end_seconds)
    if begin > end + near:
        return False  # between them is what no unit saw
    if end - begin < near:
        reaches = told["end_seconds"] >= end - near
        return bool(reaches and event["start_seconds"] <= begin + near)
    one, other = _within(told, begin, end), _within(event, begin, end)
    if one is None or other is None:
        return False
    return all(abs(a - b) <= near for a, b in zip(one, other, strict=True))


def _within(event: dict[str, Any], begin: float, end: float) -> tuple[float, float] | None:
    """The part of an event that lies in a stretch."""
    start, stop = max(event["start_seconds"], begin), min(event["end_seconds"], end)
    return (start, stop) if start <= stop else None


def _continued(before: _Open, now: _Open) -> _Open:
    best = max(before, now, key=lambda o: o.caption_seconds)
    return _Open(
        told=now.told,
        starts=before.starts + now.starts,
        ends=before.ends + now.ends,
        first_start=before.first_start,
        caption=best.caption,
        caption_seconds=best.caption_seconds,
    )


def _likeness(one: str, other: str) -> float:
    """Jaccard index of two captions' words."""
    first, second = set(_WORD.findall(one.lower())), set(_WORD.findall(other.lower()))
    return len(first & second) / len(first | second) if first or second else 1.0
