"""Caption: what an image or a time span of a video shows, in a sentence or in detail."""

import pyarrow as pa

from pipeline.tasks.answers.simulate import random_sentence
from pipeline.tasks.answers.text import draw_headline, read_text, write_text
from schemas.tables.columns import described
from schemas.task import Question, Task


def _prompt(question: Question, media_type: str) -> str:
    how = "in one sentence" if question.style == "short" else "in detail"
    return question.prompt or f"Describe this {media_type} {how}."


TASK = Task(
    name="caption",
    version=1,
    media_types=frozenset({"image", "video"}),
    column=described("caption", pa.string(), "what the media shows"),
    prompt=_prompt,
    parse=read_text,
    write=write_text,
    simulate=random_sentence,
    draw=draw_headline,
    mark_kind=None,
    metric="caption",
    subtitles="captions",
    is_prose=True,
)
