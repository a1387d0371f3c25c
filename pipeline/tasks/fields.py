"""Fields: the values of given keys, as from receipts, forms and slates."""

import json
from collections import Counter
from typing import Any

import pyarrow as pa

from pipeline.tasks.read_json import clean_text, conclude, fenced, read_json, text_of
from schemas.task import AnswerStatus, Parsed, Question, Task, View


def _prompt(question: Question, media_type: str) -> str:
    if question.prompt:
        return question.prompt
    template = json.dumps(dict.fromkeys(question.keys, ""), ensure_ascii=False)
    return (
        f"Extract the key information of the {media_type} in JSON format, with exactly these keys "
        f'and "" where there is no value: {template}'
    )


def _parse(answer: str, question: Question, view: View) -> Parsed:
    """Read ``{key: value}``; the value of a key is null where the model has none.

    Values are text: of a list or an object its JSON. Keys are matched without regard to case and
    punctuation. Without `keys` (an own prompt), all that were answered are taken.
    """
    reading = read_json(answer)
    notes: Counter[str] = Counter()
    members = _members(reading.value)
    asked = {_folded(key): key for key in question.keys}
    found: dict[str, str | None] = dict.fromkeys(question.keys)
    num_read = 0
    for key, value in members:
        own = asked.get(_folded(key)) if asked else clean_text(key).strip()
        if not own:
            notes[f"left out: {'no such key asked for' if asked else 'an empty key'}"] += 1
            continue
        if own != key:
            notes["a key was written otherwise"] += 1
        if found.get(own) is not None:
            notes["repeated key, its first value taken"] += 1
            continue
        num_read += 1
        found[own] = _text(value)
    missing = [key for key in question.keys if _folded(key) not in {_folded(k) for k, _ in members}]
    if missing and members:
        notes[f"not answered: {', '.join(missing)}"] += 1
    parsed = conclude(reading, [{"key": k} for k in found] if num_read else [], len(members), notes)
    if parsed.status == AnswerStatus.UNPARSED or not num_read:
        return Parsed(
            value=None, status=AnswerStatus.UNPARSED, note=parsed.note or "no key was answered"
        )
    return Parsed(value=list(found.items()), status=parsed.status, note=parsed.note)


def _members(value: Any) -> list[tuple[str, Any]]:
    """Keys and values of an object, or of a list of objects such as one for each line."""
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
    """The keys, each with a text; none where an own prompt leaves them open."""
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


TASK = Task(
    name="fields",
    version=1,
    media_types=frozenset({"image", "video"}),
    column=pa.field(
        "fields",
        pa.map_(pa.string(), pa.string()),
        metadata={"description": "values by key; null where the media has none"},
    ),
    prompt=_prompt,
    parse=_parse,
    write=_write,
    json_schema=_json_schema,
)
