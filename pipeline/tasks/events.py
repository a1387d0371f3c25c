"""Events: what happens in a time span of a video, and when, in the model's order."""

import json
from collections import Counter
from collections.abc import Iterator
from random import Random
from typing import Any

import pyarrow as pa

from pipeline.tasks.answers.decode_json import JsonObject
from pipeline.tasks.answers.intervals import (
    END_KEYS,
    INTERVAL_KEYS,
    START_KEYS,
    clamp_interval,
    clock,
    interval_fields,
    interval_of,
    lines_with_times,
)
from pipeline.tasks.answers.limits import check_deadline
from pipeline.tasks.answers.read_json import (
    Reading,
    conclude,
    fenced,
    first_of,
    read_json,
    text_of,
)
from pipeline.tasks.answers.simulate import fenced_json, random_sentence, random_span
from pipeline.tasks.answers.times import read_interval
from schemas.tables.columns import described
from schemas.task import Drawing, Parsed, Question, Span, Task, View

_PROMPT = (
    "Localize the events in the video, in order. Output the start and end time of each event and "
    "describe it in a sentence. Provide the result in JSON format with 'mm:ss.ff' for times."
)
_CAPTION_KEYS = ("caption", "description", "event", "text", "label", "描述", "事件", "内容")
_MAX_DEPTH = 4


def _prompt(question: Question, media_type: str) -> str:
    return question.prompt or _PROMPT


def _parse(answer: str, question: Question, view: View) -> Parsed:
    """Read ``{"00:23.00 - 00:48.00": caption}`` or ``[{"start": .., "end": .., "caption": ..}]``.

    Times are clamped into the unit and sorted; events without times or caption are left out.
    """
    notes: Counter[str] = Counter()
    lines = [] if "{" in answer else lines_with_times(answer, notes)
    if lines:
        found = [{**clamp_interval(span, view, notes), "caption": text} for span, text in lines]
        return conclude(Reading(value=found), found, len(found), notes)
    reading, notes = read_json(answer), Counter()
    events: list[dict[str, Any]] = []
    num_seen = 0
    for interval, named in _events(reading.value, notes):
        check_deadline()
        num_seen += 1
        caption = text_of(named)
        if interval is None or caption is None:
            notes[f"left out: no {'times' if interval is None else 'caption'}"] += 1
            continue
        events.append({**clamp_interval(interval, view, notes), "caption": caption})
    return conclude(reading, events, num_seen, notes)


def _events(
    value: Any, notes: Counter[str], depth: int = 0
) -> Iterator[tuple[tuple[float, float] | None, Any]]:
    """Yield the interval in seconds (None if unreadable) and the caption of each event."""
    if isinstance(value, list) and depth < _MAX_DEPTH:
        for item in value:
            yield from _events(item, notes, depth + 1)
    elif isinstance(value, JsonObject) and _is_event(value):
        parts = value.split((*START_KEYS, *END_KEYS, *INTERVAL_KEYS, *_CAPTION_KEYS), ())
        if len(parts) > 1:
            notes["several events in one object"] += 1
        for part in parts:
            yield interval_of(part, notes), first_of(part, _CAPTION_KEYS, notes)
    elif isinstance(value, JsonObject):
        # As pairs: two events at the same time are two members with the same key.
        for key, member in value.pairs:
            interval = read_interval(key)
            if interval is None and _may_hold_events(member) and depth < _MAX_DEPTH:
                notes["events were inside an object"] += 1
                yield from _events(member, notes, depth + 1)
            elif isinstance(member, dict):
                yield interval, first_of(member, _CAPTION_KEYS, notes)
            else:
                yield interval, member
    elif value is not None:
        yield None, None


def _is_event(item: dict[str, Any]) -> bool:
    """Whether ``item`` is an event, not an object around a list of events."""
    if any(key in item for key in (*START_KEYS, *INTERVAL_KEYS)):
        return True
    return any(key in item for key in _CAPTION_KEYS) and not any(
        isinstance(member, list | dict) for member in item.values()
    )


def _may_hold_events(value: Any) -> bool:
    if isinstance(value, list):
        return all(isinstance(item, list | dict) for item in value)
    return isinstance(value, dict)


_CAPTION = {"description": "what happens in this time span"}
_EVENT = pa.struct(
    [*interval_fields(), pa.field("caption", pa.string(), nullable=False, metadata=_CAPTION)]
)


def _write(value: list[dict[str, Any]], question: Question, view: View) -> str:
    """Write the list form, the caption before the times: a named event is easier to time."""
    events = [
        {
            "caption": event["caption"],
            "start": clock(event["start_seconds"]),
            "end": clock(event["end_seconds"]),
        }
        for event in value
    ]
    return fenced(json.dumps(events, ensure_ascii=False))


def _simulate(question: Question, view: View, chance: Random) -> str:
    spans = sorted(random_span(view, chance) for _ in range(2))
    return fenced_json(
        {f"{start} - {end}": random_sentence(question, view, chance) for start, end in spans}
    )


def _draw(value: list[dict[str, Any]]) -> Drawing:
    return Drawing(
        events=tuple(
            Span(
                start_seconds=event["start_seconds"],
                end_seconds=event["end_seconds"],
                caption=event["caption"] or "",  # gold may have times only
            )
            for event in value
        )
    )


TASK = Task(
    name="events",
    version=1,
    media_types=frozenset({"video"}),
    column=described(
        "events",
        pa.list_(pa.field("element", _EVENT, nullable=False)),
        "what happens, and when, in the model's order",
    ),
    prompt=_prompt,
    parse=_parse,
    write=_write,
    simulate=_simulate,
    draw=_draw,
    mark_kind=None,
    metric="events",
    subtitles="events",
    is_prose=False,
)
