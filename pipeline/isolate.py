"""Run decoders in processes of their own: what crashes, hangs or eats memory costs its own call.

A fresh interpreter imports what decoders need and then does nothing but fork: a child costs
milliseconds, so each call at a time has one for itself, and one that is lost is soon replaced.
A child is kept for many calls. It takes a function with its arguments through a socket and sends
back what that returns; arrays come in shared memory, of which the caller maps the pages. The caller
keeps the deadline and watches the child's memory from outside, since broken C code may hold the
interpreter for ever. All of them end with the caller's process, whatever they are doing.

Not multiprocessing's forkserver: there is one of those in a process, with the environment and the
path of its first use, and each child of it imports the caller's main module, here Ray's worker.

This guards against faults of FFmpeg and Pillow. It is no sandbox against code made to break out.
"""

import atexit
import ctypes
import gc
import importlib
import logging
import mmap
import multiprocessing
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from multiprocessing.reduction import recv_handle, send_handle
from typing import TYPE_CHECKING, Any

from pipeline.shared_memory import receive, send
from schemas.errors import ErrorType, ResourceError, UnitError

if TYPE_CHECKING:  # a child starts sooner without
    from schemas.resources import Resources

logger = logging.getLogger(__name__)

START_SECONDS = 300.0
"""A child that is not ready by then will never be: the machine, not the media, is at fault."""

_END_SECONDS = 10.0
_TICK_SECONDS = 0.2
_PR_SET_PDEATHSIG = 1

# The kernel ends a process when the thread that started it ends: one that lives as long as we.
_starter = ThreadPoolExecutor(1, thread_name_prefix="isolate")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a call may take, and what a message tells people to do about it."""

    timeout_seconds: float
    max_resident_bytes: int

    @classmethod
    def of(cls, resources: "Resources", *, times: float = 1, more_seconds: float = 0) -> "Limits":
        """Limits as the job sets them; its deadline is multiplied, and added to."""
        return cls(
            timeout_seconds=times * resources.decode_timeout_seconds + more_seconds,
            max_resident_bytes=int(resources.decode_memory_gib * (1 << 30)),
        )


class Isolated:
    """Calls functions in child processes, up to ``num_children`` at a time.

    module: imported before children are forked, since a deadline is not for that.
    quiet: what libraries write to stderr is nobody's: where that is a user's terminal.
    """

    def __init__(self, module: str, num_children: int = 1, *, quiet: bool = False) -> None:
        self._module, self._quiet = module, quiet
        # The last one used is the next: few calls at a time keep few children.
        self._children: queue.LifoQueue[_Child | None] = queue.LifoQueue()
        for _ in range(num_children):
            self._children.put(None)
        _Forker.of(module, quiet)  # it starts while the caller does other things

    def call(
        self,
        function: Callable[..., Any],
        *args: Any,
        limits: Limits,
        modules: Collection[str] = (),
    ) -> Any:
        """Return what ``function`` returns; raise what it raises.

        modules: what the call is going to import, if it can be imported: done before its deadline
            begins, and once for all children.

        Function and arguments must pickle. A child that died or grew too large is tried once
        more, in case that was not this call's doing; a deadline that passed is final.

        Raises:
            UnitError: decoder_crashed, decode_timeout, or media_too_large for its memory.
            ResourceError: no child can be started here.
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
        """End the children that wait for calls now, rather than with this object."""
        with suppress(queue.Empty):
            while True:
                if (child := self._children.get_nowait()) is not None:
                    child.end()


class _LostError(Exception):
    """The child is gone, and with it the call."""

    def __init__(self, error_type: ErrorType, message: str) -> None:
        super().__init__(message)
        self.error_type = error_type


