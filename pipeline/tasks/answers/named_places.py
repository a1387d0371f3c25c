"""Lists of named places, which several tasks share: a label or text, its place, and its time.

A place is a list of numbers under a key of the element: a box, a point or a box in space.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.tasks.answers.decode_json import JsonObject
from pipeline.tasks.answers.limits import check_deadline
from pipeline.tasks.answers.numbers import are_lists, lines_with_numbers
from pipeline.tasks.answers.read_json import (
    Reading,
    conclude,
    fenced,
    first_of,
    read_json,
    text_of,
)
from pipeline.tasks.answers.times import clamp_seconds, nearest_pts_seconds, read_seconds
from schemas.tables.columns import described
from schemas.task import Parsed, View

_TIME_KEYS = ("time", "timestamp", "time_seconds", "seconds", "时间")
_LIST_NAMES = """
objects object results result detections annotations items data boxes bboxes bbox_list texts
text_lines lines words instances elements points answer output 物体 结果 文字
"""
_WRAPPERS = frozenset(_LIST_NAMES.split())
"""Names of lists of elements, which are no labels."""
_MAX_DEPTH = 4


@dataclass(frozen=True, kw_only=True)
class Place:
    """One kind of place: its keys in an answer, its fields in the typed column.

    keys: keys of the answer that hold the numbers; the documented one first.
    num_numbers: numbers in one place.
    fields: the Arrow fields of the typed column.
    read: the answer's value -> the fields and what was repaired; ValueError if it is no place.
    write: the fields -> the numbers as the model writes them, or None without a place.
    """

    keys: tuple[str, ...]
    num_numbers: int
    fields: "tuple[pa.Field[Any], ...]"
    read: Callable[[Any, View], tuple[dict[str, Any], Sequence[str]]]
    write: Callable[[dict[str, Any], View], list[float] | None]


@dataclass(frozen=True, kw_only=True)
class NamedPlaces:
    """Format of a list of named places.

    text_name: name of the label or text in the typed column.
    text_keys: its keys in the answer; the first is the documented one, which answers are written
        with.
    needs_place: leave out elements without a place; else their place is null.
    id_keys: keys of the answer that hold an id; empty: elements have no ``id``.
    """

    place: Place
    text_name: str
    text_keys: tuple[str, ...]
    needs_place: bool = True
    id_keys: tuple[str, ...] = ()

    @property
    def own_keys(self) -> tuple[str, ...]:
        """The keys by which an object is an element."""
        return *self.text_keys, *self.place.keys

    @property
    def shared_keys(self) -> tuple[str, ...]:
        """The keys that an element may have from the object around it."""
        return *_TIME_KEYS, *self.id_keys


def place_column(name: str, form: NamedPlaces, *, description: str) -> "pa.Field[Any]":
    """Return the typed column of the elements that `read_named_places` reads."""
    text = {"description": f"the {form.text_name}, as the model wrote it"}
    pts = {"description": "PTS of the sampled frame nearest to the answered time; null for images"}
    element = pa.struct(
        [
            pa.field(form.text_name, pa.string(), nullable=False, metadata=text),
            *(f.with_nullable(f.nullable or not form.needs_place) for f in form.place.fields),
            pa.field("pts_seconds", pa.float64(), metadata={**pts, "unit": "s"}),
        ]
    )
    return described(name, pa.list_(pa.field("element", element, nullable=False)), description)


def read_named_places(
    answer: str, view: View, form: NamedPlaces, *, text_if_missing: str | None = None
) -> Parsed:
    """Read a list of ``{<place key>: [..], <text key>: ..}``, in videos with ``"time"``.

    Elements have the text, the place's fields, ``pts_seconds`` and, with ``id_keys``, ``id``: text
    or None. Elements without a text are left out, with a note.

    text_if_missing: the text of elements that have none of the text keys.
    """
    reading = read_json(answer)
    notes: Counter[str] = Counter()
    elements: list[dict[str, Any]] = []
    if isinstance(reading.value, dict):
        notes["an object instead of a list"] += 1
    items = list(_flatten(reading.value, form, {}, notes))
    if "{" not in answer and (lines := lines_with_numbers(answer, form.place.num_numbers)):
        items = [{form.text_keys[0]: text, form.place.keys[0]: n} for text, n in lines]
        reading, notes = Reading(value=items), Counter(["read from lines of text, not from JSON"])
    for item in items:
        check_deadline()
        if not isinstance(item, dict):
            notes["left out: not an object"] += 1
            continue
        text = _read_text(item, form, text_if_missing, notes)
        if text is None:
            notes[f"left out: no {form.text_name}"] += 1
            continue
        pts_seconds = _pts_seconds(item, view, notes)
        for fields in _read_places(item, form, view, notes):
            element = {form.text_name: text, **fields, "pts_seconds": pts_seconds}
            if form.id_keys:
                element["id"] = text_of(first_of(item, form.id_keys, Counter()))
            elements.append(element)
    return conclude(reading, elements, len(items), notes)


def write_named_places(elements: list[dict[str, Any]], view: View, form: NamedPlaces) -> str:
    """Write the list that ``read_named_places`` reads; places go from pixels to 0..1000.

    An element without a place is written with its text alone.
    """
    items = []
    for element in elements:
        item: dict[str, Any] = {}
        if view.media_type == "video" and element.get("pts_seconds") is not None:
            item["time"] = round(element["pts_seconds"], 1)
        if (numbers := form.place.write(element, view)) is not None:
            item[form.place.keys[0]] = numbers
        item[form.text_keys[0]] = element[form.text_name]
        items.append(item)
    return fenced(json.dumps(items, ensure_ascii=False))


def _read_text(
    item: dict[str, Any], form: NamedPlaces, text_if_missing: str | None, notes: Counter[str]
) -> str | None:
    """Return the element's text; None if it has none."""
    named = first_of(item, form.text_keys, notes)
    if named is None and text_if_missing is not None:
        notes[f"{form.text_name} not given: the only requested one assumed"] += 1
        return text_if_missing
    text = text_of(named)
    if text is not None and not isinstance(named, str):
        notes[f"{form.text_name} was not text"] += 1
    return text


