"""Custom: a question of your own; its answer as text or, by a JSON Schema, as checked JSON."""

import functools
import json
from typing import Any

import jsonschema
import pyarrow as pa

from pipeline.tasks.read_json import clean_text, fenced, read_json
from schemas.task import AnswerStatus, Parsed, Question, Task, View

_MAX_SHOWN = 160


def _prompt(question: Question, media_type: str) -> str:
    return question.prompt or ""


def _parse(answer: str, question: Question, view: View) -> Parsed:
    """Take the answer as it is; with a schema, as the JSON in it that the schema allows."""
    if question.json_schema is None:
        text = clean_text(answer).strip()
        if not text:
            note = "the model answered nothing"
            return Parsed(value=None, status=AnswerStatus.UNPARSED, note=note)
        return Parsed(value=text, status=AnswerStatus.OK)
    reading = read_json(answer)
    if reading.value is None:
        return Parsed(value=None, status=AnswerStatus.UNPARSED, note=reading.note)
    error = jsonschema.exceptions.best_match(
        _validator(question.json_schema).iter_errors(reading.value)
    )
    if error is not None:
        what = clean_text(f"{error.json_path}: {error.message}")[:_MAX_SHOWN]
        note = f"{reading.note}; " if reading.note else ""
        return Parsed(
            value=None, status=AnswerStatus.UNPARSED, note=f"{note}against the schema: {what}"
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


TASK = Task(
    name="custom",
    version=1,
    media_types=frozenset({"image", "video"}),
    column=pa.field(
        "custom",
        pa.string(),
        metadata={"description": "answer to the job's own question; JSON where it has a schema"},
    ),
    prompt=_prompt,
    parse=_parse,
    write=_write,
    json_schema=_json_schema,
)
