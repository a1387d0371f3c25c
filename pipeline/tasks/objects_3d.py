"""Objects in space: things in an image with a label and a box in metres, as the camera sees them.

The model answers ``[x, y, z, x_size, y_size, z_size, roll, pitch, yaw]``: the centre in metres in
the camera's frame (x right, y down, z forward), the sizes, and angles in units of pi. Its template
names the angles roll, pitch, yaw, while its own drawing code takes the same three numbers for
pitch (about x), yaw (about y) and roll (about z): the boxes it draws fit the pictures, so that
order is the one here, in degrees.
"""

import math
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.tasks.labelled_places import read_labelled, write_labelled
from pipeline.tasks.named_places import Place, place_column
from pipeline.tasks.numbers import read_numbers
from schemas.manifest import Intrinsics
from schemas.task import Question, Task, View, box_type

_AXES, _ANGLES = ("x", "y", "z"), ("pitch", "yaw", "roll")
_TEMPLATE = (
    '[{"bbox_3d": [x_center, y_center, z_center, x_size, y_size, z_size, roll, pitch, yaw], '
    '"label": "category"}]'
)
_NAMES = tuple(f"{kind}_{axis}" for kind in ("center", "size") for axis in _AXES) + _ANGLES


def _prompt(question: Question, media_type: str) -> str:
    if question.prompt:
        return question.prompt
    what = f"all {', '.join(question.labels)}" if question.labels else "all objects"
    return (
        f"Find {what} in this {media_type}. For each, provide its 3D bounding box. "
        f"The output format required is JSON: `{_TEMPLATE}`."
    )


def intrinsics_of(view: View) -> Intrinsics:
    """The intrinsics of the manifest; without one, a pinhole with a field of view of 60 degrees.

    The angle is that of the width, square pixels, the axis through the middle, as the model's
    reference code assumes it.
    """
    if view.intrinsics is not None:
        return view.intrinsics
    focal = view.width / (2 * math.tan(math.radians(60) / 2))
    return Intrinsics(fx=focal, fy=focal, cx=view.width / 2, cy=view.height / 2)


def corners_3d(center: list[float], size: list[float], degrees: list[float]) -> np.ndarray:
    """The eight corners in the camera's frame, ``float64 [8, 3]``.

    Rotations about the fixed axes x (pitch), y (yaw) and z (roll), in that order.
    """
    pitch, yaw, roll = np.radians(degrees)
    (cp, cy, cr), (sp, sy, sr) = np.cos([pitch, yaw, roll]), np.sin([pitch, yaw, roll])
    about_x = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
    signs = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
    corners: np.ndarray = signs * np.asarray(size) / 2 @ (about_z @ about_y @ about_x).T + center
    return corners


def _read(value: Any, view: View) -> tuple[dict[str, Any], list[str]]:
    numbers, notes = read_numbers(value, _NAMES, what="box", words="a 3D box of nine numbers")
    center, size, turns = numbers[:3], numbers[3:6], numbers[6:]
    if min(size) < 0:
        notes.append("negative size made positive")
        size = [abs(side) for side in size]
    degrees = [turn * 180 for turn in turns]
    projected = _projected(corners_3d(center, size, degrees), view)
    if projected is None:
        notes.append("box is behind the camera or outside the picture")
    return {
        "center": dict(zip(_AXES, center, strict=True)),
        "size": dict(zip(_AXES, size, strict=True)),
        "rotation": dict(zip(_ANGLES, degrees, strict=True)),
        "projected_box": projected,
    }, notes


def _projected(corners: np.ndarray, view: View) -> dict[str, float] | None:
    """The box around the corners in the picture, cut to it; None if nothing of it is there."""
    intrinsics = intrinsics_of(view)
    if corners[:, 2].min() <= 1e-3:
        return None
    x = intrinsics.fx * corners[:, 0] / corners[:, 2] + intrinsics.cx
    y = intrinsics.fy * corners[:, 1] / corners[:, 2] + intrinsics.cy
    (x1, x2), (y1, y2) = (
        np.clip([side.min(), side.max()], 0, most)
        for side, most in ((x, view.width), (y, view.height))
    )
    if x1 >= x2 or y1 >= y2:
        return None
    return {"x1": float(x1), "y1": float(y1), "x2": float(x2), "y2": float(y2)}


def _numbers_of(element: dict[str, Any], view: View) -> list[float] | None:
    center, size, rotation = element["center"], element["size"], element["rotation"]
    metres = [round(part[axis], 3) for part in (center, size) for axis in _AXES]
    return [*metres, *(round(rotation[angle] / 180, 4) for angle in _ANGLES)]


def _vector(names: tuple[str, ...]) -> pa.DataType:
    return pa.struct([pa.field(name, pa.float32(), nullable=False) for name in names])


_FRAME = "in the camera's frame: x right, y down, z forward"
BOX_3D = Place(
    keys=("bbox_3d", "box_3d", "bbox3d"),
    num_numbers=9,
    fields=(
        pa.field(
            "center", _vector(_AXES), nullable=False, metadata={"description": _FRAME, "unit": "m"}
        ),
        pa.field(
            "size",
            _vector(_AXES),
            nullable=False,
            metadata={"description": "along its own axes", "unit": "m"},
        ),
        pa.field(
            "rotation",
            _vector(_ANGLES),
            nullable=False,
            metadata={
                "description": "about x (pitch), then y (yaw), then z (roll) of the camera's frame",
                "unit": "degrees",
            },
        ),
        pa.field(
            "projected_box",
            box_type(),
            metadata={
                "description": "the box around it in the displayed original, by the manifest's "
                "intrinsics or a field of view of 60 degrees; null where it is not in the picture",
                "unit": "px",
            },
        ),
    ),
    read=_read,
    write=_numbers_of,
)


TASK = Task(
    name="objects_3d",
    version=1,
    media_types=frozenset({"image"}),
    column=place_column(
        "objects_3d", BOX_3D, "label", description="things and the boxes around them in space"
    ),
    prompt=_prompt,
    parse=partial(read_labelled, place=BOX_3D),
    write=partial(write_labelled, place=BOX_3D),
)
