"""Answers that are taken as plain text."""

from pipeline.tasks.answers.read_json import clean_text
from schemas.task import AnswerStatus, Drawing, Parsed, Question, View


def read_text(answer: str, question: Question, view: View) -> Parsed:
    """Take the stripped answer; a blank one is ``unparsed``, since it may be a failure."""
    text = clean_text(answer).strip()
    if not text:
        note = "the answer is empty"
        return Parsed(value=None, status=AnswerStatus.UNPARSED, note=note)
    return Parsed(value=text, status=AnswerStatus.OK)


def write_text(value: str, question: Question, view: View) -> str:
    """Write the answer that ``read_text`` reads."""
    return value


def draw_headline(value: str) -> Drawing:
    """Show the text above everything else."""
    return Drawing(headline=value)


def draw_text(value: str) -> Drawing:
    """Show the text under the task's name."""
    return Drawing(text=value)
