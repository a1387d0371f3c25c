"""What the simulated engine says: answers in the model's own formats, one kind for each task."""

import json
from collections.abc import Callable
from random import Random
from typing import Any

from schemas.task import Question
from schemas.unit import Unit

_THINGS = ("person", "car", "dog", "bicycle", "tree", "boat", "sign", "bird")
_DEEDS = ("crosses the street", "stands still", "moves to the left", "turns around", "leaves")
_WORDS = ("EXIT", "OPEN", "PLATFORM 4", "MARKET", "NO ENTRY", "GALLERY")


def answer_text(unit: Unit, question: Question, chance: Random) -> str:
    """A plausible answer that the task's parser can read."""
    write = _WRITERS.get(question.task, _sentence)
    return write(unit, question, chance)


def _sentence(unit: Unit, question: Question, chance: Random) -> str:
    return f"A {chance.choice(_THINGS)} {chance.choice(_DEEDS)} near a {chance.choice(_THINGS)}."


def _ocr(unit: Unit, question: Question, chance: Random) -> str:
    return "\n".join(chance.sample(_WORDS, 2))


def _stretch(unit: Unit, chance: Random) -> tuple[float, float]:
    """A part of what the unit shows, on the clock that the model is told."""
    sampling = unit.seen[0].sampling
    start, end = sampling.start_seconds or 0.0, sampling.end_seconds or 0.0
    first, second = sorted(chance.uniform(start, end) - sampling.origin_seconds for _ in range(2))
    return round(first, 1), round(second, 1)


def _events(unit: Unit, question: Question, chance: Random) -> str:
    times = sorted(_stretch(unit, chance) for _ in range(2))
    said = {f"{a} - {b}": _sentence(unit, question, chance) for a, b in times}
    return _fenced(said)


def _moments(unit: Unit, question: Question, chance: Random) -> str:
    start, end = _stretch(unit, chance)
    return _fenced([{"start": start, "end": end}])


def _places(unit: Unit, chance: Random, place: dict[str, Any]) -> str:
    if unit.seen[0].media.media_type == "video":
        place = {"time": _stretch(unit, chance)[0], **place}
    return _fenced([place])


def _box(chance: Random) -> list[int]:
    x1, y1 = chance.randrange(900), chance.randrange(900)
    return [x1, y1, chance.randrange(x1 + 1, 1000), chance.randrange(y1 + 1, 1000)]


def _label(question: Question, chance: Random) -> str:
    return chance.choice(question.labels or _THINGS)


def _text_spans(unit: Unit, question: Question, chance: Random) -> str:
    return _places(unit, chance, {"bbox_2d": _box(chance), "text_content": chance.choice(_WORDS)})


def _objects(unit: Unit, question: Question, chance: Random) -> str:
    return _places(unit, chance, {"bbox_2d": _box(chance), "label": _label(question, chance)})


def _points(unit: Unit, question: Question, chance: Random) -> str:
    return _places(unit, chance, {"point_2d": _box(chance)[:2], "label": _label(question, chance)})


def _tracks(unit: Unit, question: Question, chance: Random) -> str:
    label, (start, end) = _label(question, chance), _stretch(unit, chance)
    return _fenced(
        [{"time": t, "bbox_2d": _box(chance), "label": label, "track_id": 1} for t in (start, end)]
    )


def _objects_3d(unit: Unit, question: Question, chance: Random) -> str:
    """A thing of half a metre, some metres in front of the camera."""
    middle = [chance.uniform(-0.5, 0.5), chance.uniform(-0.5, 0.5), chance.uniform(4.0, 8.0)]
    sides = [chance.uniform(0.2, 0.6) for _ in range(3)]
    box = [round(number, 2) for number in (*middle, *sides, 0.0, 0.0, chance.uniform(0, 0.5))]
    return _fenced([{"bbox_3d": box, "label": _label(question, chance)}])


def _fields(unit: Unit, question: Question, chance: Random) -> str:
    return _fenced({key: chance.choice(_WORDS) for key in question.keys or ("title",)})


def _document(unit: Unit, question: Question, chance: Random) -> str:
    box, word = _box(chance), chance.choice(_WORDS)
    if question.style == "markdown":
        return f"# {word}\n\n<!-- Image ({', '.join(map(str, box))}) -->"
    return f'<h1 data-bbox="{" ".join(map(str, box))}">{word}</h1>'


def _tool_calls(unit: Unit, question: Question, chance: Random) -> str:
    tool = json.loads(question.tools or "[]")[0]
    tool = tool.get("function", tool)
    arguments = _instance(tool.get("parameters", {}), chance)
    call = {"name": tool["name"], "arguments": arguments if isinstance(arguments, dict) else {}}
    return f"<tool_call>\n{json.dumps(call)}\n</tool_call>"


def _custom(unit: Unit, question: Question, chance: Random) -> str:
    if question.json_schema is None:
        return _sentence(unit, question, chance)
    return _fenced(_instance(json.loads(question.json_schema), chance))


def _instance(schema: dict[str, Any], chance: Random) -> Any:
    """A value for the usual schemas: types, properties, items, enums, limits of numbers."""
    if "const" in schema or schema.get("enum"):
        return schema.get("const", chance.choice(schema.get("enum") or [None]))
    for several in ("anyOf", "oneOf"):
        if schema.get(several):
            return _instance(schema[several][0], chance)
    kinds = schema.get("type", "object" if "properties" in schema else "string")
    kind = kinds if isinstance(kinds, str) else kinds[0]
    if kind == "object":
        return {k: _instance(v, chance) for k, v in schema.get("properties", {}).items()}
    if kind == "array":
        items = schema.get("items", {})
        return [_instance(items, chance) for _ in range(schema.get("minItems", 1))]
    if kind in ("integer", "number"):
        least = schema.get("minimum", 0)
        return chance.randint(int(least), int(schema.get("maximum", least + 10)))
    return {"boolean": chance.random() < 0.5, "null": None}.get(kind, chance.choice(_THINGS))


def _fenced(value: Any) -> str:
    return f"```json\n{json.dumps(value)}\n```"


_WRITERS: dict[str, Callable[[Unit, Question, Random], str]] = {
    "events": _events,
    "moments": _moments,
    "ocr": _ocr,
    "text_spans": _text_spans,
    "objects": _objects,
    "points": _points,
    "tracks": _tracks,
    "objects_3d": _objects_3d,
    "fields": _fields,
    "document": _document,
    "tool_calls": _tool_calls,
    "custom": _custom,
}
"""All others are answered by a sentence."""
