"""Wait for what must happen, however slow the machine."""

import time
from collections.abc import Callable

SECONDS = 600
"""A test that waits for longer fails: what it waits for will not happen."""


def wait_until(condition: Callable[[], object], every: float = 0.02) -> None:
    """Return once ``condition()`` holds; it is called every so many seconds."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(every)
