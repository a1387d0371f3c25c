"""Bounds of one answer, all in one place: its text is hostile, since the model saw hostile media.

Readers take time and memory linear in the text: no pattern has two ways to match one text, and no
scan begins again for each bracket. The bounds keep the rest small, and what lies beyond them is
named in the note or makes the answer `unparsed`. They count characters and steps rather than
seconds, so that an answer is read in the same way on each machine and in each process. The
deadline is for mistakes in the readers: it is ten times what the longest answers need.

Pure Python code cannot be stopped from outside without leaving its state behind, and a pattern
cannot be stopped at all; so readers look at the deadline themselves, before each element.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import FrameType
from typing import Any

MAX_ANSWER_CHARS = 1 << 20
"""A longer answer is `unparsed`: 65,536 tokens are the most, and have some four characters each."""

MAX_SECONDS = 30.0
"""CPU seconds that one answer may take. The longest answers take three."""

MAX_PATTERN_SECONDS = 1.0
"""CPU seconds that one pattern of a job's JSON Schema may take on one text."""

MAX_NOTES = 20
"""Different notes of one answer; more are counted."""

MAX_TOOL_CALLS = 256

MAX_BLOCKS_OF_A_TEXT = 16
"""A document's text stands in each block around it: 16 times at most, whatever is nested."""

MAX_REPAIR_CHARS = 7000
"""A longer piece of broken JSON is not repaired: the library's time is quadratic in it."""

MAX_REPAIR_STEPS = 500_000
"""Steps in all repairs of one answer: half a second, or some 800 broken elements."""

CHARS_OF_A_STEP = 8
"""Characters that a strict decoder reads in vain count as one step."""

_CHECKS = 256
"""The clock is read at every 256th check: reading it is a system call, slow in a sandbox."""


class _Deadline:
    def __init__(self, seconds: float) -> None:
        self.end = time.thread_time() + seconds
        self.num_checks = 0


_deadline: ContextVar[_Deadline | None] = ContextVar("deadline", default=None)


class AnswerTooLongError(Exception):
    """Reading the answer takes too long."""


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Let `check_deadline` raise after ``seconds`` of this thread's CPU time."""
    token = _deadline.set(_Deadline(seconds))
    try:
        yield
    finally:
        _deadline.reset(token)


def check_deadline() -> None:
    """Stop here if the deadline has passed; readers call it before each element.

    Raises:
        AnswerTooLongError: it has.
    """
    own = _deadline.get()
    if own is None:
        return
    own.num_checks += 1
    if own.num_checks % _CHECKS == 0 and seconds_left() < 0:
        raise AnswerTooLongError("the time for it is over")


def seconds_left() -> float:
    """Return the CPU seconds up to the deadline; infinity without one."""
    own = _deadline.get()
    return float("inf") if own is None else own.end - time.thread_time()


class StepLimit:
    """Ends Python code of a library after a number of steps: calls and returns of this thread.

    ``with limit:`` raises StepLimitError in the code inside, which only ``except BaseException``
    would catch. The limit goes on where the last ``with`` ended. Where a profiler runs, nothing is
    counted: a thread has one.
    """

    def __init__(self, num_steps: int) -> None:
        self._left = num_steps

    def __enter__(self) -> None:
        self._profiled = sys.getprofile() is not None
        if not self._profiled:
            sys.setprofile(self._count)

    def __exit__(self, *error: object) -> None:
        if not self._profiled:
            sys.setprofile(None)

    def take(self, num_steps: int) -> None:
        """Count steps that were made outside of ``with``.

        Raises:
            StepLimitError: the limit is reached.
        """
        self._left -= num_steps
        if self._left < 0:
            raise StepLimitError

    def _count(self, frame: FrameType, event: str, argument: Any) -> None:
        self._left -= 1
        if self._left < 0:
            raise StepLimitError


class StepLimitError(BaseException):
    """There is no step left."""
