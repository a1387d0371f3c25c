"""Objects: things in the media with a label, a box and, in videos, a time."""

from typing import Any

from pipeline.tasks.boxes import BOX
from pipeline.tasks.named_places import place_column, read_named_places, write_named_places
from schemas.task import Parsed, Question, Task, View

_IMAGE_FORMAT = "Report bbox coordinates in JSON format."
_VIDEO_FORMAT = (
    "Report times and bbox coordinates in JSON format: a list of "
    '{"time": seconds, "bbox_2d": [x1, y1, x2, y2], "label": category}.'
)


def _prompt(question: Question, media_type: str) -> str:
    if question.prompt:
        return question.prompt
    if question.labels:
        labels = ", ".join(question.labels)
        what = f'every instance that belongs to the following categories: "{labels}"'
    else:
        what = f"every object in the {media_type}"
    return f"Locate {what}. {_VIDEO_FORMAT if media_type == 'video' else _IMAGE_FORMAT}"


def _parse(answer: str, question: Question, view: View) -> Parsed:
    """Read ``[{"bbox_2d": [..], "label": ..}]``; absent categories are simply not listed."""
    return read_named_places(
        answer,
        view,
        BOX,
        text_name="label",
        text_keys=("label", "name", "category", "text"),
        text_if_missing=question.labels[0] if len(question.labels) == 1 else None,
    )


def _write(value: list[dict[str, Any]], question: Question, view: View) -> str:
    asked = [e for e in value if not question.labels or e["label"] in question.labels]
    return write_named_places(asked, view, BOX, text_name="label", text_key="label")


TASK = Task(
    name="objects",
    version=1,
    media_types=frozenset({"image", "video"}),
    column=place_column("objects", BOX, "label", description="things and where they are"),
    prompt=_prompt,
    parse=_parse,
    write=_write,
)
