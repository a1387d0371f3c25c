"""Find boxes and points in training answers, check them, and convert pixels to 0..1000.

They are found by their keys, such as ``"bbox_2d": [..]``, and each value is parsed by itself: the
rest of the text need not be valid JSON, and stays unchanged when the numbers are rewritten.
``pipeline.tasks.answers.read_json`` does not give the position of a number in the text.
"""

import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_LENGTHS = {"bbox_2d": 4, "bbox": 4, "box_2d": 4, "point_2d": 2}
_KEY = re.compile(rf"""(["'])({"|".join(_LENGTHS)})\1\s*:\s*""")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?")
_DECODER = json.JSONDecoder()
_MAX_NUMBER = 1e9  # excludes NaN and Infinity, which Python's JSON decoder accepts
_MAX_SHOWN = 60

SLACK_PIXELS = 1
"""How far a coordinate may be outside of the media: annotation tools round up, or count from 1."""


@dataclass(frozen=True, kw_only=True)
class Marks:
    """The value of one key: a box, a point, or a list of them.

    start, end: position of the value in the text.
    places: (x1, y1, x2, y2) of each box, (x, y) of each point; empty for null and ``[]``.
    """

    key: str
    start: int
    end: int
    places: tuple[tuple[float, ...], ...]


class MarksError(ValueError):
    """The value of a key is not a box or point."""


def find_marks(text: str) -> list[Marks]:
    """Find the boxes and points in an answer; ``null`` and ``[]`` are left out.

    Raises:
        MarksError: a value is something else, or not valid JSON.
    """
    return [marks for match in _KEY.finditer(text) if (marks := _marks(text, match)).places]


def _marks(text: str, match: re.Match[str]) -> Marks:
    key, start = match[2], match.end()
    try:
        value, end = _DECODER.raw_decode(text, start)
    except (ValueError, RecursionError):
        raise MarksError(f"{key} is not valid JSON: {text[start : start + _MAX_SHOWN]}") from None
    places = _places(value, _LENGTHS[key])
    if not places and value not in (None, []):
        shown = text[start:end][:_MAX_SHOWN]
        raise MarksError(f"{key} must be {_LENGTHS[key]} numbers, got {shown}")
    return Marks(key=key, start=start, end=end, places=places)


def _places(value: Any, length: int) -> tuple[tuple[float, ...], ...]:
    """The lists of ``length`` numbers that ``value`` is or contains; empty for other values."""
    several = value if isinstance(value, list) and value and isinstance(value[0], list) else [value]
    for numbers in several:
        if not isinstance(numbers, list) or len(numbers) != length:
            return ()
        if not all(type(n) in (int, float) and abs(n) < _MAX_NUMBER for n in numbers):
            return ()
    return tuple(map(tuple, several))


def is_over_1000(found: Sequence[Marks]) -> bool:
    """Whether a coordinate is over 1000, so that it must be in pixels."""
    return any(n > 1000 for marks in found for place in marks.places for n in place)


def are_inside(found: Sequence[Marks], width: int, height: int) -> bool:
    """Whether all coordinates, read as pixels, are within media of ``width`` x ``height``."""
    return not any(_outside(place, width, height) for marks in found for place in marks.places)


def faults_1000(found: Sequence[Marks]) -> list[str]:
    """Messages about coordinates that are not valid in 0..1000."""
    faults = []
    for marks in found:
        for place in marks.places:
            if wrong := [n for n in place if not 0 <= n <= 1000]:
                fault: str | None = f"{wrong[0]:g} is not in 0..1000"
            elif len(place) == 4 and max(place) <= 1:
                fault = "is it in 0..1? it must be in 0..1000"
            else:
                fault = _shape_fault(place)
            if fault:
                faults.append(f"{marks.key} {_brief(place)}: {fault}")
    return faults


def faults_pixels(found: Sequence[Marks], width: int, height: int) -> list[str]:
    """Messages about coordinates in pixels that a conversion to 0..1000 would not correct."""
    faults = []
    for marks in found:
        for place in marks.places:
            scaled = [_to_1000(n, side) for n, side in _with_sides(place, width, height)]
            if wrong := _outside(place, width, height):
                fault: str | None = f"{wrong[0]:g} is outside the {width} x {height} pixels"
            elif len(place) == 4 and max(place) <= 1 and min(width, height) > 1:
                fault = "is it in 0..1? it must be in pixels"
            elif (fault := _shape_fault(place)) is None and (fault := _shape_fault(scaled)):
                fault = f"in 0..1000 it would be {_brief(scaled)}: {fault}"
            if fault:
                faults.append(f"{marks.key} {_brief(place)}: {fault}")
    return faults


def pixels_to_1000(text: str, width: int, height: int) -> str:
    """Rewrite the coordinates in an answer; the rest of the text stays unchanged.

    Raises:
        MarksError: a value is not a box or point.
    """
    parts, at = [], 0
    for marks in find_marks(text):
        value = text[marks.start : marks.end]
        parts += [text[at : marks.start], _rewritten(value, width, height)]
        at = marks.end
    return "".join([*parts, text[at:]])


def _rewritten(value: str, width: int, height: int) -> str:
    sides = itertools.cycle((width, height))
    return _NUMBER.sub(lambda number: str(_to_1000(float(number[0]), next(sides))), value)


def _to_1000(pixels: float, side: int) -> int:
    """The same rounding as ``pipeline.tasks.answers.boxes.BOX.write``."""
    return min(max(round(pixels * 1000 / side), 0), 1000)


def _outside(place: Sequence[float], width: int, height: int) -> list[float]:
    sides = _with_sides(place, width, height)
    return [n for n, side in sides if not 0 <= n <= side + SLACK_PIXELS]


def _with_sides(place: Sequence[float], width: int, height: int) -> list[tuple[float, int]]:
    return list(zip(place, itertools.cycle((width, height)), strict=False))


def _shape_fault(place: Sequence[float]) -> str | None:
    if len(place) != 4:
        return None
    x1, y1, x2, y2 = place
    if x1 > x2 or y1 > y2:
        axis = "x" if x1 > x2 else "y"
        return f"{axis}1 is over {axis}2 (is it x, y, width, height?)"
    return "it has no area" if x1 == x2 or y1 == y2 else None


def _brief(place: Sequence[float]) -> str:
    return f"[{', '.join(f'{n:g}' for n in place)}]"
