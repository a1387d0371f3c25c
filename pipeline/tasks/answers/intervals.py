"""Read and write time spans, which events and moments share."""

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from pipeline.tasks.answers.decode_json import JsonObject
from pipeline.tasks.answers.limits import check_deadline
from pipeline.tasks.answers.read_json import conclude, first_of, read_json
from pipeline.tasks.answers.times import (
    TIME,
    clamp_seconds,
    read_interval,
    read_seconds,
    single_spaces,
)
from schemas.task import Parsed, View

START_KEYS = ("start", "start_time", "start_seconds", "begin", "开始", "开始时间")
END_KEYS = ("end", "end_time", "end_seconds", "stop", "结束", "结束时间")
INTERVAL_KEYS = ("timestamp", "timestamps", "time", "time_range", "interval", "时间", "时间段")
_MAX_DEPTH = 4
_BULLET = re.compile(r"\s*(?:[-*•#]+|\d{1,3}[.)])\s+")
_SEPARATORS = " \t*_`:;,.|()[]<>-–—→"
# It does not begin inside a number: from each digit of a long one, it would be tried again.
_IN_PROSE = re.compile(
    rf"(?:(?<!\d)|(?=[< ])){TIME} ?(?:-++|–|—|→|~|to|until|and) ?{TIME}", re.ASCII | re.IGNORECASE
)


def interval_fields() -> "list[pa.Field[Any]]":
    """Return the Arrow fields of a time span."""
    seconds = {"description": "PTS in the media", "unit": "s"}
    return [
        pa.field(name, pa.float64(), nullable=False, metadata=seconds)
        for name in ("start_seconds", "end_seconds")
    ]


def interval_of(item: dict[str, Any], notes: Counter[str]) -> tuple[float, float] | None:
    """Return the start and end of an element in seconds; None if they cannot be read."""
    if any(key in item for key in START_KEYS):
        start = read_seconds(first_of(item, START_KEYS, notes))
        end = read_seconds(first_of(item, END_KEYS, notes))
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
    """Sort start and end, and clamp both to the unit."""
    start, end = sorted(interval)
    if start != interval[0]:
        notes["start and end swapped"] += 1
    return {
        "start_seconds": clamp_seconds(start, view, notes),
        "end_seconds": clamp_seconds(end, view, notes),
    }


def read_intervals(answer: str, view: View) -> Parsed:
    """Read a list of time spans from JSON or, if there is none, from prose."""
    notes: Counter[str] = Counter()
    reading = read_json(answer)
    if reading.value is None and (found := _IN_PROSE.search(single_spaces(answer))):
        notes["read from words, not from JSON"] += 1
        reading = type(reading)(value=[found[0]])
    moments = []
    num_seen = 0
    for interval in _intervals(reading.value, notes):
        check_deadline()
        num_seen += 1
        if interval is None:
            notes["left out: no times"] += 1
            continue
        moments.append(clamp_interval(interval, view, notes))
    return conclude(reading, moments, num_seen, notes)


def lines_with_times(answer: str, notes: Counter[str]) -> list[tuple[tuple[float, float], str]]:
    """Read lines such as ``- 0:03 - 0:10: A dog runs`` and ``A dog runs (3.0 to 10.0 s)``.

    Returns the time span and the text of each line that has exactly one span and a text. Two bare
    numbers are no times: "2 to 3 people".
    """
    found = []
    for line in filter(None, map(str.strip, answer.splitlines())):
        check_deadline()
        line = " ".join(line.split())
        bullet = _BULLET.match(line)
        rest = line[bullet.end() :] if bullet else line
        spans = [match for match in _IN_PROSE.finditer(rest) if _is_clock(match[0])]
        if len(spans) != 1:
            if spans or bullet:
                notes["left out: a line with no single time span"] += 1
            continue
        (span,) = spans
        after = rest[span.end() :].strip(_SEPARATORS)
        before = re.sub(r"(?i)\b(from|at|between)\s*$", "", rest[: span.start()].strip(_SEPARATORS))
        interval = read_interval(re.sub(r"(?i)\s*(until|and)\s*", " to ", span[0]))
        text = after or before.strip(_SEPARATORS)
        if interval is None or not text:
            notes["left out: a line with times alone"] += 1
            continue
        found.append((interval, text))
    if found:
        notes["read from lines of text, not from JSON"] += 1
    return found


def _is_clock(span: str) -> bool:
    """Whether a time span has a colon or a unit of time."""
    return ":" in span or re.search(r"\d\s*s", span, re.IGNORECASE) is not None


def _intervals(
    value: Any, notes: Counter[str], depth: int = 0
) -> Iterator[tuple[float, float] | None]:
    interval = read_interval(value)
    if interval is not None:
        yield interval
    elif isinstance(value, list) and depth < _MAX_DEPTH:
        for item in value:
            yield from _intervals(item, notes, depth + 1)
    elif isinstance(value, JsonObject) and any(k in value for k in (*START_KEYS, *INTERVAL_KEYS)):
        for part in value.split((*START_KEYS, *END_KEYS, *INTERVAL_KEYS), ()):
            yield interval_of(part, notes)
    elif isinstance(value, JsonObject) and depth < _MAX_DEPTH:
        for key, member in value.pairs:
            if (interval := read_interval(key)) is not None:
                yield interval
            else:
                yield from _intervals(member, notes, depth + 1)
    elif value is not None:
        yield None


def clock(seconds: float) -> str:
    """Return ``mm:ss.ff``, the form that prompts ask for; minutes may exceed 59."""
    hundredths = round(max(seconds, 0.0) * 100)
    minutes, rest = divmod(hundredths, 6000)
    return f"{minutes:02d}:{rest // 100:02d}.{rest % 100:02d}"
