"""Caption: what an image or a stretch of video shows, in plain words."""

import pyarrow as pa

from pipeline.tasks.plain_text import read_text, write_text
from schemas.task import Question, Task


def _prompt(question: Question, media_type: str) -> str:
    how = "in one sentence" if question.style == "short" else "in detail"
    return question.prompt or f"Describe this {media_type} {how}."


TASK = Task(
    name="caption",
    version=1,
    media_types=frozenset({"image", "video"}),
    column=pa.field("caption", pa.string(), metadata={"description": "what the media shows"}),
    prompt=_prompt,
    parse=read_text,
    write=write_text,
)
