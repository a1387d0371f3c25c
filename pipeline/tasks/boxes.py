"""Read and write the boxes that a model answers.

The model answers corners as x1 y1 x2 y2 in 0..1000 of the displayed original's width and height,
whatever size it saw the picture at.
"""

import math
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.tasks.named_places import Place
from pipeline.tasks.numbers import read_numbers
from schemas.task import View, box_1000_type, box_type

_CORNERS = ("x1", "y1", "x2", "y2")
_CORNERS_ALSO_MET = ("xmin", "ymin", "xmax", "ymax")


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


def read_box(value: Any, width: int, height: int) -> Box:
    """Read one box and scale it to a picture of ``width`` x ``height`` pixels.

    Takes ``[x1, y1, x2, y2]``, ``[[x1, y1], [x2, y2]]``, ``"x1, y1, x2, y2"`` with or without
    brackets, and ``{"x1": .., "y1": .., "x2": .., "y2": ..}``. Corners are clamped to 0..1000 and
    sorted; a box without area stays, noted.

    Raises:
        ValueError: if ``value`` is not four finite numbers.
    """
    numbers, notes = read_numbers(
        value, _CORNERS, _CORNERS_ALSO_MET, what="box", words="a box of four numbers"
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
    """Scale two corners of one side to 0..1000; what has a length keeps one."""
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


_PIXELS = "upper left and lower right corner in the displayed original"
BOX = Place(
    keys=("bbox_2d", "bbox", "box_2d", "box"),
    num_numbers=4,
    fields=(
        pa.field(
            "box", box_type(), nullable=False, metadata={"description": _PIXELS, "unit": "px"}
        ),
        pa.field(
            "box_1000",
            box_1000_type(),
            nullable=False,
            metadata={"description": "the same corners as the model wrote them", "unit": "1/1000"},
        ),
    ),
    read=_read,
    write=_write,
)
