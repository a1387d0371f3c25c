"""Tool calls: the next action of an agent, such as in screen recordings.

The checkpoint's chat template writes the job's tools into the system turn, and says how a call is
written: ``<tool_call>{"name": .., "arguments": {..}}</tool_call>`` (Qwen3-VL), or
``<tool_call><function=name><parameter=key>value</parameter></function></tool_call>`` (Qwen3.5); any
number of times.
"""

import json
import re
from collections import Counter
from contextlib import suppress
from random import Random
from typing import Any

import pyarrow as pa

from pipeline.tasks.answers.backslashes import escape_as_numbers
from pipeline.tasks.answers.decode_json import JsonDecoder
from pipeline.tasks.answers.limits import MAX_TOOL_CALLS, check_deadline
from pipeline.tasks.answers.read_json import clean_text, join_notes, read_json, text_of
from pipeline.tasks.answers.simulate import random_instance
from pipeline.tasks.points import point_marks, read_point
from schemas.tables.columns import described
from schemas.task import AnswerStatus, Drawing, Parsed, Question, Task, View, point_type

_CALL = re.compile(r"<tool_call>(.*?)(?:</tool_call>|(?=<tool_call>)|\Z)", re.DOTALL)
# A name is bounded, and no text is scanned twice: each match ends where the next one may begin.
# A tag ends what it closes only where the next one follows, or nothing: a value may quote tags.
_FUNCTION = re.compile(
    r"<function=([^<>\n]{1,200})>(.*?)(?:</function>(?=\s*(?:<function=|\Z))|\Z)", re.DOTALL
)
_PARAMETER = re.compile(
    r"<parameter=([^<>\n]{1,200})>(.*?)(</parameter>(?=\s*(?:<parameter=|\Z))|\Z)", re.DOTALL
)
_POINT_KEYS = ("coordinate", "point_2d", "point")


def _prompt(question: Question, media_type: str) -> str:
    return question.prompt or f"What is the next action in this {media_type}?"


def _parse(answer: str, question: Question, view: View) -> Parsed:
    """Read the calls; text around them is allowed, and stays in the raw text."""
    notes: Counter[str] = Counter()
    texts = [match[1] for match in _CALL.finditer(answer)]
    if not texts:
        notes["no <tool_call> around the call"] += 1
        texts = [answer]
    elif "</tool_call>" not in answer[answer.rindex("<tool_call>") :]:
        notes["the last call was not closed"] += 1
    decoder = JsonDecoder()
    as_text = _text_arguments(question.tools)
    calls = [call for text in texts for call in _calls(text, view, notes, decoder, as_text)]
    if len(calls) > MAX_TOOL_CALLS:
        notes[f"left out: calls after the first {MAX_TOOL_CALLS}"] += len(calls) - MAX_TOOL_CALLS
        del calls[MAX_TOOL_CALLS:]
    note = join_notes(notes)
    if not calls:
        return Parsed(value=None, status=AnswerStatus.UNPARSED, note=note or "no call")
    status = AnswerStatus.REPAIRED if note else AnswerStatus.OK
    return Parsed(value=calls, status=status, note=note)


def _text_arguments(tools: str | None) -> set[tuple[str, str]]:
    """The arguments that are text, as names of tool and argument."""
    found = set()
    for tool in json.loads(tools or "[]"):
        function = _object(tool, "function") or tool
        properties = _object(_object(function, "parameters"), "properties")
        for key in properties:
            if _is_text(_object(properties, key)):
                found.add((str(function.get("name")), key))
    return found


def _is_text(schema: dict[str, Any]) -> bool:
    """Whether a schema takes text, also beside null or other types."""
    kinds = schema.get("type")
    options = [*_list(schema, "anyOf"), *_list(schema, "oneOf")]
    return (
        "string" in (kinds if isinstance(kinds, list) else [kinds])
        or any(isinstance(value, str) for value in _list(schema, "enum"))
        or any(isinstance(option, dict) and _is_text(option) for option in options)
    )


def _list(value: dict[str, Any], key: str) -> list[Any]:
    found = value.get(key)
    return found if isinstance(found, list) else []