class _Forker:
    """The process that forks children: one for each module, for as long as this process."""

    _known: dict[str, "_Forker"] = {}  # noqa: RUF012
    _lock = threading.Lock()

    def __init__(self, module: str, quiet: bool) -> None:
        self._control, theirs = Pipe()
        self.process = _starter.submit(_start, module, theirs.fileno(), quiet).result()
        theirs.close()
        atexit.register(_end, self.process)
        self._modules: frozenset[str] = frozenset()

    @classmethod
    def of(cls, module: str, quiet: bool) -> "_Forker":
        """Return the one for a module; start it if there is none, or it has ended."""
        with cls._lock:
            forker = cls._known.get(module)
            if forker is None or forker.process.poll() is not None:
                forker = cls._known[module] = _Forker(module, quiet)
            return forker

    def fork(self, modules: Collection[str], fds: list[int]) -> frozenset[str]:
        """Have a child forked that holds ``fds``; returns which modules it has.

        Does not wait for it. If there is none, the other ends of ``fds`` tell.
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
    """A child process, a socket to it, and one to its forker, which ends it and tells its end."""

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

    def call(self, request: bytes, limits: Limits) -> Any:
        try:
            if self._pid is None:
                self._pid = self._await_start()
            self._lane.send_bytes(request)
            self._await_answer(self._pid, limits)
            ok, answer = receive(self._lane)
        except (EOFError, OSError):
            message = f"the decoder's process ended with {_name(self._ended())}"
            raise _LostError(ErrorType.DECODER_CRASHED, message) from None
        except _LostError:
            self._ended()
            raise
        if not ok:
            raise answer
        return answer

    def _await_start(self) -> int:
        with suppress(EOFError):
            if self._lane.poll(START_SECONDS):
                return int.from_bytes(self._lane.recv_bytes())
        code = self._ended()
        if code == -signal.SIGKILL:  # ended by someone, not by itself
            raise EOFError
        raise ResourceError(
            f"a process for decoding does not start: {sys.executable} -m {__name__} ended with "
            f"{_name(code)}; its own messages are in the worker's log"
        )

    def _await_answer(self, pid: int, limits: Limits) -> None:
        deadline = time.monotonic() + limits.timeout_seconds
        while not self._lane.poll(min(_TICK_SECONDS, limits.timeout_seconds)):
            if time.monotonic() > deadline:
                raise _LostError(
                    ErrorType.DECODE_TIMEOUT,
                    f"not done after {limits.timeout_seconds:g} s; if the media is sound, raise "
                    "resources.decode_timeout_seconds",
                )
            resident = _resident_bytes(pid)
            if resident > limits.max_resident_bytes:
                raise _LostError(
                    ErrorType.MEDIA_TOO_LARGE,
                    f"decoding took {resident / 2**30:.1f} GiB of memory, over "
                    "resources.decode_memory_gib "
                    f"{limits.max_resident_bytes / 2**30:g}",
                )

    def _ended(self) -> int:
        """End the child, or its end was noticed: its exit code, else its forker's."""
        self.lost = True
        self.end()
        with suppress(EOFError, OSError):
            if self._handle.poll(_END_SECONDS):
                return int.from_bytes(self._handle.recv_bytes(), signed=True)
        with suppress(subprocess.TimeoutExpired):
            return self._forker.process.wait(_END_SECONDS)
        return -signal.SIGKILL  # it was sent, and waits for a disk or network


def _start(module: str, control: int, quiet: bool) -> subprocess.Popen[bytes]:
    folders = os.pathsep.join(os.path.abspath(folder) for folder in sys.path)
    return subprocess.Popen(
        [sys.executable, "-P", "-m", __name__, module, str(os.getpid()), str(control)],
        pass_fds=[control],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL if quiet else None,
        # No threads of a library that are lost in a fork; decoders multiply no matrices.
        env=os.environ | {"PYTHONPATH": folders, "OPENBLAS_NUM_THREADS": "1"},
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def _ask_to_end(handle: Connection) -> None:
    with suppress(OSError):
        handle.send_bytes(b"end")


def _name(code: int) -> str:
    """An ending's name: a signal, or an exit code."""
    with suppress(ValueError):
        return signal.Signals(-code).name
    return f"exit code {code}"


def _resident_bytes(pid: int) -> int:
    """Memory of a process; 0 where there is no /proc to tell."""
    try:
        with open(f"/proc/{pid}/statm") as file:
            return int(file.read().split()[1]) * mmap.PAGESIZE
    except (OSError, IndexError):
        return 0


def _serve(lane: Connection, environment: dict[str, str], folder: str) -> None:
    """A child: answer requests until the caller is gone."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if (parent := multiprocessing.parent_process()) is None or os.getppid() != parent.pid:
        os._exit(0)  # its forker ended before that
    os.environ.clear()
    os.environ.update(environment)
    with suppress(OSError):
        os.chdir(folder)
    try:
        lane.send_bytes(os.getpid().to_bytes(8))
        while True:
            request = lane.recv_bytes()
            try:
                function, args = pickle.loads(request)
                answer = True, function(*args)
            except Exception as error:  # the boundary: it is raised again in the parent
                error.add_note(traceback.format_exc())
                answer = False, _sendable(error)
            send(lane, answer)
            del answer  # not one unit's frames beside the next one's
    except (EOFError, OSError):
        os._exit(0)
    finally:
        os._exit(1)


def _sendable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # an exception's own pickling may raise anything
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _main(module: str, parent: int, control_fd: int) -> None:
    """The forker: fork a child when asked to, end it when asked to, tell how it ended."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before that
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    importlib.import_module(module)
    control = Connection(control_fd)
    fork = multiprocessing.get_context("fork")
    children: dict[int, tuple[Any, Connection]] = {}  # by sentinel
    asked: dict[Connection, Any] = {}
    while True:
        for ready in wait([control, *asked, *children]):
            if ready is control:
                try:
                    modules, environment, folder = pickle.loads(control.recv_bytes())
                    lane, handle = (Connection(recv_handle(control)) for _ in range(2))
                except (EOFError, OSError):
                    return  # the caller's process ends
                _import(modules)
                gc.collect()
                gc.freeze()  # children do not write to what they share
                child = fork.Process(target=_serve, args=(lane, environment, folder))
                child.start()
                lane.close()
                children[child.sentinel] = child, handle
                asked[handle] = child
            elif ready in children:
                child, handle = children.pop(ready)
                child.join()
                asked.pop(handle, None)
                with suppress(OSError):
                    handle.send_bytes(child.exitcode.to_bytes(4, signed=True))
                handle.close()
            elif ready in asked:
                asked.pop(ready).kill()


def _import(modules: Collection[str]) -> None:
    for name in modules:
        try:
            importlib.import_module(name)
        except Exception as error:  # the call itself will say what it misses
            logger.debug("%s is not imported: %s", name, error)


if __name__ == "__main__":
    _main(sys.argv[1], *map(int, sys.argv[2:]))