def _read_places(
    item: dict[str, Any], form: NamedPlaces, view: View, notes: Counter[str]
) -> Iterator[dict[str, Any]]:
    """Yield the typed fields of each of the element's places."""
    place = form.place
    places = _split_places(first_of(item, place.keys, notes), place.num_numbers)
    if len(places) > 1:
        notes[f"several places under one {form.text_name}"] += 1
    for numbers in places:
        try:
            fields, repairs = place.read(numbers, view)
        except ValueError as error:
            if form.needs_place:
                notes[f"left out: {error}"] += 1
                continue
            notes[f"without its {place.fields[0].name}: {error}"] += 1
            fields = {field.name: None for field in place.fields}
        else:
            notes.update(repairs)
        yield fields


def _flatten(
    value: Any,
    form: NamedPlaces,
    around: dict[str, Any],
    notes: Counter[str],
    depth: int = 0,
) -> Iterator[Any]:
    """Yield the elements of a list, also of ``{"objects": [..]}`` and ``{"time": .., "x": [..]}``.

    An object with none of an element's keys may hold lists of elements, or places by their label.

    around: members of the objects around an element that it inherits, such as the time.
    """
    if isinstance(value, list) and depth < _MAX_DEPTH:
        for item in value:
            yield from _flatten(item, form, around, notes, depth + 1)
    elif isinstance(value, JsonObject):
        if any(key in value for key in form.own_keys):
            parts = value.split(form.own_keys, form.shared_keys)
            if len(parts) > 1:
                notes["several elements in one object"] += 1
            elif len(value.pairs) > len(value):
                notes["repeated key, its last value taken"] += 1
            yield from ({**around, **part} for part in parts)
        elif depth < _MAX_DEPTH:
            yield from _flatten_members(value, form, around, notes, depth)
        else:
            yield value
    elif value is not None:
        yield value


def _flatten_members(
    value: JsonObject,
    form: NamedPlaces,
    around: dict[str, Any],
    notes: Counter[str],
    depth: int,
) -> Iterator[Any]:
    """Yield the elements in the members of an object that is none itself."""
    place_key, text_key = form.place.keys[0], form.text_keys[0]
    by_label, lists, members = list[dict[str, Any]](), [], dict(around)
    for key, member in value.pairs:
        is_label = key.casefold() not in _WRAPPERS
        if is_label and _is_place(member, form.place):
            by_label.append({text_key: key, place_key: member})
        elif is_label and _lacks_only_text(member, form):
            by_label += [
                {text_key: key, **item}
                for item in (member if isinstance(member, list) else [member])
            ]
        elif _may_hold_elements(member):
            lists.append(member)
        elif key in form.shared_keys:
            members[key] = member
    if not by_label and not lists and value:
        yield value
    if by_label:
        notes[f"keyed by {form.text_name}"] += 1
    yield from ({**members, **item} for item in by_label)
    for item in lists:
        notes["elements were inside an object"] += 1
        yield from _flatten(item, form, members, notes, depth + 1)


def _is_place(value: Any, place: Place) -> bool:
    """Whether a value is the numbers of one place, or a list of such lists."""
    return isinstance(value, list) and (
        (
            len(value) == place.num_numbers
            and all(isinstance(n, int | float) and not isinstance(n, bool) for n in value)
        )
        or (len(value) > 0 and are_lists(value, place.num_numbers))
    )


def _lacks_only_text(value: Any, form: NamedPlaces) -> bool:
    """Whether a value is an element without its text, or a list of such elements."""
    items = value if isinstance(value, list) else [value]
    return bool(items) and all(
        isinstance(item, dict)
        and any(key in item for key in form.place.keys)
        and not any(key in item for key in form.text_keys)
        for item in items
    )


def _may_hold_elements(value: Any) -> bool:
    """Whether a value may be a list of elements, or an object around one."""
    if isinstance(value, dict):
        return any(map(_may_hold_elements, value.values()))
    return isinstance(value, list) and all(isinstance(item, dict | list) for item in value)


def _pts_seconds(item: dict[str, Any], view: View, notes: Counter[str]) -> float | None:
    """Return the PTS of the sampled frame nearest to the element's time; None for images."""
    if view.media_type != "video":
        return None
    seconds = read_seconds(first_of(item, _TIME_KEYS, notes))
    if seconds is None:
        notes["no time"] += 1
        return None
    return nearest_pts_seconds(clamp_seconds(seconds, view, notes), view)


def _split_places(value: Any, num_numbers: int) -> list[Any]:
    """Split ``[[x1, y1, x2, y2], ..]``, several places under one label."""
    is_several = isinstance(value, list) and len(value) > 0 and are_lists(value, num_numbers)
    return value if is_several else [value]
