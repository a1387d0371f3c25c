"""Moments: when a given sentence is true of a stretch of video."""

import json
from typing import Any

import pyarrow as pa

from pipeline.tasks.intervals import clock, interval_fields, read_intervals
from pipeline.tasks.read_json import fenced
from schemas.task import Parsed, Question, Task, View

_PROMPT = (
    'Find every moment of the video that this sentence describes: "{query}" Output the start and '
    "end time of each in JSON format with 'mm:ss.ff' for times: "
    '[{{"start": "mm:ss.ff", "end": "mm:ss.ff"}}].'
)


def _prompt(question: Question, media_type: str) -> str:
    return question.prompt or _PROMPT.format(query=question.query)


def _parse(answer: str, question: Question, view: View) -> Parsed:
    """Read ``[{"start": .., "end": ..}]``, or the intervals alone; the model's best guess first.

    Times are clamped into the unit; an answer without any interval may be text such as "From 3.0
    to 5.5 seconds", of which the interval is read.
    """
    return read_intervals(answer, view)


def _write(value: list[dict[str, Any]], question: Question, view: View) -> str:
    ends = ("start_seconds", "end_seconds")
    items = [dict(zip(("start", "end"), (clock(m[e]) for e in ends), strict=True)) for m in value]
    return fenced(json.dumps(items))


TASK = Task(
    name="moments",
    version=1,
    media_types=frozenset({"video"}),
    column=pa.field(
        "moments",
        pa.list_(pa.field("element", pa.struct(interval_fields()), nullable=False)),
        metadata={"description": "when the sentence that was asked about is true"},
    ),
    prompt=_prompt,
    parse=_parse,
    write=_write,
)
