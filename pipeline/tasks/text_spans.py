"""Text spans: each line or word of text in the media, with its box and, in videos, its time."""

from typing import Any

from pipeline.tasks.boxes import BOX
from pipeline.tasks.named_places import place_column, read_named_places, write_named_places
from schemas.task import Parsed, Question, Task, View

_IMAGE_PROMPT = "Spot all the text in the image with {level}-level, and output in JSON format."
_VIDEO_PROMPT = (
    "Spot all the text in the video with {level}-level, and output in JSON format: a list of "
    '{{"time": seconds, "bbox_2d": [x1, y1, x2, y2], "text_content": text}}.'
)


def _prompt(question: Question, media_type: str) -> str:
    prompt = _VIDEO_PROMPT if media_type == "video" else _IMAGE_PROMPT
    return question.prompt or prompt.format(level=question.style or "line")


def _parse(answer: str, question: Question, view: View) -> Parsed:
    """Read ``[{"bbox_2d": [..], "text_content": ..}]``; a text without a box is still a text."""
    text_keys = ("text_content", "text", "content", "label")
    return read_named_places(
        answer, view, BOX, text_name="text", text_keys=text_keys, needs_place=False
    )


def _write(value: list[dict[str, Any]], question: Question, view: View) -> str:
    return write_named_places(value, view, BOX, text_name="text", text_key="text_content")


TASK = Task(
    name="text_spans",
    version=1,
    media_types=frozenset({"image", "video"}),
    column=place_column(
        "text_spans", BOX, "text", needs_place=False, description="lines of text and where they are"
    ),
    prompt=_prompt,
    parse=_parse,
    write=_write,
)
