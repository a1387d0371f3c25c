"""Run decoders in child processes: a crash, a hang or a memory leak costs one call.

``forker`` is a fresh interpreter that imports what decoders need and then only forks: a child
costs milliseconds, so each concurrent call has one, and a lost child is soon replaced. A child
serves many calls. It receives a function and its arguments over a socket and sends the result back;
arrays are in shared memory, which the caller maps. The caller checks the deadline and the child's
memory from outside, since broken C code may hold the interpreter lock for ever. All children die
with the caller's process.

multiprocessing's forkserver does not fit: a process has only one, with the environment and the path
of its first use, and each child imports the caller's main module, here Ray's worker.

This protects against faults of FFmpeg and Pillow. It is no sandbox against malicious code.
"""

import atexit
import mmap
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from multiprocessing.reduction import send_handle
from typing import TYPE_CHECKING, Any

from pipeline.workers.shared_memory import receive
from schemas.errors import ErrorType, ResourceError, UnitError

if TYPE_CHECKING:
    from schemas.job.resources import Resources

START_SECONDS = 300.0
"""Deadline of a child's start; after it the machine is at fault, not the media."""

_FORKER = (
    "import sys, _reelscribe; from pipeline.workers.forker import main; "
    "main(sys.argv[1], *map(int, sys.argv[2:]))"
)
_END_SECONDS = 10.0
_TICK_SECONDS = 0.2

# The kernel kills a child when the thread that started it ends: this thread ends with the process.
_starter = ThreadPoolExecutor(1, thread_name_prefix="isolate")


@dataclass(frozen=True, kw_only=True)
class ChildLimits:
    """Time and memory that one call in a child may take."""

    timeout_seconds: float
    max_resident_bytes: int

    @classmethod
    def of(
        cls, resources: "Resources", *, times: float = 1, more_seconds: float = 0
    ) -> "ChildLimits":
        """Make the limits of a job; the deadline is ``times`` the job's plus ``more_seconds``."""
        return cls(
            timeout_seconds=times * resources.decode_timeout_seconds + more_seconds,
            max_resident_bytes=int(resources.decode_memory_gib * (1 << 30)),
        )


class Isolated:
    """Calls functions in child processes, up to ``num_children`` at a time.

    module: imported before children are forked, so that deadlines do not include the import.
    quiet: discard what libraries write to stderr, for a process whose stderr is a terminal.
    """

    def __init__(self, module: str, num_children: int = 1, *, quiet: bool = False) -> None:
        self._module, self._quiet = module, quiet
        # Last in, first out: few concurrent calls keep few children.
        self._children: queue.LifoQueue[_Child | None] = queue.LifoQueue()
        for _ in range(num_children):
            self._children.put(None)
        _Forker.of(module, quiet)  # starts while the caller does other things

    def call(
        self,
        function: Callable[..., Any],
        *args: Any,
        limits: ChildLimits,
        modules: Collection[str] = (),
    ) -> Any:
        """Return what ``function`` returns; raise what it raises.

        modules: imported, if they exist, before the deadline begins, and once for all children.

        Function and arguments must pickle. If the child dies or grows too large, the call is
        tried once more, in case something else killed the child; a missed deadline is final.

        Raises:
            UnitError: decoder_crashed, decode_timeout, or media_too_large (memory).
            ResourceError: no child can be started on this machine.
        """
        request = pickle.dumps((function, args), protocol=pickle.HIGHEST_PROTOCOL)
        child = self._children.get()
        try:
            attempts = 0
            while True:
                if child is None or child.lost or not child.modules.issuperset(modules):
                    if child is not None:
                        child.end()
                    child = _Child(_Forker.of(self._module, self._quiet), modules)
                attempts += 1
                try:
                    return child.call(request, limits)
                except _LostError as lost:
                    if attempts == 2 or lost.error_type == ErrorType.DECODE_TIMEOUT:
                        raise UnitError(lost.error_type, str(lost), attempts) from None
        finally:
            self._children.put(child)

    def close(self) -> None:
        """End the idle children now, rather than with this object."""
        with suppress(queue.Empty):
            while True:
                if (child := self._children.get_nowait()) is not None:
                    child.end()


class _LostError(Exception):
    """The child died during a call, which has no result."""

    def __init__(self, error_type: ErrorType, message: str) -> None:
        super().__init__(message)
        self.error_type = error_type


