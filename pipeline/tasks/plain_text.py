"""Answers that are text as they stand."""

from pipeline.tasks.read_json import clean_text
from schemas.task import AnswerStatus, Parsed, Question, View


def read_text(answer: str, question: Question, view: View) -> Parsed:
    """Take the answer as it is; one of nothing may be a fault, so it is not taken for "no text"."""
    text = clean_text(answer).strip()
    if not text:
        note = "the model answered nothing"
        return Parsed(value=None, status=AnswerStatus.UNPARSED, note=note)
    return Parsed(value=text, status=AnswerStatus.OK)


def write_text(value: str, question: Question, view: View) -> str:
    """Write the answer that ``read_text`` reads."""
    return value
