"""Fields: the values of given keys, as from receipts, forms and slates."""

import json
from collections import Counter
from random import Random
from typing import Any

import pyarrow as pa

from pipeline.tasks.answers.limits import check_deadline
from pipeline.tasks.answers.read_json import clean_text, conclude, fenced, read_json, text_of
from pipeline.tasks.answers.simulate import WORDS, fenced_json
from schemas.tables.columns import described
from schemas.task import AnswerStatus, Drawing, Parsed, Question, Task, View


def _prompt(question: Question, media_type: str) -> str:
    if question.prompt:
        return question.prompt
    template = json.dumps(dict.fromkeys(question.keys, ""), ensure_ascii=False)
    return (
        f"Extract the key information of the {media_type} in JSON format, with exactly these keys "
        f'and "" where there is no value: {template}'
    )


def _parse(answer: str, question: Question, view: View) -> Parsed:
    """Read ``{key: value}``; a key without a value has null.

    Values are text; a list or an object becomes JSON text. Keys are matched without case and
    punctuation. Without `keys` (with a prompt of the job's own), all keys of the answer are kept.
    """
    reading = read_json(answer)
    notes: Counter[str] = Counter()
    members = _members(reading.value)
    requested = {_folded(key): key for key in question.keys}
    found: dict[str, str | None] = dict.fromkeys(question.keys)
    num_read = 0
    for key, value in members:
        check_deadline()
        name = requested.get(_folded(key)) if requested else clean_text(key).strip()
        if not name:
            notes[f"left out: {'key not requested' if requested else 'an empty key'}"] += 1
            continue
        if name != key:
            notes["a key was written differently"] += 1
        if found.get(name) is not None:
            notes["repeated key, its first value taken"] += 1
            continue
        num_read += 1
        found[name] = _text(value)
    answered = {_folded(key) for key, _ in members}
    missing = [key for key in question.keys if _folded(key) not in answered]
    if missing and members:
        notes[f"not answered: {', '.join(missing)}"] += 1
    parsed = conclude(reading, [{"key": k} for k in found] if num_read else [], len(members), notes)
    if parsed.status == AnswerStatus.UNPARSED or not num_read:
        return Parsed(
            value=None, status=AnswerStatus.UNPARSED, note=parsed.note or "no key was answered"
        )
    return Parsed(value=list(found.items()), status=parsed.status, note=parsed.note)


def _members(value: Any) -> list[tuple[str, Any]]:
    """Return the keys and values of an object, or of a list of objects."""
    if isinstance(value, dict):
        return list(getattr(value, "pairs", value.items()))
    if isinstance(value, list):
        return [pair for item in value if isinstance(item, dict) for pair in _members(item)]
    return []


def _folded(key: str) -> str:
    return "".join(c for c in key.casefold() if c.isalnum()) or key


def _text(value: Any) -> str | None:
    if isinstance(value, dict | list) and value:
        return clean_text(json.dumps(value, ensure_ascii=False))
    return "true" if value is True else "false" if value is False else text_of(value)


def _json_schema(question: Question) -> dict[str, Any] | None:
    """Return an object schema with a text for each key; None without `keys`."""
    if not question.keys:
        return None
    return {
        "type": "object",
        "properties": {key: {"type": "string"} for key in question.keys},
        "required": list(question.keys),
        "additionalProperties": False,
    }


def _write(value: Any, question: Question, view: View) -> str:
    pairs = dict(value)
    keys = question.keys or tuple(pairs)
    return fenced(json.dumps({key: pairs.get(key) or "" for key in keys}, ensure_ascii=False))


def _simulate(question: Question, view: View, chance: Random) -> str:
    return fenced_json({key: chance.choice(WORDS) for key in question.keys or ("title",)})


def _draw(value: list[tuple[str, str | None]]) -> Drawing:
    return Drawing(text="\n".join(f"{key}: {text}" for key, text in value))


TASK = Task(
    name="fields",
    version=1,
    media_types=frozenset({"image", "video"}),
    column=described(
        "fields", pa.map_(pa.string(), pa.string()), "values by key; null where the media has none"
    ),
    prompt=_prompt,
    parse=_parse,
    write=_write,
    simulate=_simulate,
    draw=_draw,
    mark_kind=None,
    metric=None,
    subtitles=None,
    is_prose=False,
    json_schema=_json_schema,
)
