"""Run decoders in child processes: a crash, a hang or a memory leak costs one call.

``forker`` is a fresh interpreter that imports what decoders need and then only forks: a child
costs milliseconds, so each concurrent call has one, and a lost child is soon replaced. A child
serves many calls. It receives a function and its arguments over a socket and sends the result back;
arrays are in shared memory, which the caller maps. The caller checks the deadline and the child's
memory from outside, since broken C code may hold the interpreter lock for ever. All children die
with the caller's process.

This protects against faults of FFmpeg and Pillow. It is no sandbox against malicious code.
"""

import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, Pipe
from typing import Any

from pipeline.workers.child_limits import ChildLimits, resident_bytes
from pipeline.workers.shared_memory import receive
from pipeline.workers.start_forker import Forker
from schemas.errors import ErrorType, ResourceError, UnitError

START_SECONDS = 300.0
"""Deadline of a child's start; after it the machine is at fault, not the media."""

_END_SECONDS = 10.0
_TICK_SECONDS = 0.05


class Isolated:
    """Calls functions in child processes, up to ``num_children`` at a time.

    All calls share one limit of memory: where they exceed it together, the largest is ended.

    module: imported before children are forked, so that deadlines do not include the import.
    quiet: discard what libraries write to stderr, for a process whose stderr is a terminal.
    """

    def __init__(self, module: str, num_children: int = 1, *, quiet: bool = False) -> None:
        self._module, self._quiet = module, quiet
        self._num_children = num_children
        # Last in, first out: few concurrent calls keep few children.
        self._idle: queue.LifoQueue[_Child | None] = queue.LifoQueue()
        for _ in range(num_children):
            self._idle.put(None)
        self._turn = threading.Lock()
        self._lock = threading.Lock()
        self._grown: dict[_Child, int] = {}
        Forker.of(module, quiet)  # starts while the caller does other things

    def call(
        self,
        function: Callable[..., Any],
        *args: Any,
        limits: ChildLimits,
        modules: Collection[str] = (),
    ) -> Any:
        """Return what ``function`` returns; raise what it raises.

        modules: imported, if they exist, before the deadline begins, and once for all children.

        Function and arguments must pickle. If the child dies, or is the largest of those that are
        too large together, the call is tried once more: for lack of memory, while no other call
        runs. A missed deadline is final.

        Raises:
            UnitError: decoder_crashed, decode_timeout, or media_too_large (memory).
            ResourceError: no child can be started on this machine.
        """
        request = pickle.dumps((function, args), protocol=pickle.HIGHEST_PROTOCOL)
        attempts, lacked_memory = 0, False
        while True:
            attempts += 1
            with self._child(modules, is_alone=lacked_memory) as child:
                try:
                    return child.call(request, limits, self._is_too_large)
                except _LostError as lost:
                    may_fit_alone = lost.lacked_memory and not lacked_memory
                    is_last = attempts > 1 and not may_fit_alone
                    if is_last or lost.error_type == ErrorType.DECODE_TIMEOUT:
                        raise UnitError(lost.error_type, str(lost), attempts) from None
                    lacked_memory |= lost.lacked_memory

    @contextmanager
    def _child(self, modules: Collection[str], *, is_alone: bool) -> Iterator["_Child"]:
        """Wait for a child that has imported ``modules``, or until no other call runs."""
        with self._turn:  # two callers with some of the places each would wait for ever
            found = [self._idle.get() for _ in range(self._num_children if is_alone else 1)]
        child, others = found[0], found[1:]
        try:
            for other in others:
                self._end(other)
            if child is None or child.lost or not child.modules.issuperset(modules):
                self._end(child)
                child = None
                child = _Child(Forker.of(self._module, self._quiet), modules)
            yield child
        finally:
            self._idle.put(child)
            for _ in others:
                self._idle.put(None)

    def _is_too_large(self, child: "_Child", grown: int, limits: ChildLimits) -> bool:
        """Note a child's memory; whether it must end: all are too large, and it is the largest."""
        with self._lock:
            self._grown[child] = grown
            total, largest = sum(self._grown.values()), max(self._grown.values())
        if total <= limits.max_resident_bytes:
            return False
        self.close()  # what idle children keep may be all that is too much
        return grown == largest

    def _end(self, child: "_Child | None") -> None:
        if child is not None:
            child.end()
            with self._lock:
                self._grown.pop(child, None)

    def close(self) -> None:
        """End the idle children now, rather than with this object."""
        found: list[_Child | None] = []
        with suppress(queue.Empty):
            while True:
                found.append(self._idle.get_nowait())
        for child in found:
            self._end(child)
            self._idle.put(None)


