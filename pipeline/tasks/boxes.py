"""Read the boxes that a model answers, and the lists of named boxes that two tasks share.

The model answers corners as x1 y1 x2 y2 in 0..1000 of the displayed original's width and height,
whatever size it saw the picture at.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.tasks.read_json import JsonObject, conclude, fenced, first_of, read_json, text_of
from pipeline.tasks.times import clamp_seconds, nearest_pts_seconds, read_seconds
from schemas.task import Parsed, View, box_1000_type, box_type

_CORNERS = ("x1", "y1", "x2", "y2")
_CORNERS_ALSO_MET = ("xmin", "ymin", "xmax", "ymax")
_BOX_KEYS = ("bbox_2d", "bbox", "box_2d", "box")
_TIME_KEYS = ("time", "timestamp", "time_seconds", "seconds")
_NUMBER = re.compile(r"[+-]?\d{1,15}(?:\.\d{0,15})?", re.ASCII)
_MAX_COORDINATE_CHARS = 128
_MAX_DEPTH = 4


@dataclass(frozen=True, kw_only=True)
class Box:
    """One box, with x1 <= x2 and y1 <= y2.

    box: corners in pixels of the displayed original (float).
    box_1000: the model's own numbers for them, 0..1000 (int).
    notes: what was mended.
    """

    box: dict[str, float]
    box_1000: dict[str, int]
    notes: tuple[str, ...]


def box_column(name: str, text_name: str, *, needs_box: bool, description: str) -> pa.Field:
    """Return the typed column for the elements that `read_named_boxes` reads."""
    corners = "upper left and lower right corner in the displayed original"
    pixels = {"description": corners, "unit": "px"}
    thousandths = {"description": "the same corners as the model wrote them", "unit": "1/1000"}
    text = {"description": f"the {text_name}, as the model wrote it"}
    pts = {"description": "PTS of the sampled frame nearest to the answered time; null for images"}
    element = pa.struct(
        [
            pa.field(text_name, pa.string(), nullable=False, metadata=text),
            pa.field("box", box_type(), nullable=not needs_box, metadata=pixels),
            pa.field("box_1000", box_1000_type(), nullable=not needs_box, metadata=thousandths),
            pa.field("pts_seconds", pa.float64(), metadata={**pts, "unit": "s"}),
        ]
    )
    return pa.field(
        name,
        pa.list_(pa.field("element", element, nullable=False)),
        metadata={"description": description},
    )


def read_box(value: Any, width: int, height: int) -> Box:
    """Read one box and scale it to a picture of ``width`` x ``height`` pixels.

    Takes ``[x1, y1, x2, y2]``, ``[[x1, y1], [x2, y2]]``, ``"x1, y1, x2, y2"`` with or without
    brackets, and ``{"x1": .., "y1": .., "x2": .., "y2": ..}``. Corners are clamped to 0..1000 and
    sorted; a box without area stays, noted.

    Raises:
        ValueError: if ``value`` is not four finite numbers.
    """
    notes = []
    numbers = _numbers(value)
    if numbers is not value:
        notes.append("box was not a plain list")
    if any(isinstance(number, str) for number in numbers):
        notes.append("coordinates were text")
        numbers = [_from_text(item) if isinstance(item, str) else item for item in numbers]
    if len(numbers) != 4 or not all(_is_finite(number) for number in numbers):
        raise ValueError("not a box of four numbers")
    corners = [min(max(number, 0), 1000) for number in numbers]
    if corners != numbers:
        notes.append("box clamped to 0..1000")
    (x1, x2), (y1, y2) = sorted(corners[0::2]), sorted(corners[1::2])
    if [x1, y1, x2, y2] != corners:
        notes.append("corners sorted")
    if x1 == x2 or y1 == y2:
        notes.append("box without area")
    box_1000 = [round(number) for number in (x1, y1, x2, y2)]
    if box_1000 != [x1, y1, x2, y2]:
        notes.append("fractions of 1/1000 rounded in box_1000")
    pixels = (x1 * width / 1000, y1 * height / 1000, x2 * width / 1000, y2 * height / 1000)
    return Box(
        box=dict(zip(_CORNERS, pixels, strict=True)),
        box_1000=dict(zip(_CORNERS, box_1000, strict=True)),
        notes=tuple(notes),
    )


def read_named_boxes(
    answer: str,
    view: View,
    *,
    text_name: str,
    text_keys: tuple[str, ...],
    text_if_missing: str | None = None,
    needs_box: bool = True,
) -> Parsed:
    """Read a list of ``{"bbox_2d": [..], <text key>: ..}``, in videos with ``"time"``.

    Elements have ``text_name``, ``box``, ``box_1000``, ``pts_seconds``. Those without a text are
    left out, and noted; those without a box too where it is needed, else their box is None.
    """
    reading = read_json(answer)
    notes: Counter[str] = Counter()
    elements: list[dict[str, Any]] = []
    if isinstance(reading.value, dict):
        notes["an object instead of a list"] += 1
    own_keys = frozenset((*text_keys, *_BOX_KEYS))
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
        boxes = _each_box(first_of(item, _BOX_KEYS, notes))
        if len(boxes) > 1:
            notes[f"several boxes under one {text_name}"] += 1
        for corners in boxes:
            element: dict[str, Any] = {text_name: text, "box": None, "box_1000": None}
            try:
                box = read_box(corners, view.width, view.height)
            except ValueError as error:
                if needs_box:
                    notes[f"left out: {error}"] += 1
                    continue
                notes[f"without its box: {error}"] += 1
            else:
                notes.update(box.notes)
                element |= {"box": box.box, "box_1000": box.box_1000}
            elements.append({**element, "pts_seconds": pts_seconds})
    return conclude(reading, elements, len(items), notes)


def write_named_boxes(
    elements: list[dict[str, Any]], view: View, *, text_name: str, text_key: str
) -> str:
    """Write the list that ``read_named_boxes`` reads, boxes from pixels to 0..1000.

    An element without a box is written with its text alone.
    """
    items = []
    for element in elements:
        item: dict[str, Any] = {}
        if view.media_type == "video" and element.get("pts_seconds") is not None:
            item["time"] = round(element["pts_seconds"], 1)
        if (box := element.get("box")) is not None:
            x1, x2 = _thousandths(box["x1"], box["x2"], view.width)
            y1, y2 = _thousandths(box["y1"], box["y2"], view.height)
            item["bbox_2d"] = [x1, y1, x2, y2]
        item[text_key] = element[text_name]
        items.append(item)
    return fenced(json.dumps(items, ensure_ascii=False))


def _thousandths(low: float, high: float, side: int) -> tuple[int, int]:
    """Scale two corners of one side to 0..1000; what has a length keeps one."""
    first, last = (min(max(round(c * 1000 / side), 0), 1000) for c in (low, high))
    if first == last and low < high:
        first = min(max(math.floor(low * 1000 / side), 0), 999)
        last = first + 1
    return first, last


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


def _each_box(value: Any) -> list[Any]:
    """Split ``[[x1, y1, x2, y2], ..]``, several boxes under one label."""
    is_several = isinstance(value, list) and len(value) > 0 and _are_lists(value, 4)
    return value if is_several else [value]


def _numbers(value: Any) -> list[Any]:
    """Return the items of ``value`` that should be numbers, not yet checked."""
    if isinstance(value, str) and len(value) <= _MAX_COORDINATE_CHARS:
        return [part for part in re.split(r"[\s,;()\[\]]+", value) if part]
    if isinstance(value, dict):
        for keys in (_CORNERS, _CORNERS_ALSO_MET):
            if all(key in value for key in keys):
                return [value[key] for key in keys]
    if isinstance(value, list) and len(value) == 2 and _are_lists(value, 2):
        return [*value[0], *value[1]]
    return value if isinstance(value, list) else []


def _are_lists(items: list[Any], length: int) -> bool:
    return all(isinstance(item, list) and len(item) == length for item in items)


def _from_text(text: str) -> float | None:
    """Return the number in ``text``: int("1_0") and float("nan") are none here."""
    if not _NUMBER.fullmatch(text.strip()):
        return None
    number = float(text)
    return int(number) if number.is_integer() else number


def _is_finite(number: Any) -> bool:
    if isinstance(number, bool) or not isinstance(number, int | float):
        return False
    return abs(number) < 1e15  # false for NaN; no OverflowError for huge ints
