"""Custom: the job's own question; the answer is text or, with a JSON Schema, validated JSON.

The column ``custom`` has JSON as text, so that all jobs have one table. A question with a name has
a column of its own, typed by its schema.
"""

import json
from random import Random
from typing import Any

import pyarrow as pa

from pipeline.tasks.answers.read_json import clean_text, fenced, read_json
from pipeline.tasks.answers.simulate import fenced_json, random_instance, random_sentence
from pipeline.tasks.answers.text import read_text
from pipeline.tasks.json_columns import from_arrow, json_type, to_arrow
from pipeline.tasks.json_schema import schema_violation
from schemas.tables.columns import described
from schemas.task import AnswerStatus, Drawing, Parsed, Question, Task, View

_MAX_ERROR_CHARS = 160


def _prompt(question: Question, media_type: str) -> str:
    return question.prompt or ""


def _parse(answer: str, question: Question, view: View) -> Parsed:
    """Take the answer as text; with a schema, read its JSON and validate it."""
    if question.json_schema is None:
        return read_text(answer, question, view)
    reading = read_json(answer)
    notes = [reading.note] if reading.note else []
    if reading.value is None:
        return Parsed(value=None, status=AnswerStatus.UNPARSED, note=reading.note)
    violation = schema_violation(reading.value, question.json_schema)
    if violation is not None:
        what = clean_text(violation)[:_MAX_ERROR_CHARS]
        return _unparsed([*notes, f"violates the schema: {what}"])
    if not question.has_own_name:
        value = clean_text(json.dumps(reading.value, ensure_ascii=False))
    else:
        try:
            value, left_out = to_arrow(reading.value, json_type(question.json_schema))
        except OverflowError as problem:
            what = clean_text(str(problem))[:_MAX_ERROR_CHARS]
            return _unparsed([*notes, f"does not fit the column: {what}"])
        if left_out:
            what = ", ".join(left_out)[:_MAX_ERROR_CHARS]
            notes.append(f"left out, since the schema's properties do not have it: {what}")
    status = AnswerStatus.REPAIRED if notes else AnswerStatus.OK
    return Parsed(value=value, status=status, note="; ".join(notes) or None)


def _unparsed(notes: list[str]) -> Parsed:
    return Parsed(value=None, status=AnswerStatus.UNPARSED, note="; ".join(notes))


def _json_schema(question: Question) -> dict[str, Any] | None:
    return json.loads(question.json_schema) if question.json_schema else None


def _write(value: Any, question: Question, view: View) -> str:
    if question.json_schema is None:
        return str(value)
    type_ = json_type(question.json_schema)
    # A table from elsewhere may have JSON text where the pipeline writes a struct.
    if not question.has_own_name or (isinstance(value, str) and type_.arrow != pa.string()):
        return fenced(value)
    return fenced(json.dumps(from_arrow(value, type_), ensure_ascii=False))


def _draw(value: Any) -> Drawing:
    """Show text as it is, an object as a line for each of its members that is not null."""
    if isinstance(value, dict):
        members = {key: part for key, part in value.items() if part is not None}
        return Drawing(text="\n".join(f"{key}: {_text(part)}" for key, part in members.items()))
    return Drawing(text=_text(value))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _simulate(question: Question, view: View, chance: Random) -> str:
    if question.json_schema is None:
        return random_sentence(question, view, chance)
    return fenced_json(random_instance(json.loads(question.json_schema), chance))


TASK = Task(
    name="custom",
    version=1,
    media_types=frozenset({"image", "video"}),
    column=described(
        "custom", pa.string(), "answer to the job's own question; JSON where it has a schema"
    ),
    prompt=_prompt,
    parse=_parse,
    write=_write,
    simulate=_simulate,
    draw=_draw,
    mark_kind=None,
    metric=None,
    subtitles=None,
    is_prose=True,
    json_schema=_json_schema,
)
