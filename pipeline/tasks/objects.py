"""Objects: things in the media with a label, a box and, in videos, a time."""

from functools import partial

from pipeline.tasks.boxes import BOX
from pipeline.tasks.labelled_places import read_labelled, things_asked, write_labelled
from pipeline.tasks.named_places import place_column
from schemas.task import Question, Task

_IMAGE_FORMAT = "Report bbox coordinates in JSON format."
_VIDEO_FORMAT = (
    "Report times and bbox coordinates in JSON format: a list of "
    '{"time": seconds, "bbox_2d": [x1, y1, x2, y2], "label": category}.'
)


def _prompt(question: Question, media_type: str) -> str:
    form = _VIDEO_FORMAT if media_type == "video" else _IMAGE_FORMAT
    return question.prompt or f"Locate {things_asked(question, media_type)}. {form}"


TASK = Task(
    name="objects",
    version=1,
    media_types=frozenset({"image", "video"}),
    column=place_column("objects", BOX, "label", description="things and where they are"),
    prompt=_prompt,
    parse=partial(read_labelled, place=BOX),
    write=partial(write_labelled, place=BOX),
)
