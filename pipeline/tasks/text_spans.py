"""Text spans: each line or word of text in the media, with its box and, in videos, its time."""

from functools import partial
from random import Random
from typing import Any

from pipeline.tasks.answers.boxes import BOX, draw_boxes
from pipeline.tasks.answers.named_places import (
    NamedPlaces,
    place_column,
    read_named_places,
    write_named_places,
)
from pipeline.tasks.answers.simulate import WORDS, one_place, random_box
from schemas.task import Parsed, Question, Task, View

_IMAGE_PROMPT = "Spot all the text in the image with {level}-level, and output in JSON format."
_VIDEO_PROMPT = (
    "Spot all the text in the video with {level}-level, and output in JSON format: a list of "
    '{{"time": seconds, "bbox_2d": [x1, y1, x2, y2], "text_content": text}}.'
)
_FORMAT = NamedPlaces(
    place=BOX,
    text_name="text",
    text_keys=("text_content", "text", "content", "label", "文本", "文字", "内容", "文本内容"),
    needs_place=False,
)


def _prompt(question: Question, media_type: str) -> str:
    prompt = _VIDEO_PROMPT if media_type == "video" else _IMAGE_PROMPT
    return question.prompt or prompt.format(level=question.style or "line")


def _parse(answer: str, question: Question, view: View) -> Parsed:
    """Read ``[{"bbox_2d": [..], "text_content": ..}]``; a text without a box is kept."""
    return read_named_places(answer, view, _FORMAT)


def _write(value: list[dict[str, Any]], question: Question, view: View) -> str:
    return write_named_places(value, view, _FORMAT)


def _simulate(question: Question, view: View, chance: Random) -> str:
    place = {"bbox_2d": random_box(chance), "text_content": chance.choice(WORDS)}
    return one_place(place, view, chance)


TASK = Task(
    name="text_spans",
    version=1,
    media_types=frozenset({"image", "video"}),
    column=place_column("text_spans", _FORMAT, description="lines of text and where they are"),
    prompt=_prompt,
    parse=_parse,
    write=_write,
    simulate=_simulate,
    draw=partial(draw_boxes, text_name="text"),
    mark_kind="text",
    metric="text_boxes",
    subtitles="text",
    is_prose=False,
)
