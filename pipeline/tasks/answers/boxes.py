"""Read, write and draw boxes.

The model writes corners as x1, y1, x2, y2 in 0..1000 of the displayed original's width and height;
the size at which it saw the picture does not matter.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pipeline.tasks.answers.named_places import Place
from pipeline.tasks.answers.numbers import read_numbers
from schemas.tables.columns import described
from schemas.task import Drawing, Mark, View, box_1000_type, box_type

_CORNERS = ("x1", "y1", "x2", "y2")
_OTHER_NAMES = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True, kw_only=True)
class Box:
    """One box, with x1 <= x2 and y1 <= y2.

    box: corners in pixels of the displayed original (float).
    box_1000: the model's own numbers for them, 0..1000 (int).
    notes: what was repaired.
    """

    box: dict[str, float]
    box_1000: dict[str, int]
    notes: tuple[str, ...]


def read_box(value: Any, width: int, height: int) -> Box:
    """Read one box and scale it to a picture of ``width`` x ``height`` pixels.

    Accepts ``[x1, y1, x2, y2]``, ``[[x1, y1], [x2, y2]]``, ``"x1, y1, x2, y2"`` with or without
    brackets, and ``{"x1": .., "y1": .., "x2": .., "y2": ..}``. Corners are clamped to 0..1000 and
    sorted; a box without area is kept, with a note.

    Raises:
        ValueError: if ``value`` is not four finite numbers.
    """
    numbers, notes = read_numbers(
        value, _CORNERS, _OTHER_NAMES, what="box", words="a box of four numbers"
    )
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


def _thousandths(low: float, high: float, side: int) -> tuple[int, int]:
    """Scale two corners of one side to 0..1000; a length above 0 stays above 0."""
    first, last = (min(max(round(c * 1000 / side), 0), 1000) for c in (low, high))
    if first == last and low < high:
        first = min(max(math.floor(low * 1000 / side), 0), 999)
        last = first + 1
    return first, last


def _read(value: Any, view: View) -> tuple[dict[str, Any], tuple[str, ...]]:
    box = read_box(value, view.width, view.height)
    return {"box": box.box, "box_1000": box.box_1000}, box.notes


def _write(element: dict[str, Any], view: View) -> list[float] | None:
    box = element.get("box")
    if box is None:
        return None
    x1, x2 = _thousandths(box["x1"], box["x2"], view.width)
    y1, y2 = _thousandths(box["y1"], box["y2"], view.height)
    return [x1, y1, x2, y2]


def box_marks(
    elements: Iterable[dict[str, Any]], *, text_name: str, box_name: str = "box"
) -> tuple[Mark, ...]:
    """Return a mark for each element that has a box. text_name: the field with its label."""
    return tuple(
        Mark(
            label=element[text_name],
            pts_seconds=element.get("pts_seconds"),
            box=corners_of(element[box_name]),
        )
        for element in elements
        if element.get(box_name)
    )


def draw_boxes(value: list[dict[str, Any]], *, text_name: str, box_name: str = "box") -> Drawing:
    """Show the boxes of a list; the ``draw`` of tasks with nothing else to show."""
    return Drawing(marks=box_marks(value, text_name=text_name, box_name=box_name))


def corners_of(box: dict[str, float]) -> tuple[float, float, float, float]:
    """Return a typed box as x1, y1, x2, y2."""
    return box["x1"], box["y1"], box["x2"], box["y2"]


_PIXELS = "upper left and lower right corner in the displayed original"
BOX = Place(
    keys=("bbox_2d", "bbox", "box_2d", "box", "bounding_box", "边界框", "坐标"),
    num_numbers=4,
    fields=(
        described("box", box_type(), _PIXELS, unit="px", nullable=False),
        described(
            "box_1000",
            box_1000_type(),
            "the same corners as the model wrote them",
            unit="1/1000",
            nullable=False,
        ),
    ),
    read=_read,
    write=_write,
)
