"""Events: what happens in a stretch of video, when, in the model's order."""

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from pipeline.tasks.intervals import (
    INTERVAL_KEYS,
    START_KEYS,
    clamp_interval,
    clock,
    interval_fields,
    interval_of,
)
from pipeline.tasks.read_json import JsonObject, conclude, fenced, first_of, read_json, text_of
from pipeline.tasks.times import read_interval
from schemas.task import Parsed, Question, Task, View

_PROMPT = (
    "Localize the events in the video, in order. Output the start and end time of each event and "
    "describe it in a sentence. Provide the result in JSON format with 'mm:ss.ff' for times."
)
_CAPTION_KEYS = ("caption", "description", "event", "text", "label")
_MAX_DEPTH = 4


def _prompt(question: Question, media_type: str) -> str:
    return question.prompt or _PROMPT


def _parse(answer: str, question: Question, view: View) -> Parsed:
    """Read ``{"00:23.00 - 00:48.00": caption}`` or ``[{"start": .., "end": .., "caption": ..}]``.

    Times are clamped into the unit and sorted; events without times or caption are left out.
    """
    reading = read_json(answer)
    notes: Counter[str] = Counter()
    events: list[dict[str, Any]] = []
    num_seen = 0
    for interval, named in _events(reading.value, notes):
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
    elif isinstance(value, dict) and _is_event(value):
        yield interval_of(value, notes), first_of(value, _CAPTION_KEYS, notes)
    elif isinstance(value, dict):
        # As pairs: two events at the same time are two members with the same key.
        pairs = value.pairs if isinstance(value, JsonObject) else tuple(value.items())
        for key, member in pairs:
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
    """Tell an event from an object around a list of events, which may have a caption as well."""
    if any(key in item for key in (*START_KEYS, *INTERVAL_KEYS)):
        return True
    return any(key in item for key in _CAPTION_KEYS) and not any(
        isinstance(member, list | dict) for member in item.values()
    )


def _may_hold_events(value: Any) -> bool:
    if isinstance(value, list):
        return all(isinstance(item, list | dict) for item in value)
    return isinstance(value, dict)


_CAPTION = {"description": "what happens then"}
_EVENT = pa.struct(
    [*interval_fields(), pa.field("caption", pa.string(), nullable=False, metadata=_CAPTION)]
)


def _write(value: list[dict[str, Any]], question: Question, view: View) -> str:
    """Write the list form, what happens before when: a thing that is named is easier to time."""
    events = [
        {
            "caption": event["caption"],
            "start": clock(event["start_seconds"]),
            "end": clock(event["end_seconds"]),
        }
        for event in value
    ]
    return fenced(json.dumps(events, ensure_ascii=False))


TASK = Task(
    name="events",
    version=1,
    media_types=frozenset({"video"}),
    column=pa.field(
        "events",
        pa.list_(pa.field("element", _EVENT, nullable=False)),
        metadata={"description": "what happens, and when, in the model's order"},
    ),
    prompt=_prompt,
    parse=_parse,
    write=_write,
)