class _Forker:
    """The process that forks children: one for each module, as long as this process runs."""

    _known: dict[str, "_Forker"] = {}  # noqa: RUF012
    _lock = threading.Lock()

    def __init__(self, module: str, quiet: bool) -> None:
        self._control, theirs = Pipe()
        self.process = _starter.submit(_start, module, theirs.fileno(), quiet).result()
        theirs.close()
        atexit.register(_kill, self.process)
        self._modules: frozenset[str] = frozenset()

    @classmethod
    def of(cls, module: str, quiet: bool) -> "_Forker":
        """Return the forker of a module; start it if there is none, or it has ended."""
        with cls._lock:
            forker = cls._known.get(module)
            if forker is None or forker.process.poll() is not None:
                forker = cls._known[module] = _Forker(module, quiet)
            return forker

    def fork(self, modules: Collection[str], fds: list[int]) -> frozenset[str]:
        """Request a child that holds ``fds``; return the modules that it has imported.

        Does not wait for the child. If it does not start, the other ends of ``fds`` are closed.
        """
        with self._lock:
            self._modules |= frozenset(modules)
            # The environment may have changed since the start.
            state = pickle.dumps((sorted(self._modules), dict(os.environ), os.getcwd()))
            with suppress(OSError):
                self._control.send_bytes(state)
                for fd in fds:
                    send_handle(self._control, fd, None)
            return self._modules


class _Child:
    """A child process, a socket to it, and one to its forker, which reports its end."""

    def __init__(self, forker: _Forker, modules: Collection[str]) -> None:
        self._forker = forker
        self._lane, lane = Pipe()
        self._handle, handle = Pipe()
        self.modules = forker.fork(modules, [lane.fileno(), handle.fileno()])
        lane.close()
        handle.close()
        self._pid: int | None = None
        self.lost = False
        self.end = weakref.finalize(self, _ask_to_end, self._handle)

    def call(self, request: bytes, limits: ChildLimits) -> Any:
        try:
            if self._pid is None:
                self._pid = self._await_start()
            self._lane.send_bytes(request)
            self._await_answer(self._pid, limits)
            ok, answer = receive(self._lane)
        except (EOFError, OSError):
            message = f"the decoder's process ended with {_exit_name(self._end())}"
            raise _LostError(ErrorType.DECODER_CRASHED, message) from None
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

    def _await_answer(self, pid: int, limits: ChildLimits) -> None:
        deadline = time.monotonic() + limits.timeout_seconds
        while not self._lane.poll(min(_TICK_SECONDS, limits.timeout_seconds)):
            if time.monotonic() > deadline:
                raise _LostError(
                    ErrorType.DECODE_TIMEOUT,
                    f"not done after {limits.timeout_seconds:g} s; if other programs can read the "
                    "media, raise resources.decode_timeout_seconds",
                )
            resident = _resident_bytes(pid)
            if resident > limits.max_resident_bytes:
                raise _LostError(
                    ErrorType.MEDIA_TOO_LARGE,
                    f"decoding took {resident / 2**30:.1f} GiB of memory, over "
                    f"resources.decode_memory_gib {limits.max_resident_bytes / 2**30:g}",
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


def _start(module: str, control: int, quiet: bool) -> subprocess.Popen[bytes]:
    folders = os.pathsep.join(os.path.abspath(folder) for folder in sys.path)
    return subprocess.Popen(
        [sys.executable, "-P", "-c", _FORKER, module, str(os.getpid()), str(control)],
        pass_fds=[control],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL if quiet else None,
        # Threads do not survive a fork, and decoders multiply no matrices.
        env=os.environ | {"PYTHONPATH": folders, "OPENBLAS_NUM_THREADS": "1"},
    )


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def _ask_to_end(handle: Connection) -> None:
    with suppress(OSError):
        handle.send_bytes(b"end")


def _exit_name(code: int) -> str:
    """Return the name of a signal, or the exit code."""
    with suppress(ValueError):
        return signal.Signals(-code).name
    return f"exit code {code}"


def _resident_bytes(pid: int) -> int:
    """Return the resident memory of a process; 0 where there is no /proc."""
    try:
        with open(f"/proc/{pid}/statm") as file:
            return int(file.read().split()[1]) * mmap.PAGESIZE
    except (OSError, IndexError):
        return 0
