"""Ctrl-C: the first asks the command to stop, the second leaves at once."""

import os
import signal
import threading
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NoReturn, Self

EXIT_CODE = 130
"""128 and the number of SIGINT, as shells have it."""

_STOPPING = b"\nstopping; Ctrl-C again leaves at once\n"
_LEFT = b"\nleft at once; run the same command again to continue\n"


def _end_children(pid: int) -> None:
    """Kill what a process has started, and what that has: Ray's processes, of its own session.

    Most would end when they lose the driver, but a worker that has just begun would wait for ever.
    """
    children: list[str] = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):  # of each thread; only on Linux
        with suppress(OSError):  # the thread has ended meanwhile
            children += file.read_text().split()
    for child in map(int, children):
        with suppress(OSError):
            os.kill(child, signal.SIGSTOP)  # so that it starts no more
            _end_children(child)
            os.kill(child, signal.SIGKILL)


class Interrupts:
    """Handles SIGINT while a command runs. ``is_stopping``: after the first Ctrl-C."""

    def __init__(self) -> None:
        self.is_stopping = False
        self._former: Any = None

    def __enter__(self) -> Self:
        # Shells start background jobs with SIGINT ignored, and only the main thread gets signals.
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            self._former = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # After the first Ctrl-C the handler stays: the interpreter's end waits for threads too.
        if self._former is not None and not self.is_stopping:
            signal.signal(signal.SIGINT, self._former)

    def _handle(self, _: int, __: FrameType | None) -> NoReturn:
        if self.is_stopping:
            os.write(2, _LEFT)
            _end_children(os.getpid())
            os._exit(EXIT_CODE)
        self.is_stopping = True
        os.write(2, _STOPPING)  # not through sys.stderr, which the main thread may be writing to
        raise KeyboardInterrupt
