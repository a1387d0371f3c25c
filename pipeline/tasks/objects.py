"""Objects: things in the media with a label, a box and, in videos, a time."""

from functools import partial
from random import Random

from pipeline.tasks.answers.boxes import BOX, draw_boxes
from pipeline.tasks.answers.labelled_places import (
    labelled,
    read_labelled,
    requested_things,
    write_labelled,
)
from pipeline.tasks.answers.named_places import place_column
from pipeline.tasks.answers.simulate import one_place, random_box, random_label
from schemas.task import Question, Task, View

_IMAGE_FORMAT = "Report bbox coordinates in JSON format."
_VIDEO_FORMAT = (
    "Report times and bbox coordinates in JSON format: a list of "
    '{"time": seconds, "bbox_2d": [x1, y1, x2, y2], "label": category}.'
)
_FORMAT = labelled(BOX)


def _prompt(question: Question, media_type: str) -> str:
    form = _VIDEO_FORMAT if media_type == "video" else _IMAGE_FORMAT
    return question.prompt or f"Locate {requested_things(question, media_type)}. {form}"


def _simulate(question: Question, view: View, chance: Random) -> str:
    place = {"bbox_2d": random_box(chance), "label": random_label(question, chance)}
    return one_place(place, view, chance)


TASK = Task(
    name="objects",
    version=1,
    media_types=frozenset({"image", "video"}),
    column=place_column("objects", _FORMAT, description="things and where they are"),
    prompt=_prompt,
    parse=partial(read_labelled, form=_FORMAT),
    write=partial(write_labelled, form=_FORMAT),
    simulate=_simulate,
    draw=partial(draw_boxes, text_name="label"),
    mark_kind="object",
    metric="label_boxes",
    subtitles=None,
    is_prose=False,
)