def _object(value: dict[str, Any], key: str) -> dict[str, Any]:
    """The object at a key; the job's tools are not checked, so there may be anything."""
    found = value.get(key)
    return found if isinstance(found, dict) else {}


def _tagged_calls(
    text: str, decoder: JsonDecoder, texts: set[tuple[str, str]], notes: Counter[str]
) -> list[dict[str, Any]]:
    """Read calls whose arguments are tags; a value is JSON unless the tool takes text there."""
    calls = []
    for function in _FUNCTION.finditer(text):
        check_deadline()
        name = function[1].strip()
        arguments: dict[str, Any] = {}
        for parameter in _PARAMETER.finditer(function[2]):
            if not parameter[3] and parameter.end() == len(function[2]):
                notes["the last argument was not closed, and is left out"] += 1
                break
            if "<parameter=" in parameter[2]:
                notes["an argument has a tag in it"] += 1
            key, value = parameter[1].strip(), parameter[2].removeprefix("\n").removesuffix("\n")
            arguments[key] = value
            if (name, key) not in texts:
                with suppress(ValueError, RecursionError):  # text has no quotes in these calls
                    arguments[key] = decoder.decode(value.strip())
        calls.append({"name": name, "arguments": arguments})
    return calls


def _calls(
    text: str,
    view: View,
    notes: Counter[str],
    decoder: JsonDecoder,
    text_arguments: set[tuple[str, str]],
) -> list[dict[str, Any]]:
    check_deadline()
    items: list[Any] = []
    if text.lstrip().startswith("<function="):  # in JSON it may be a part of a text
        items = _tagged_calls(text, decoder, text_arguments, notes)
    if not items:
        reading = read_json(text, decoder)
        if reading.note:
            notes[reading.note] += 1
        items = reading.value if isinstance(reading.value, list) else [reading.value]
    calls = []
    for item in items:
        name = text_of(item.get("name")) if isinstance(item, dict) else None
        arguments = item.get("arguments", {}) if name else None
        if isinstance(arguments, str):
            notes["arguments were text"] += 1
            arguments = read_json(arguments, decoder).value
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
                fields, repairs = read_point(arguments[key], view)
            except ValueError as error:
                notes[f"{key} is {error}"] += 1
                return None
            notes.update(repairs)
            point: dict[str, float] = fields["point"]
            return point
    return None


def _write(value: list[dict[str, Any]], question: Question, view: View) -> str:
    calls = (
        f'{{"name": {json.dumps(call["name"], ensure_ascii=False)}, '
        f'"arguments": {call["arguments"]}}}'
        for call in value
    )
    return "\n".join(f"<tool_call>\n{escape_as_numbers(call)}\n</tool_call>" for call in calls)


_CALLED = pa.struct(
    [
        described("name", pa.string(), "name of the tool", nullable=False),
        described(
            "arguments",
            pa.string(),
            "a JSON object, as the model wrote it; untrusted",
            nullable=False,
        ),
        described(
            "point", point_type(), "the argument `coordinate`, in the displayed original", unit="px"
        ),
    ]
)


def _simulate(question: Question, view: View, chance: Random) -> str:
    tool = json.loads(question.tools or "[]")[0]
    tool = tool.get("function", tool)
    arguments = random_instance(tool.get("parameters", {}), chance)
    call = {"name": tool["name"], "arguments": arguments if isinstance(arguments, dict) else {}}
    return f"<tool_call>\n{json.dumps(call)}\n</tool_call>"


def _draw(value: list[dict[str, Any]]) -> Drawing:
    return Drawing(
        text="\n".join(f"{call['name']} {call['arguments']}" for call in value),
        marks=point_marks(value, text_name="name"),
    )


TASK = Task(
    name="tool_calls",
    version=1,
    media_types=frozenset({"image", "video"}),
    column=described(
        "tool_calls",
        pa.list_(pa.field("element", _CALLED, nullable=False)),
        "calls of the job's tools, in order",
    ),
    prompt=_prompt,
    parse=_parse,
    write=_write,
    simulate=_simulate,
    draw=_draw,
    mark_kind="point",
    metric=None,
    subtitles=None,
    is_prose=False,
)
