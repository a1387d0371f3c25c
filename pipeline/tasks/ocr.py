"""OCR: all the text that can be read in the media, as plain text with its line breaks."""

import pyarrow as pa

from pipeline.tasks.read_json import clean_text
from schemas.task import AnswerStatus, Parsed, Question, Task, View


def _prompt(question: Question, media_type: str) -> str:
    return question.prompt or f"Read all the text in the {media_type}."


def _parse(answer: str, question: Question, view: View) -> Parsed:
    """Take the answer as it is; one of nothing may be a fault, so it is not taken for "no text"."""
    text = clean_text(answer).strip()
    if not text:
        note = "the model answered nothing"
        return Parsed(value=None, status=AnswerStatus.UNPARSED, note=note)
    return Parsed(value=text, status=AnswerStatus.OK)


def _write(value: str, question: Question, view: View) -> str:
    return value


TASK = Task(
    name="ocr",
    version=1,
    media_types=frozenset({"image", "video"}),
    column=pa.field("ocr", pa.string(), metadata={"description": "all text that was read"}),
    prompt=_prompt,
    parse=_parse,
    write=_write,
)
