"""OCR: all the text that can be read in the media, as plain text with its line breaks."""

import pyarrow as pa

from pipeline.tasks.plain_text import read_text, write_text
from schemas.task import Question, Task


def _prompt(question: Question, media_type: str) -> str:
    return question.prompt or f"Read all the text in the {media_type}."


TASK = Task(
    name="ocr",
    version=1,
    media_types=frozenset({"image", "video"}),
    column=pa.field("ocr", pa.string(), metadata={"description": "all text that was read"}),
    prompt=_prompt,
    parse=read_text,
    write=write_text,
)
