"""A finding of the doctor: one line of its page. And a deadline for each check."""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from jobs.console import waiting
from schemas.errors import UnitError, UserError
from schemas.shown import one_line, redact_text

logger = logging.getLogger(__name__)

SECONDS = 30.0
"""Deadline of a check: storages repeat their requests for about as long."""


LATE = "no answer within"
"""How the text of a check begins that missed its deadline."""


class State(StrEnum):
    """What a finding means for the job; the value is its text in the page and in JSON."""

    OK = "ok"
    WARNING = "warning"
    TO_DO = "to do"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line: what was checked, and what was found or is to be done.

    topic: ``machine``, ``cluster``, ``job``, ``input``, ``output``, ``model`` or ``assumed``.
    text: without secrets of addresses.
    """

    topic: str
    name: str
    state: State
    text: str


class Warn(Exception):
    """Raised by a check: its message is a warning."""


def finding(topic: str, name: str, state: State, text: str) -> Finding:
    """Make a finding: one line, in which secrets of addresses are hidden."""
    shown = one_line(redact_text(" ".join(text.splitlines())))
    return Finding(topic=topic, name=one_line(name), state=state, text=shown)


def checked(
    topic: str, name: str, check: Callable[[], str], *, seconds: float | None = None
) -> Finding:
    """Call a check, which returns what it found to be good, and make a finding of it.

    What it raises is the finding's text: ``Warn`` a warning, anything else something to do.
    A check that misses its deadline goes on in its thread, which ends with the process. Before
    that, a line in the log says what is waited for.

    seconds: the deadline; default: ``SECONDS``.
    """
    limit = SECONDS if seconds is None else seconds
    found: list[tuple[State, str]] = []

    def run() -> None:
        try:
            found.append((State.OK, check()))
        except Warn as warning:
            found.append((State.WARNING, str(warning)))
        except (UserError, UnitError) as error:
            found.append((State.TO_DO, str(error)))
        except Exception as error:  # the boundary: a page has no traceback
            found.append((State.TO_DO, f"{type(error).__name__}: {error}"))

    thread = threading.Thread(target=run, name=f"doctor {topic} {name}", daemon=True)
    thread.start()
    thread.join(min(limit, waiting.SECONDS))
    if thread.is_alive() and limit > waiting.SECONDS:
        logger.warning("still waiting for the check of %s: %s", topic, name)
        thread.join(limit - waiting.SECONDS)
    advice = "is its address right, and is it up? A run waits longer"
    late = (State.TO_DO, f"{LATE} {limit:g} s: {advice}")
    return finding(topic, name, *(found[0] if found else late))
