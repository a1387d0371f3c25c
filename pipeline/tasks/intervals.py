"""Read and write stretches of time, which events and moments share."""

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from pipeline.tasks.read_json import JsonObject, conclude, first_of, read_json
from pipeline.tasks.times import TIME, clamp_seconds, read_interval, read_seconds
from schemas.task import Parsed, View

START_KEYS = ("start", "start_time", "start_seconds", "begin")
_END_KEYS = ("end", "end_time", "end_seconds", "stop")
INTERVAL_KEYS = ("timestamp", "timestamps", "time", "time_range", "interval")
_MAX_DEPTH = 4
_MAX_PROSE_CHARS = 2000  # keeps backtracking on hostile text short
_IN_PROSE = re.compile(rf"{TIME}\s*(?:-+|–|—|→|~|to|until|and)\s*{TIME}", re.ASCII | re.IGNORECASE)


def interval_fields() -> list[pa.Field]:
    """The typed columns of a stretch."""
    seconds = {"description": "PTS in the media", "unit": "s"}
    return [
        pa.field(name, pa.float64(), nullable=False, metadata=seconds)
        for name in ("start_seconds", "end_seconds")
    ]


def interval_of(item: dict[str, Any], notes: Counter[str]) -> tuple[float, float] | None:
    """Return its start and end in seconds; None if they cannot be read."""
    if any(key in item for key in START_KEYS):
        start = read_seconds(first_of(item, START_KEYS, notes))
        end = read_seconds(first_of(item, _END_KEYS, notes))
        return None if start is None or end is None else (start, end)
    value = first_of(item, INTERVAL_KEYS, notes)
    interval, instant = read_interval(value), read_seconds(value)
    if instant is not None:
        notes["one time taken for both start and end"] += 1
        return instant, instant
    if interval is not None:
        notes["start and end read from one value"] += 1
    return interval


def clamp_interval(
    interval: tuple[float, float], view: View, notes: Counter[str]
) -> dict[str, float]:
    """Put a stretch in order and into the unit."""
    start, end = sorted(interval)
    if start != interval[0]:
        notes["start and end swapped"] += 1
    return {
        "start_seconds": clamp_seconds(start, view, notes),
        "end_seconds": clamp_seconds(end, view, notes),
    }


def read_intervals(answer: str, view: View) -> Parsed:
    """Read a list of stretches, in JSON or, where there is none, in words."""
    notes: Counter[str] = Counter()
    reading = read_json(answer)
    if reading.value is None and (found := _IN_PROSE.search(answer[:_MAX_PROSE_CHARS])):
        notes["read from words, not from JSON"] += 1
        reading = type(reading)(value=[found[0]])
    moments = []
    num_seen = 0
    for interval in _intervals(reading.value, notes):
        num_seen += 1
        if interval is None:
            notes["left out: no times"] += 1
            continue
        moments.append(clamp_interval(interval, view, notes))
    return conclude(reading, moments, num_seen, notes)


def _intervals(
    value: Any, notes: Counter[str], depth: int = 0
) -> Iterator[tuple[float, float] | None]:
    interval = read_interval(value)
    if interval is not None:
        yield interval
    elif isinstance(value, list) and depth < _MAX_DEPTH:
        for item in value:
            yield from _intervals(item, notes, depth + 1)
    elif isinstance(value, dict) and any(k in value for k in (*START_KEYS, *INTERVAL_KEYS)):
        yield interval_of(value, notes)
    elif isinstance(value, JsonObject) and depth < _MAX_DEPTH:
        for key, member in value.pairs:
            if (interval := read_interval(key)) is not None:
                yield interval
            else:
                yield from _intervals(member, notes, depth + 1)
    elif value is not None:
        yield None


def clock(seconds: float) -> str:
    """``mm:ss.ff``, as the prompt asks for; minutes may be over 59."""
    hundredths = round(max(seconds, 0.0) * 100)
    minutes, rest = divmod(hundredths, 6000)
    return f"{minutes:02d}:{rest // 100:02d}.{rest % 100:02d}"
