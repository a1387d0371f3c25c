"""Embedding: a vector for a unit, by which similar images, videos and texts are found.

An engine's answer is the hidden state of the prompt's last token, after the final norm, as text:
float32 numbers in base64. The parser keeps its first numbers and scales them to length 1; vectors
of one checkpoint and instruction are compared by their cosine.

Source: the makers' code and README, github.com/QwenLM/Qwen3-VL-Embedding: the instruction is the
system turn, the media are the user turn, and the prompt ends where the answer would begin.
"""

import base64
import binascii
import json
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa

from schemas.tables.columns import described
from schemas.task import EMBEDDING, AnswerStatus, Drawing, Parsed, Question, Task, View

_SIMULATED_SIZE = 64
_NUM_SHOWN = 3


def vector_text(state: "np.ndarray[Any, Any]") -> str:
    """Write a vector, float [size], as an engine's answer."""
    return base64.b64encode(np.asarray(state, "<f4").tobytes()).decode()


def messages_of(question: Question, messages: str | None, kind: str) -> str | None:
    """Return what is rendered for a question as a conversation, JSON; None: it is no conversation.

    An embedding is one, also of a single image or video: its instruction is the system turn, unless
    the manifest's conversation has one.

    messages: of the unit, if it is a conversation. kind: image, video or messages.
    """
    if not question.is_vector:
        return messages
    turns = [{"role": "user", "content": [{"type": kind}]}] if messages is None else None
    turns = turns or json.loads(messages or "[]")
    if turns[0]["role"] != "system" and question.instruction:
        turns = [{"role": "system", "content": question.instruction}, *turns]
    return json.dumps(turns, ensure_ascii=False)


def _prompt(question: Question, media_type: str) -> str:
    return question.prompt or ""


def _parse(answer: str, question: Question, view: View) -> Parsed:
    """Read the vector: its first ``dimensions`` numbers, scaled to length 1, as float16."""
    try:
        state = np.frombuffer(base64.b64decode(answer, validate=True), "<f4")
    except (binascii.Error, ValueError):
        return _unparsed("the engine's answer is no vector")
    size = question.dimensions or len(state)
    if len(state) < size or not size:
        return _unparsed(f"the vector has {len(state):,} numbers, not {size:,}")
    with np.errstate(invalid="ignore"):  # some of them may be no numbers
        kept = state[:size].astype(np.float64)
    length = float(np.linalg.norm(kept))
    if not np.isfinite(length) or length == 0:
        return _unparsed(f"the vector has length {length}")
    return Parsed(value=(kept / length).astype(np.float16).tolist(), status=AnswerStatus.OK)


def _unparsed(note: str) -> Parsed:
    return Parsed(value=None, status=AnswerStatus.UNPARSED, note=note)


def _write(value: Any, question: Question, view: View) -> str:
    return vector_text(np.asarray(value, "<f4"))


def _simulate(question: Question, view: View, chance: Random) -> str:
    size = question.dimensions or _SIMULATED_SIZE
    return vector_text(np.array([chance.gauss(0, 1) for _ in range(size)]))


def _draw(value: Any) -> Drawing:
    first = ", ".join(f"{number:.4f}" for number in value[:_NUM_SHOWN])
    return Drawing(text=f"vector of {len(value):,} numbers: {first}, ...")


TASK = Task(
    name=EMBEDDING,
    version=1,
    media_types=frozenset({"image", "video", "messages"}),
    column=described(
        EMBEDDING, pa.list_(pa.float16()), "vector of length 1; a job's column has its size"
    ),
    prompt=_prompt,
    parse=_parse,
    write=_write,
    simulate=_simulate,
    draw=_draw,
    mark_kind=None,
    metric=None,
    subtitles=None,
    is_prose=False,
)
