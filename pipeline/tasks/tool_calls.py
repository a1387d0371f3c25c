"""Tool calls: what an agent would do next, as in screen recordings.

The job's tools stand in the system turn, as the checkpoint's chat template writes them; the answer
is ``<tool_call>{"name": .., "arguments": {..}}</tool_call>``, any number of times.
"""

import json
import re
from collections import Counter
from typing import Any

import pyarrow as pa

from pipeline.tasks.points import read_point
from pipeline.tasks.read_json import clean_text, read_json, text_of
from schemas.task import AnswerStatus, Parsed, Question, Task, View, point_type

_CALL = re.compile(r"<tool_call>(.*?)(?:</tool_call>|(?=<tool_call>)|\Z)", re.DOTALL)
_POINT_KEYS = ("coordinate", "point_2d", "point")
_MAX_CALLS = 256


def _prompt(question: Question, media_type: str) -> str:
    return question.prompt or f"What is the next action in this {media_type}?"


def _parse(answer: str, question: Question, view: View) -> Parsed:
    """Read the calls; what is said around them is no fault and is in the raw text."""
    notes: Counter[str] = Counter()
    texts = [match[1] for match in _CALL.finditer(answer)][:_MAX_CALLS]
    if not texts:
        notes["no <tool_call> around the call"] += 1
        texts = [answer]
    elif "</tool_call>" not in answer[answer.rindex("<tool_call>") :]:
        notes["the last call was not closed"] += 1
    calls = [call for text in texts for call in _calls(text, view, notes)]
    note = "; ".join(f"{w} ({n}x)" if n > 1 else w for w, n in notes.items()) or None
    if not calls:
        return Parsed(value=None, status=AnswerStatus.UNPARSED, note=note or "no call")
    status = AnswerStatus.REPAIRED if note else AnswerStatus.OK
    return Parsed(value=calls, status=status, note=note)


def _calls(text: str, view: View, notes: Counter[str]) -> list[dict[str, Any]]:
    reading = read_json(text)
    if reading.note:
        notes[reading.note] += 1
    items = reading.value if isinstance(reading.value, list) else [reading.value]
    calls = []
    for item in items:
        name = text_of(item.get("name")) if isinstance(item, dict) else None
        arguments = item.get("arguments", {}) if name else None
        if isinstance(arguments, str):
            notes["arguments were text"] += 1
            arguments = read_json(arguments).value
        if name is None or not isinstance(arguments, dict):
            notes["left out: no name" if name is None else "left out: no arguments"] += 1
            continue
        call = {"name": name, "arguments": clean_text(json.dumps(arguments, ensure_ascii=False))}
        calls.append({**call, "point": _point(arguments, view, notes)})
    return calls


def _point(arguments: dict[str, Any], view: View, notes: Counter[str]) -> dict[str, float] | None:
    for key in _POINT_KEYS:
        if key in arguments:
            try:
                fields, mended = read_point(arguments[key], view)
            except ValueError as error:
                notes[f"{key} is {error}"] += 1
                return None
            notes.update(mended)
            point: dict[str, float] = fields["point"]
            return point
    return None


def _write(value: list[dict[str, Any]], question: Question, view: View) -> str:
    return "\n".join(
        f'<tool_call>\n{{"name": {json.dumps(call["name"], ensure_ascii=False)}, '
        f'"arguments": {call["arguments"]}}}\n</tool_call>'
        for call in value
    )


_CALLED = pa.struct(
    [
        pa.field("name", pa.string(), nullable=False, metadata={"description": "of the tool"}),
        pa.field(
            "arguments",
            pa.string(),
            nullable=False,
            metadata={"description": "as the model gave them, a JSON object; untrusted"},
        ),
        pa.field(
            "point",
            point_type(),
            metadata={
                "description": "the argument `coordinate`, in the displayed original",
                "unit": "px",
            },
        ),
    ]
)

TASK = Task(
    name="tool_calls",
    version=1,
    media_types=frozenset({"image", "video"}),
    column=pa.field(
        "tool_calls",
        pa.list_(pa.field("element", _CALLED, nullable=False)),
        metadata={"description": "calls of the job's tools, in order"},
    ),
    prompt=_prompt,
    parse=_parse,
    write=_write,
)
