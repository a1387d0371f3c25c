"""Moments: the time spans of a video that a given sentence describes."""

import json
from random import Random
from typing import Any

import pyarrow as pa

from pipeline.tasks.answers.intervals import clock, interval_fields, read_intervals
from pipeline.tasks.answers.read_json import fenced
from pipeline.tasks.answers.simulate import fenced_json, random_span
from schemas.tables.columns import described
from schemas.task import Drawing, Parsed, Question, Span, Task, View

_PROMPT = (
    'Find every moment of the video that this sentence describes: "{query}" Output the start and '
    "end time of each in JSON format with 'mm:ss.ff' for times: "
    '[{{"start": "mm:ss.ff", "end": "mm:ss.ff"}}].'
)


def _prompt(question: Question, media_type: str) -> str:
    return question.prompt or _PROMPT.format(query=question.query)


def _parse(answer: str, question: Question, view: View) -> Parsed:
    """Read ``[{"start": .., "end": ..}]``, or the intervals alone; the model's best guess first.

    Times are clamped to the unit. Without JSON, the interval is read from text such as "From 3.0 to
    5.5 seconds".
    """
    return read_intervals(answer, view)


def _write(value: list[dict[str, Any]], question: Question, view: View) -> str:
    ends = ("start_seconds", "end_seconds")
    items = [dict(zip(("start", "end"), (clock(m[e]) for e in ends), strict=True)) for m in value]
    return fenced(json.dumps(items))


def _simulate(question: Question, view: View, chance: Random) -> str:
    start, end = random_span(view, chance)
    return fenced_json([{"start": start, "end": end}])


def _draw(value: list[dict[str, Any]]) -> Drawing:
    return Drawing(
        events=tuple(
            Span(
                start_seconds=moment["start_seconds"],
                end_seconds=moment["end_seconds"],
                caption="moment",
            )
            for moment in value
        )
    )


TASK = Task(
    name="moments",
    version=1,
    media_types=frozenset({"video"}),
    column=described(
        "moments",
        pa.list_(pa.field("element", pa.struct(interval_fields()), nullable=False)),
        "the time spans that the query describes",
    ),
    prompt=_prompt,
    parse=_parse,
    write=_write,
    simulate=_simulate,
    draw=_draw,
    mark_kind=None,
    metric="moments",
    subtitles=None,
    is_prose=False,
)
