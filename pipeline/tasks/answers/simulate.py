"""Parts of plausible answers, which the ``simulate`` functions of tasks share."""

import json
from random import Random
from typing import Any

from pipeline.tasks.answers.read_json import fenced
from schemas.task import Question, View

THINGS = ("person", "car", "dog", "bicycle", "tree", "boat", "sign", "bird")
ACTIONS = ("crosses the street", "stands still", "moves to the left", "turns around", "leaves")
WORDS = ("EXIT", "OPEN", "PLATFORM 4", "MARKET", "NO ENTRY", "GALLERY")


def random_sentence(question: Question, view: View, chance: Random) -> str:
    """Write one sentence; the ``simulate`` of tasks whose answer is a text."""
    return f"A {chance.choice(THINGS)} {chance.choice(ACTIONS)} near a {chance.choice(THINGS)}."


def random_span(view: View, chance: Random) -> tuple[float, float]:
    """Return start and end in seconds of a time span within the unit."""
    start, end = view.start_seconds or 0.0, view.end_seconds or 0.0
    first, second = sorted(chance.uniform(start, end) for _ in range(2))
    return round(first, 1), round(second, 1)


def random_box(chance: Random) -> list[int]:
    """Return x1, y1, x2, y2 in 0..1000 of the picture's sides."""
    x1, y1 = chance.randrange(900), chance.randrange(900)
    return [x1, y1, chance.randrange(x1 + 1, 1000), chance.randrange(y1 + 1, 1000)]


def random_label(question: Question, chance: Random) -> str:
    """Return one of the question's labels; without labels, one of THINGS."""
    return chance.choice(question.labels or THINGS)


def one_place(place: dict[str, Any], view: View, chance: Random) -> str:
    """Write a list with one place, in videos with its time."""
    if view.media_type == "video":
        place = {"time": random_span(view, chance)[0], **place}
    return fenced_json([place])


def fenced_json(value: Any) -> str:
    """Write a value as JSON in a code fence."""
    return fenced(json.dumps(value))


def random_instance(schema: dict[str, Any], chance: Random) -> Any:
    """Return a value that fits a JSON Schema of types, properties, items, enums and limits."""
    if "const" in schema or schema.get("enum"):
        return schema.get("const", chance.choice(schema.get("enum") or [None]))
    for several in ("anyOf", "oneOf"):
        if schema.get(several):
            return random_instance(schema[several][0], chance)
    kinds = schema.get("type", "object" if "properties" in schema else "string")
    kind = kinds if isinstance(kinds, str) else kinds[0]
    if kind == "object":
        return {k: random_instance(v, chance) for k, v in schema.get("properties", {}).items()}
    if kind == "array":
        items = schema.get("items", {})
        return [random_instance(items, chance) for _ in range(schema.get("minItems", 1))]
    if kind in ("integer", "number"):
        minimum = schema.get("minimum", 0)
        return chance.randint(int(minimum), int(schema.get("maximum", minimum + 10)))
    return {"boolean": chance.random() < 0.5, "null": None}.get(kind, chance.choice(THINGS))
