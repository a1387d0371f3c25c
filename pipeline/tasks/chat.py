"""Chat: the answer to a conversation of the manifest, its ``messages``."""

import pyarrow as pa

from pipeline.tasks.answers.simulate import random_sentence
from pipeline.tasks.answers.text import draw_headline, read_text, write_text
from schemas.tables.columns import described
from schemas.task import Question, Task


def _prompt(question: Question, media_type: str) -> str:
    return question.prompt or ""


TASK = Task(
    name="chat",
    version=1,
    media_types=frozenset({"messages"}),
    column=described("chat", pa.string(), "answer to the messages"),
    prompt=_prompt,
    parse=read_text,
    write=write_text,
    simulate=random_sentence,
    draw=draw_headline,
    mark_kind=None,
    metric=None,
    subtitles=None,
    is_prose=True,
)
