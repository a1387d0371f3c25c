"""Points: things in the media with a label, a point and, in videos, a time."""

from collections.abc import Iterable
from functools import partial
from random import Random
from typing import Any

import pyarrow as pa

from pipeline.tasks.answers.labelled_places import (
    labelled,
    read_labelled,
    requested_things,
    write_labelled,
)
from pipeline.tasks.answers.named_places import Place, place_column
from pipeline.tasks.answers.numbers import read_numbers
from pipeline.tasks.answers.simulate import one_place, random_box, random_label
from schemas.task import Drawing, Mark, Question, Task, View, point_1000_type, point_type

_IMAGE_FORMAT = "Report point coordinates in JSON format."
_VIDEO_FORMAT = (
    "Report times and point coordinates in JSON format: a list of "
    '{"time": seconds, "point_2d": [x, y], "label": category}.'
)


def _prompt(question: Question, media_type: str) -> str:
    form = _VIDEO_FORMAT if media_type == "video" else _IMAGE_FORMAT
    return question.prompt or f"Point to {requested_things(question, media_type)}. {form}"


def read_point(value: Any, view: View) -> tuple[dict[str, Any], list[str]]:
    """Read ``[x, y]`` in 0..1000 of the displayed original; also return what was repaired.

    Raises:
        ValueError: ``value`` is not two finite numbers.
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


def point_marks(elements: Iterable[dict[str, Any]], *, text_name: str) -> tuple[Mark, ...]:
    """Return a mark for each element that has a point. text_name: the field with its label."""
    return tuple(
        Mark(
            label=element[text_name],
            pts_seconds=element.get("pts_seconds"),
            point=(element["point"]["x"], element["point"]["y"]),
        )
        for element in elements
        if element["point"]
    )


def _draw(value: list[dict[str, Any]]) -> Drawing:
    return Drawing(marks=point_marks(value, text_name="label"))


def _simulate(question: Question, view: View, chance: Random) -> str:
    place = {"point_2d": random_box(chance)[:2], "label": random_label(question, chance)}
    return one_place(place, view, chance)


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
_FORMAT = labelled(POINT)

TASK = Task(
    name="points",
    version=1,
    media_types=frozenset({"image", "video"}),
    column=place_column("points", _FORMAT, description="things and a point on each"),
    prompt=_prompt,
    parse=partial(read_labelled, form=_FORMAT),
    write=partial(write_labelled, form=_FORMAT),
    simulate=_simulate,
    draw=_draw,
    mark_kind="point",
    metric=None,
    subtitles=None,
    is_prose=False,
)
