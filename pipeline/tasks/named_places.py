"""Lists of named places, which several tasks share: a label or text, where it is, and when.

A place is a box, a point or a box in space: a row of numbers under a key of its own.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.tasks.numbers import are_lists
from pipeline.tasks.read_json import JsonObject, conclude, fenced, first_of, read_json, text_of
from pipeline.tasks.times import clamp_seconds, nearest_pts_seconds, read_seconds
from schemas.task import Parsed, View

_TIME_KEYS = ("time", "timestamp", "time_seconds", "seconds")
_MAX_DEPTH = 4


@dataclass(frozen=True, kw_only=True)
class Place:
    """How an element says where it is.

    keys: of the answer; the documented one first. num_numbers: in one place.
    fields: of the typed column. read: the answered value -> these fields and what was mended;
    ValueError if it is no such place. write: the fields -> what the model would answer, or None.
    """

    keys: tuple[str, ...]
    num_numbers: int
    fields: tuple[pa.Field, ...]
    read: Callable[[Any, View], tuple[dict[str, Any], Sequence[str]]]
    write: Callable[[dict[str, Any], View], list[float] | None]


def place_column(
    name: str, place: Place, text_name: str, *, needs_place: bool = True, description: str
) -> pa.Field:
    """Return the typed column for the elements that `read_named_places` reads."""
    text = {"description": f"the {text_name}, as the model wrote it"}
    pts = {"description": "PTS of the sampled frame nearest to the answered time; null for images"}
    element = pa.struct(
        [
            pa.field(text_name, pa.string(), nullable=False, metadata=text),
            *(f.with_nullable(f.nullable or not needs_place) for f in place.fields),
            pa.field("pts_seconds", pa.float64(), metadata={**pts, "unit": "s"}),
        ]
    )
    return pa.field(
        name,
        pa.list_(pa.field("element", element, nullable=False)),
        metadata={"description": description},
    )


def read_named_places(
    answer: str,
    view: View,
    place: Place,
    *,
    text_name: str,
    text_keys: tuple[str, ...],
    text_if_missing: str | None = None,
    needs_place: bool = True,
    id_keys: tuple[str, ...] = (),
) -> Parsed:
    """Read a list of ``{<place's key>: [..], <text key>: ..}``, in videos with ``"time"``.

    Elements have ``text_name``, the place's fields and ``pts_seconds``. Those without a text are
    left out, and noted; those without a place too where it is needed, else its fields are None.
    With ``id_keys``, elements have an ``id`` as well: text, or None.
    """
    reading = read_json(answer)
    notes: Counter[str] = Counter()
    elements: list[dict[str, Any]] = []
    if isinstance(reading.value, dict):
        notes["an object instead of a list"] += 1
    own_keys = frozenset((*text_keys, *place.keys))
    items = list(_flatten(reading.value, own_keys, {}, notes))
    for item in items:
        if not isinstance(item, dict):
            notes["left out: not an object"] += 1
            continue
        named = first_of(item, text_keys, notes)
        text = text_of(named)
        if text is None and named is None and text_if_missing is not None:
            notes[f"{text_name} not given, the only one asked for assumed"] += 1
            text = text_if_missing
        elif text is None:
            notes[f"left out: no {text_name}"] += 1
            continue
        elif not isinstance(named, str):
            notes[f"{text_name} was not text"] += 1
        pts_seconds = _pts_seconds(item, view, notes)
        places = _each_place(first_of(item, place.keys, notes), place.num_numbers)
        if len(places) > 1:
            notes[f"several places under one {text_name}"] += 1
        for numbers in places:
            fields: dict[str, Any] = {field.name: None for field in place.fields}
            try:
                fields, mended = place.read(numbers, view)
            except ValueError as error:
                if needs_place:
                    notes[f"left out: {error}"] += 1
                    continue
                notes[f"without its {place.fields[0].name}: {error}"] += 1
            else:
                notes.update(mended)
            elements.append({text_name: text, **fields, "pts_seconds": pts_seconds})
            if id_keys:
                elements[-1]["id"] = text_of(first_of(item, id_keys, Counter()))
    return conclude(reading, elements, len(items), notes)


def write_named_places(
    elements: list[dict[str, Any]], view: View, place: Place, *, text_name: str, text_key: str
) -> str:
    """Write the list that ``read_named_places`` reads, such as boxes from pixels to 0..1000.

    An element without a place is written with its text alone.
    """
    items = []
    for element in elements:
        item: dict[str, Any] = {}
        if view.media_type == "video" and element.get("pts_seconds") is not None:
            item["time"] = round(element["pts_seconds"], 1)
        if (numbers := place.write(element, view)) is not None:
            item[place.keys[0]] = numbers
        item[text_key] = element[text_name]
        items.append(item)
    return fenced(json.dumps(items, ensure_ascii=False))


def _flatten(
    value: Any,
    own_keys: frozenset[str],
    around: dict[str, Any],
    notes: Counter[str],
    depth: int = 0,
) -> Iterator[Any]:
    """Yield the elements of a list, also of ``{"objects": [..]}`` and ``{"time": .., "x": [..]}``.

    own_keys: what tells an element from an object around a list of them.
    around: members of objects around, such as the time, which their elements take over.
    """
    if isinstance(value, list) and depth < _MAX_DEPTH:
        for item in value:
            yield from _flatten(item, own_keys, around, notes, depth + 1)
    elif isinstance(value, dict) and not own_keys & value.keys() and depth < _MAX_DEPTH:
        lists = {key: item for key, item in value.items() if _may_hold_elements(item)}
        if not lists and value:
            yield value
        members = {key: item for key, item in value.items() if key not in lists}
        for item in lists.values():
            notes["elements were inside an object"] += 1
            yield from _flatten(item, own_keys, {**around, **members}, notes, depth + 1)
    elif isinstance(value, dict):
        if isinstance(value, JsonObject) and len(value.pairs) > len(value):
            notes["repeated key, its last value taken"] += 1
        yield {**around, **value}
    elif value is not None:
        yield value


def _may_hold_elements(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict | list) for item in value)


def _pts_seconds(item: dict[str, Any], view: View, notes: Counter[str]) -> float | None:
    """Return the PTS of the sampled frame that the element's time means; None for images."""
    if view.media_type != "video":
        return None
    seconds = read_seconds(first_of(item, _TIME_KEYS, notes))
    if seconds is None:
        notes["no time"] += 1
        return None
    return nearest_pts_seconds(clamp_seconds(seconds, view, notes), view)


def _each_place(value: Any, num_numbers: int) -> list[Any]:
    """Split ``[[x1, y1, x2, y2], ..]``, several places under one label."""
    is_several = isinstance(value, list) and len(value) > 0 and are_lists(value, num_numbers)
    return value if is_several else [value]
