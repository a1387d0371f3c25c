"""Parse raw answers into typed values. No answer raises an exception, whatever its text."""

import dataclasses
import logging
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa

from pipeline.tasks.answers.limits import (
    MAX_ANSWER_CHARS,
    MAX_SECONDS,
    AnswerTooLongError,
    deadline,
)
from pipeline.tasks.answers.read_json import clean_text
from pipeline.tasks.columns import column_of
from pipeline.tasks.registry import TASKS
from schemas.tables.unit import RawAnswer, Unit
from schemas.task import (
    REASONING_BEGINS,
    REASONING_ENDS,
    AnswerStatus,
    Parsed,
    Question,
    Task,
    View,
)

logger = logging.getLogger(__name__)


# Engines that do not skip special tokens leave these at the ends of an answer.
_SPECIAL_TOKENS = (
    "<|im_start|>assistant",
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One task's answer as the unit's row has it.

    value: fits the task's column; None if nothing could be read.
    note: what was repaired, left out or cut; None for a clean answer.
    reasoning: what the model wrote as reasoning, apart from its answer; None if there is none.
    """

    value: Any
    status: AnswerStatus
    note: str | None = None
    reasoning: str | None = None


def parse_answer(
    raw_text: str,
    question: Question,
    view: View,
    *,
    finish_reason: str = "stop",
    thinking: bool = False,
) -> Answer:
    """Parse one raw answer to ``question.task``.

    finish_reason: ``"length"`` if the answer was cut at ``max_new_tokens``: it is `truncated`;
        ``"loop"`` if it was stopped because it repeated itself: it is `looped`. Both keep the
        complete elements that could be read.
    thinking: the prompt opened the reasoning, so a text without ``</think>`` is all reasoning, cut
        before the answer began.

    Raises:
        KeyError: there is no such task.
    """
    task = TASKS[question.task]
    split = split_reasoning(_strip_special_tokens(raw_text), is_open=thinking)
    parsed = _unread() if split.answer is None else _parsed(task, split.answer, question, view)
    status, notes = parsed.status, [split.note, parsed.note]
    if split.note and status == AnswerStatus.OK:
        status = AnswerStatus.REPAIRED
    if finish_reason == "length":
        status = AnswerStatus.TRUNCATED
        notes.insert(0, f"cut at max_new_tokens = {question.max_new_tokens}")
    elif finish_reason == "loop":
        status = AnswerStatus.LOOPED
        notes.insert(0, "stopped where it repeated itself; the copies are left out")
    note = "; ".join(note for note in notes if note) or None
    return Answer(value=parsed.value, status=status, note=note, reasoning=split.reasoning)


def _parsed(task: Task, text: str, question: Question, view: View) -> Parsed:
    """Parse an answer; what goes wrong is in the note."""
    try:
        if len(text) > MAX_ANSWER_CHARS:
            raise AnswerTooLongError(f"it has {len(text):,} characters")
        with deadline(MAX_SECONDS):
            parsed = task.parse(text, question, view)
        # One value that does not fit its column would fail the whole batch later on.
        pa.array([parsed.value], column_of(question).type)
    except AnswerTooLongError as error:
        return _unread(f"the answer is too long to be read: {error}")
    except RecursionError:
        return _unread("the answer nests too deeply to be read")
    except Exception as error:  # the isolation boundary of this stage
        logger.warning("the %s parser failed on one answer", question.name, exc_info=True)
        what = clean_text(str(error))[:200]
        return _unread(f"the parser failed: {type(error).__name__}: {what}")
    return parsed


def _unread(note: str | None = None) -> Parsed:
    return Parsed(value=None, status=AnswerStatus.UNPARSED, note=note)


def parse_raw(unit: Unit, raw: RawAnswer, questions: dict[str, Question]) -> Answer:
    """Parse the engine's answer to one prompt of a unit; times become PTS of the media."""
    answer = parse_answer(
        raw.raw_text,
        questions[raw.task],
        model_view(unit),
        finish_reason=raw.finish_reason,
        thinking=raw.opens_reasoning,
    )
    origin = unit.sampling.origin_seconds if unit.sampling else 0.0
    return dataclasses.replace(answer, value=_shifted(answer.value, origin)) if origin else answer


def model_view(unit: Unit) -> View:
    """Return what the model saw of a unit, on the clock of the prompt's times."""
    media, sampling = unit.media, unit.sampling
    if media is None or sampling is None:
        return View(media_type="text", width=0, height=0)
    origin = sampling.origin_seconds
    start, end = sampling.start_seconds, sampling.end_seconds
    return View(
        media_type=media.media_type,
        width=media.width,
        height=media.height,
        pts_seconds=tuple(t - origin for t in sampling.pts_seconds or ()),
        start_seconds=None if start is None else start - origin,
        end_seconds=None if end is None else end - origin,
        intrinsics=media.intrinsics,
    )


def _shifted(value: Any, seconds: float) -> Any:
    """Add ``seconds`` to all times of a typed value: the fields that end in ``_seconds``."""
    if isinstance(value, list):
        return [_shifted(part, seconds) for part in value]
    if not isinstance(value, dict):
        return value
    return {
        key: part + seconds
        if key.endswith("_seconds") and isinstance(part, int | float)
        else _shifted(part, seconds)
        for key, part in value.items()
    }


class SplitAnswer(NamedTuple):
    """Reasoning and answer; None for either that is not there.

    note: why there is no answer, or that text which may belong to it is in the reasoning.
    """

    reasoning: str | None
    answer: str | None
    note: str | None = None


def split_reasoning(text: str, *, is_open: bool) -> SplitAnswer:
    """Split an answer from reasoning: it is what follows the LAST tag, if that ends reasoning.

    What comes before may quote tags, or be an answer that was thought over. So text before the last
    ``</think>`` is never in the answer, and there is no answer while a ``<think>`` is open. An
    answer that quotes a tag looks the same, so its text is in the reasoning, with a note.
    Without a tag all is answer.

    is_open: the prompt opened the reasoning.
    """
    first_end, end = text.find(REASONING_ENDS), text.rfind(REASONING_ENDS)
    begin = text.rfind(REASONING_BEGINS)
    has_begun = is_open or text.startswith(REASONING_BEGINS)
    if end < 0 and not has_begun and begin < 0:
        return SplitAnswer(None, text.strip())
    if begin > end or end < 0:
        note = "the reasoning was not closed: there is no answer"
        if not has_begun or end >= 0:
            note = f"{REASONING_BEGINS} is not closed: all text is taken as reasoning"
        return SplitAnswer(_reasoning(text), None, note)
    reasoning, answer = _reasoning(text[:end]), text[end + len(REASONING_ENDS) :].strip()
    is_one_block = has_begun and begin < first_end
    if is_one_block or reasoning is None:
        return SplitAnswer(reasoning, answer)
    note = f"all text before the last {REASONING_ENDS} is taken as reasoning"
    return SplitAnswer(reasoning, answer, note)


def _reasoning(text: str) -> str | None:
    return clean_text(text).strip().removeprefix(REASONING_BEGINS).strip() or None


def _strip_special_tokens(text: str) -> str:
    """Strip special tokens and white space at both ends, in time linear in the text."""
    start, end = 0, len(text)
    while True:
        before = start, end
        while start < end and text[start].isspace():
            start += 1
        while end > start and text[end - 1].isspace():
            end -= 1
        for token in _SPECIAL_TOKENS:
            if text.startswith(token, start, end):
                start += len(token)
            if text.endswith(token, start, end):
                end -= len(token)
        if (start, end) == before:
            return text[start:end]
