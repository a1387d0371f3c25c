"""Objects in space: things in an image with a label and a box in metres, in the camera's frame.

The model writes ``[x, y, z, x_size, y_size, z_size, roll, pitch, yaw]``: the centre in metres in
the camera's frame (x right, y down, z forward), the sizes, and angles in units of pi. Its template
names the angles roll, pitch, yaw, but its own drawing code takes the same three numbers as pitch
(about x), yaw (about y) and roll (about z). Boxes drawn in that order fit the pictures, so the
column uses it, in degrees.
"""

import math
from functools import partial
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.tasks.answers.boxes import draw_boxes
from pipeline.tasks.answers.labelled_places import labelled, read_labelled, write_labelled
from pipeline.tasks.answers.named_places import Place, place_column
from pipeline.tasks.answers.numbers import read_numbers
from pipeline.tasks.answers.simulate import fenced_json, random_label
from schemas.tables.columns import described
from schemas.tables.manifest import Intrinsics
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
    """Return the manifest's intrinsics; without them, a pinhole camera as in the model's reference.

    Its horizontal field of view is 60 degrees, its pixels are square, its axis goes through the
    middle of the picture.
    """
    if view.intrinsics is not None:
        return view.intrinsics
    focal = view.width / (2 * math.tan(math.radians(60) / 2))
    return Intrinsics(fx=focal, fy=focal, cx=view.width / 2, cy=view.height / 2)


def corners_3d(center: list[float], size: list[float], degrees: list[float]) -> np.ndarray:
    """Return the eight corners of a box in the camera's frame, ``float64 [8, 3]``.

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
    """Return the box around the corners in the picture, clipped; None if it is outside."""
    intrinsics = intrinsics_of(view)
    if corners[:, 2].min() <= 1e-3:
        return None
    x = intrinsics.fx * corners[:, 0] / corners[:, 2] + intrinsics.cx
    y = intrinsics.fy * corners[:, 1] / corners[:, 2] + intrinsics.cy
    (x1, x2), (y1, y2) = (
        np.clip([side.min(), side.max()], 0, length)
        for side, length in ((x, view.width), (y, view.height))
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
        described("center", _vector(_AXES), _FRAME, unit="m", nullable=False),
        described("size", _vector(_AXES), "along its own axes", unit="m", nullable=False),
        described(
            "rotation",
            _vector(_ANGLES),
            "about x (pitch), then y (yaw), then z (roll) of the camera's frame",
            unit="degrees",
            nullable=False,
        ),
        described(
            "projected_box",
            box_type(),
            "the box around it in the displayed original, by the manifest's "
            "intrinsics or a field of view of 60 degrees; null where it is not in the picture",
            unit="px",
        ),
    ),
    read=_read,
    write=_numbers_of,
)
_FORMAT = labelled(BOX_3D)


def _simulate(question: Question, view: View, chance: Random) -> str:
    """Write a thing of half a metre, some metres in front of the camera."""
    center = [chance.uniform(-0.5, 0.5), chance.uniform(-0.5, 0.5), chance.uniform(4.0, 8.0)]
    size = [chance.uniform(0.2, 0.6) for _ in range(3)]
    box = [round(number, 2) for number in (*center, *size, 0.0, 0.0, chance.uniform(0, 0.5))]
    return fenced_json([{"bbox_3d": box, "label": random_label(question, chance)}])


TASK = Task(
    name="objects_3d",
    version=1,
    media_types=frozenset({"image"}),
    column=place_column(
        "objects_3d", _FORMAT, description="things and the boxes around them in space"
    ),
    prompt=_prompt,
    parse=partial(read_labelled, form=_FORMAT),
    write=partial(write_labelled, form=_FORMAT),
    simulate=_simulate,
    draw=partial(draw_boxes, text_name="label", box_name="projected_box"),
    mark_kind="object in space",
    metric=None,
    subtitles=None,
    is_prose=False,
)
