"""Turn what a model wrote into typed answers. Nothing that a model can write raises here."""

import dataclasses
import logging
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.tasks import (
    caption,
    chat,
    custom,
    document,
    events,
    fields,
    moments,
    objects,
    objects_3d,
    ocr,
    points,
    text_spans,
    tool_calls,
    tracks,
)
from pipeline.tasks.read_json import clean_text
from schemas.task import AnswerStatus, Parsed, Question, Task, View
from schemas.unit import RawAnswer, Unit

logger = logging.getLogger(__name__)

_MODULES = (
    caption,
    events,
    moments,
    ocr,
    text_spans,
    objects,
    points,
    tracks,
    objects_3d,
    fields,
    document,
    tool_calls,
    custom,
    chat,
)
TASKS: dict[str, Task] = {module.TASK.name: module.TASK for module in _MODULES}

# Left at the ends of an answer by engines that do not skip special tokens.
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
    """One task's answer, as its row has it.

    value: fits the task's column; None if nothing could be read.
    note: what was mended, left out or cut; None for a clean answer.
    reasoning: what a Thinking model wrote before ``</think>``; None if nothing.
    """

    value: Any
    status: AnswerStatus
    note: str | None = None
    reasoning: str | None = None


def parse_answer(
    task_name: str,
    raw_text: str,
    finish_reason: str | None,
    question: Question,
    view: View,
    *,
    thinking: bool = False,
) -> Answer:
    """Parse one raw answer.

    finish_reason: ``"length"`` for an answer cut at ``max_new_tokens``: it is `truncated`, and
        ``"loop"`` for one that was stopped where it repeated itself: it is `looped`. Both have
        the complete elements that could be read.
    thinking: the model is a Thinking variant. Its chat template opens the reasoning, so a text
        without ``</think>`` is all reasoning, cut before the answer began.

    Raises:
        KeyError: if there is no such task; never because of what the model wrote.
    """
    task = TASKS[task_name]
    reasoning, text = _split_reasoning(_strip_special_tokens(raw_text), thinking)
    try:
        parsed = task.parse(text, question, view)
        # One value that does not fit its column would fail the whole batch later on.
        pa.array([parsed.value], task.column.type)
    except Exception as error:  # the isolation boundary of this stage
        logger.warning("the %s parser failed on one answer", task_name, exc_info=True)
        failure = f"the parser failed: {type(error).__name__}: {clean_text(str(error))[:200]}"
        parsed = Parsed(value=None, status=AnswerStatus.UNPARSED, note=failure)
    status, note = parsed.status, parsed.note
    if finish_reason == "length":
        status = AnswerStatus.TRUNCATED
        cut = f"cut at max_new_tokens = {question.max_new_tokens}"
        note = f"{cut}; {note}" if note else cut
    elif finish_reason == "loop":
        status = AnswerStatus.LOOPED
        cut = "stopped where it repeated itself; the copies are left out"
        note = f"{cut}; {note}" if note else cut
    return Answer(value=parsed.value, status=status, note=note, reasoning=reasoning)


def parse_raw(unit: Unit, raw: RawAnswer, questions: dict[str, Question]) -> Answer:
    """Parse what the engine said to one prompt of a unit."""
    origin = unit.sampling.origin_seconds if unit.sampling else 0.0
    answer = parse_answer(
        raw.task,
        raw.raw_text,
        raw.finish_reason,
        questions[raw.task],
        _view(unit, origin),
        thinking=raw.opens_reasoning,
    )
    return dataclasses.replace(answer, value=_later(answer.value, origin)) if origin else answer


def _view(unit: Unit, origin: float) -> View:
    """What the model saw, on its own clock."""
    media, sampling = unit.media, unit.sampling
    if media is None or sampling is None:
        return View(media_type="text", width=0, height=0)
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


def _later(value: Any, seconds: float) -> Any:
    """A typed answer with all its times so much later: they are those that end in ``_seconds``."""
    if isinstance(value, list):
        return [_later(part, seconds) for part in value]
    if not isinstance(value, dict):
        return value
    return {
        key: part + seconds
        if key.endswith("_seconds") and isinstance(part, int | float)
        else _later(part, seconds)
        for key, part in value.items()
    }


def _split_reasoning(text: str, thinking: bool) -> tuple[str | None, str]:
    """Split at the LAST ``</think>``: the reasoning may quote the tag."""
    reasoning, tag, answer = text.rpartition("</think>")
    if not tag and (thinking or text.startswith("<think>")):
        reasoning, answer = text, ""
    reasoning = clean_text(reasoning).strip().removeprefix("<think>").strip()
    return reasoning or None, answer.strip()


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