class _LostError(Exception):
    """The child died during a call, which has no result."""

    def __init__(self, error_type: ErrorType, message: str, *, lacked_memory: bool = False) -> None:
        super().__init__(message)
        self.error_type = error_type
        self.lacked_memory = lacked_memory


class _Child:
    """A child process, a socket to it, and one to its forker, which reports its end."""

    def __init__(self, forker: Forker, modules: Collection[str]) -> None:
        self._forker = forker
        self._lane, lane = Pipe()
        self._handle, handle = Pipe()
        self.modules = forker.fork(modules, [lane.fileno(), handle.fileno()])
        lane.close()
        handle.close()
        self._pid: int | None = None
        self._first_bytes = 0
        self.lost = False
        self.end = weakref.finalize(self, _ask_to_end, self._handle)

    def call(
        self,
        request: bytes,
        limits: ChildLimits,
        is_too_large: Callable[["_Child", int, ChildLimits], bool],
    ) -> Any:
        try:
            if self._pid is None:
                self._pid = self._await_start()
                self._first_bytes = resident_bytes(self._pid) or 0
            self._lane.send_bytes(request)
            self._await_answer(self._pid, limits, is_too_large)
            ok, answer = receive(self._lane)
        except (EOFError, OSError):
            code = self._end()
            raise _LostError(
                ErrorType.DECODER_CRASHED,
                f"the decoder's process ended with {_exit_name(code)}",
                lacked_memory=code == -signal.SIGKILL,  # as the kernel does where memory is short
            ) from None
        except _LostError:
            self._end()
            raise
        if not ok:
            raise answer
        return answer

    def _await_start(self) -> int:
        with suppress(EOFError):
            if self._lane.poll(START_SECONDS):
                return int.from_bytes(self._lane.recv_bytes())
        code = self._end()
        if code == -signal.SIGKILL:  # killed from outside
            raise EOFError
        raise ResourceError(
            f"the decoder's process did not start: {sys.executable} ended with "
            f"{_exit_name(code)}; see its messages in the worker's log"
        )

    def _await_answer(
        self,
        pid: int,
        limits: ChildLimits,
        is_too_large: Callable[["_Child", int, ChildLimits], bool],
    ) -> None:
        deadline = time.monotonic() + limits.timeout_seconds
        while not self._lane.poll(min(_TICK_SECONDS, limits.timeout_seconds)):
            if time.monotonic() > deadline:
                raise _LostError(
                    ErrorType.DECODE_TIMEOUT,
                    f"not done after {limits.timeout_seconds:g} s; if other programs can read the "
                    "media, raise resources.decode_timeout_seconds",
                )
            grown = (resident_bytes(pid) or 0) - self._first_bytes
            if is_too_large(self, grown, limits):
                raise _LostError(
                    ErrorType.MEDIA_TOO_LARGE,
                    f"decoding took {grown / 2**30:.1f} GiB of memory, over "
                    f"resources.decode_memory_gib {limits.max_resident_bytes / 2**30:g}",
                    lacked_memory=True,
                )

    def _end(self) -> int:
        """Kill the child if it still runs, and return its exit code, else its forker's."""
        self.lost = True
        self.end()
        with suppress(EOFError, OSError):
            if self._handle.poll(_END_SECONDS):
                return int.from_bytes(self._handle.recv_bytes(), signed=True)
        with suppress(subprocess.TimeoutExpired):
            return self._forker.process.wait(_END_SECONDS)
        return -signal.SIGKILL  # sent, but the child waits for a disk or network


def _ask_to_end(handle: Connection) -> None:
    with suppress(OSError):
        handle.send_bytes(b"end")


def _exit_name(code: int) -> str:
    """Return the name of a signal, or the exit code."""
    with suppress(ValueError):
        return signal.Signals(-code).name
    return f"exit code {code}"
