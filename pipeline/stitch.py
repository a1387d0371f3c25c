"""Make one list of events out of those of a video's units, whose stretches may overlap.

An event that lies across a border is told by both units. Two events of neighbouring units are one
if their captions are alike and both units, where both saw it, say the same of it: begun or not,
ended or not. Of units that only touch, both must reach the border.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
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
    """An event so far: as the latest unit tells it, where it began, and its best caption."""

    told: dict[str, Any]
    start_seconds: float
    caption: str
    caption_seconds: float  # how much of it the unit saw whose caption it is

    @classmethod
    def of(cls, event: dict[str, Any]) -> "_Open":
        return cls(
            told=event,
            start_seconds=event["start_seconds"],
            caption=event["caption"],
            caption_seconds=event["end_seconds"] - event["start_seconds"],
        )

    def closed(self) -> dict[str, Any]:
        return {
            "start_seconds": self.start_seconds,
            "end_seconds": self.told["end_seconds"],
            "caption": self.caption,
        }


def stitch(units: Sequence[Seen]) -> list[dict[str, Any]]:
    """Events of all units, ascending by start; one that several units saw is there once.

    Its begin is what the first of them says, its end what the last says, its caption that of the
    unit which saw most of it.
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
                now.append(_continued(same, event, ordered[k - 1]))
            else:
                now.append(_Open.of(event))
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


def _continued(before: _Open, event: dict[str, Any], first: Seen) -> _Open:
    end = event["end_seconds"]
    if before.told["end_seconds"] < first.end_seconds - first.step_seconds:  # not cut there
        end = max(end, before.told["end_seconds"])
    told = event | {"end_seconds": max(end, before.start_seconds)}
    best = max(before, _Open.of(event), key=lambda o: o.caption_seconds)
    return _Open(
        told=told,
        start_seconds=before.start_seconds,
        caption=best.caption,
        caption_seconds=best.caption_seconds,
    )


def _likeness(one: str, other: str) -> float:
    """Jaccard index of two captions' words."""
    first, second = set(_WORD.findall(one.lower())), set(_WORD.findall(other.lower()))
    return len(first & second) / len(first | second) if first or second else 1.0
