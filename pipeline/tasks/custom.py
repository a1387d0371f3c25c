"""Custom: the job's own question; the answer is text or, with a JSON Schema, validated JSON."""

import functools
import json
from random import Random
from typing import Any

import jsonschema
import pyarrow as pa

from pipeline.tasks.answers.read_json import clean_text, fenced, read_json
from pipeline.tasks.answers.simulate import fenced_json, random_instance, random_sentence
from pipeline.tasks.answers.text import draw_text, read_text
from schemas.tables.columns import described
from schemas.task import AnswerStatus, Parsed, Question, Task, View

_MAX_ERROR_CHARS = 160


def _prompt(question: Question, media_type: str) -> str:
    return question.prompt or ""


def _parse(answer: str, question: Question, view: View) -> Parsed:
    """Take the answer as text; with a schema, read its JSON and validate it."""
    if question.json_schema is None:
        return read_text(answer, question, view)
    reading = read_json(answer)
    if reading.value is None:
        return Parsed(value=None, status=AnswerStatus.UNPARSED, note=reading.note)
    error = jsonschema.exceptions.best_match(
        _validator(question.json_schema).iter_errors(reading.value)
    )
    if error is not None:
        what = clean_text(f"{error.json_path}: {error.message}")[:_MAX_ERROR_CHARS]
        note = f"{reading.note}; " if reading.note else ""
        return Parsed(
            value=None, status=AnswerStatus.UNPARSED, note=f"{note}violates the schema: {what}"
        )
    value = clean_text(json.dumps(reading.value, ensure_ascii=False))
    status = AnswerStatus.REPAIRED if reading.note else AnswerStatus.OK
    return Parsed(value=value, status=status, note=reading.note)


@functools.lru_cache(maxsize=8)
def _validator(schema: str) -> Any:
    loaded = json.loads(schema)
    return jsonschema.validators.validator_for(loaded)(loaded)


def _json_schema(question: Question) -> dict[str, Any] | None:
    return json.loads(question.json_schema) if question.json_schema else None


def _write(value: str, question: Question, view: View) -> str:
    return value if question.json_schema is None else fenced(value)


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
    draw=draw_text,
    mark_kind=None,
    metric=None,
    subtitles=None,
    is_prose=True,
    json_schema=_json_schema,
)
