"""Caption: what an image or a stretch of video shows, in plain words."""

import pyarrow as pa

from pipeline.tasks.read_json import clean_text
from schemas.task import AnswerStatus, Parsed, Question, Task, View


def _prompt(question: Question, media_type: str) -> str:
    how = "in one sentence" if question.style == "short" else "in detail"
    return question.prompt or f"Describe this {media_type} {how}."


def _parse(answer: str, question: Question, view: View) -> Parsed:
    text = clean_text(answer).strip()
    if not text:
        note = "the model answered nothing"
        return Parsed(value=None, status=AnswerStatus.UNPARSED, note=note)
    return Parsed(value=text, status=AnswerStatus.OK)


def _write(value: str, question: Question, view: View) -> str:
    return value


TASK = Task(
    name="caption",
    version=1,
    media_types=frozenset({"image", "video"}),
    column=pa.field("caption", pa.string(), metadata={"description": "what the media shows"}),
    prompt=_prompt,
    parse=_parse,
    write=_write,
)
