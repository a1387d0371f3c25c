"""Points: things in the media with a label, a point and, in videos, a time."""

from functools import partial
from typing import Any

import pyarrow as pa

from pipeline.tasks.labelled_places import read_labelled, things_asked, write_labelled
from pipeline.tasks.named_places import Place, place_column
from pipeline.tasks.numbers import read_numbers
from schemas.task import Question, Task, View, point_1000_type, point_type

_IMAGE_FORMAT = "Report point coordinates in JSON format."
_VIDEO_FORMAT = (
    "Report times and point coordinates in JSON format: a list of "
    '{"time": seconds, "point_2d": [x, y], "label": category}.'
)


def _prompt(question: Question, media_type: str) -> str:
    form = _VIDEO_FORMAT if media_type == "video" else _IMAGE_FORMAT
    return question.prompt or f"Point to {things_asked(question, media_type)}. {form}"


def read_point(value: Any, view: View) -> tuple[dict[str, Any], list[str]]:
    """Read ``[x, y]`` in 0..1000 of the displayed original; also return what was mended.

    Raises:
        ValueError: if ``value`` is not two finite numbers.
    """
    numbers, notes = read_numbers(value, ("x", "y"), what="point", words="a point of two numbers")
    x, y = (min(max(number, 0), 1000) for number in numbers)
    if [x, y] != numbers:
        notes.append("point clamped to 0..1000")
    point_1000 = {"x": round(x), "y": round(y)}
    if list(point_1000.values()) != [x, y]:
        notes.append("fractions of 1/1000 rounded in point_1000")
    point = {"x": x * view.width / 1000, "y": y * view.height / 1000}
    return {"point": point, "point_1000": point_1000}, notes


def _write_point(element: dict[str, Any], view: View) -> list[float] | None:
    point = element.get("point")
    if point is None:
        return None
    pairs = ((point["x"], view.width), (point["y"], view.height))
    return [min(max(round(at * 1000 / side), 0), 1000) for at, side in pairs]


_PIXELS = {"description": "in the displayed original", "unit": "px"}
_THOUSANDTHS = {"description": "the same point as the model wrote it", "unit": "1/1000"}
POINT = Place(
    keys=("point_2d", "point", "coordinate", "coordinates"),
    num_numbers=2,
    fields=(
        pa.field("point", point_type(), nullable=False, metadata=_PIXELS),
        pa.field("point_1000", point_1000_type(), nullable=False, metadata=_THOUSANDTHS),
    ),
    read=read_point,
    write=_write_point,
)


TASK = Task(
    name="points",
    version=1,
    media_types=frozenset({"image", "video"}),
    column=place_column("points", POINT, "label", description="things and a point on each"),
    prompt=_prompt,
    parse=partial(read_labelled, place=POINT),
    write=partial(write_labelled, place=POINT),
)
