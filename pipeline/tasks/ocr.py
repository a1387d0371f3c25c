"""OCR: all the text that can be read in the media, as plain text with its line breaks."""

from random import Random

import pyarrow as pa

from pipeline.tasks.answers.simulate import WORDS
from pipeline.tasks.answers.text import draw_text, read_text, write_text
from schemas.tables.columns import described
from schemas.task import Question, Task, View


def _prompt(question: Question, media_type: str) -> str:
    return question.prompt or f"Read all the text in the {media_type}."


def _simulate(question: Question, view: View, chance: Random) -> str:
    return "\n".join(chance.sample(WORDS, 2))


TASK = Task(
    name="ocr",
    version=1,
    media_types=frozenset({"image", "video"}),
    column=described("ocr", pa.string(), "all text that was read"),
    prompt=_prompt,
    parse=read_text,
    write=write_text,
    simulate=_simulate,
    draw=draw_text,
    mark_kind=None,
    metric="text",
    subtitles="text",
    is_prose=False,
)
