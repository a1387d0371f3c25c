"""Run decoders in processes of their own: what crashes, hangs or eats memory costs its own call.

A child is a fresh interpreter, kept for many calls. It takes a function with its arguments through
a socket and sends back what that returns; arrays come in shared memory, of which the caller maps
the pages. The caller keeps the deadline and watches the child's memory from outside, since broken
C code may hold the interpreter for ever. A child ends with its parent, whatever either is doing.

This guards against faults of FFmpeg and Pillow. It is no sandbox against code made to break out.
"""

import ctypes
import importlib
import mmap
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
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from multiprocessing.reduction import recv_handle, send_handle
from typing import TYPE_CHECKING, Any

from schemas.errors import ErrorType, ResourceError, UnitError

if TYPE_CHECKING:  # a child starts sooner without
    from schemas.job import Resources

START_SECONDS = 300.0
"""A child that is not ready by then will never be: the machine, not the media, is at fault."""

_TICK_SECONDS = 0.2
_PR_SET_PDEATHSIG = 1
_ALIGNMENT = 64

# The kernel ends a child when the thread that started it ends: one that lives as long as we.
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
    """Calls functions in child processes.

    module: imported as a child starts, since a deadline is not for that.
    num_lanes: calls at a time. If several share a child that is lost, each of them is tried again
        with a child for itself, so that only the one at fault pays.
    """

    def __init__(self, module: str, num_lanes: int = 1) -> None:
        self._module = module
        self._lock = threading.Lock()
        self._alone = threading.Lock()
        self._children: dict[int, _Child] = {}
        self._num_lanes = num_lanes
        self._child(num_lanes)  # it starts while the caller does other things

    def call(self, function: Callable[..., Any], *args: Any, limits: Limits) -> Any:
        """Return what ``function`` returns; raise what it raises.

        Function and arguments must pickle. A child that died or grew too large is tried once
        more, in case that was not this call's doing; a deadline that passed is final.

        Raises:
            UnitError: decoder_crashed, decode_timeout, or media_too_large for its memory.
            ResourceError: no child can be started here.
        """
        request = pickle.dumps((function, args), protocol=pickle.HIGHEST_PROTOCOL)
        if self._num_lanes > 1:
            with suppress(_LostError):
                return self._child(self._num_lanes).call(request, limits)
        with self._alone:
            try:
                return self._child(1).call(request, limits)
            except _LostError as lost:
                if lost.error_type == ErrorType.DECODE_TIMEOUT:
                    raise UnitError(lost.error_type, str(lost)) from None
            try:
                return self._child(1).call(request, limits)
            except _LostError as lost:
                raise UnitError(lost.error_type, str(lost), attempts=2) from None

    def _child(self, num_lanes: int) -> "_Child":
        with self._lock:
            child = self._children.get(num_lanes)
            if child is None or child.lost:
                child = self._children[num_lanes] = _Child(self._module, num_lanes)
            return child

    def close(self) -> None:
        """End the children now, rather than with this object."""
        for child in self._children.values():
            child.end()


class _LostError(Exception):
    """The child is gone, and with it the call."""

    def __init__(self, error_type: ErrorType, message: str) -> None:
        super().__init__(message)
        self.error_type = error_type


class _Child:
    """A child process with ``num_lanes`` sockets, a thread of it at each."""

    def __init__(self, module: str, num_lanes: int) -> None:
        pairs = [Pipe() for _ in range(num_lanes)]
        fds = [theirs.fileno() for _, theirs in pairs]
        self._process = _starter.submit(_start, module, fds).result()
        self._lanes: queue.SimpleQueue[tuple[Connection, bool]] = queue.SimpleQueue()
        for ours, theirs in pairs:
            theirs.close()
            self._lanes.put((ours, False))
        self.lost = False
        self.end = weakref.finalize(self, _end, self._process)

    def call(self, request: bytes, limits: Limits) -> Any:
        lane, is_ready = self._lanes.get()
        try:
            if not is_ready:
                self._await_start(lane)
            lane.send_bytes(request)
            self._await_answer(lane, limits)
            ok, answer = _receive(lane)
        except (EOFError, OSError):
            self._give_up()
            message = f"the decoder's process ended with {_ending(self._process)}"
            raise _LostError(ErrorType.DECODER_CRASHED, message) from None
        except _LostError:
            self._give_up()
            raise
        finally:
            self._lanes.put((lane, True))
        if not ok:
            raise answer
        return answer

    def _await_start(self, lane: Connection) -> None:
        try:
            if lane.poll(START_SECONDS):
                lane.recv_bytes()
                return
        except EOFError:
            if self.lost or -(self._process.poll() or 0) == signal.SIGKILL:
                raise  # ended by someone, not by itself
        self._give_up()
        raise ResourceError(
            f"a process for decoding does not start: {sys.executable} -m {__name__} ended with "
            f"{_ending(self._process)}; its own messages are in the worker's log"
        )

    def _await_answer(self, lane: Connection, limits: Limits) -> None:
        deadline = time.monotonic() + limits.timeout_seconds
        while not lane.poll(min(_TICK_SECONDS, limits.timeout_seconds)):
            if time.monotonic() > deadline:
                raise _LostError(
                    ErrorType.DECODE_TIMEOUT,
                    f"not done after {limits.timeout_seconds:g} s; if the media is sound, raise "
                    "resources.decode_timeout_seconds",
                )
            resident = _resident_bytes(self._process.pid)
            if resident > limits.max_resident_bytes:
                raise _LostError(
                    ErrorType.MEDIA_TOO_LARGE,
                    f"decoding took {resident / 2**30:.1f} GiB of memory, over "
                    "resources.decode_memory_gib "
                    f"{limits.max_resident_bytes / 2**30:g}",
                )

    def _give_up(self) -> None:
        self.lost = True
        self.end()


def _start(module: str, fds: list[int]) -> subprocess.Popen[bytes]:
    folders = os.pathsep.join(os.path.abspath(folder) for folder in sys.path)
    numbers = [str(number) for number in (os.getpid(), *fds)]
    return subprocess.Popen(
        [sys.executable, "-P", "-m", __name__, module, *numbers],
        pass_fds=fds,
        stdin=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": folders},
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def _ending(process: subprocess.Popen[bytes]) -> str:
    """How a process that was waited for ended: its signal, or its exit code."""
    code = process.returncode
    with suppress(ValueError, TypeError):
        return signal.Signals(-code).name
    return f"exit code {code}"


def _resident_bytes(pid: int) -> int:
    """Memory of a process; 0 where there is no /proc to tell."""
    try:
        with open(f"/proc/{pid}/statm") as file:
            return int(file.read().split()[1]) * mmap.PAGESIZE
    except (OSError, IndexError):
        return 0


def _send(lane: Connection, answer: tuple[bool, Any]) -> None:
    """Send an answer, the contents of its arrays in shared memory."""
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(answer, protocol=5, buffer_callback=buffers.append)
    views = [buffer.raw() for buffer in buffers]
    lane.send((head, [view.nbytes for view in views]))
    if views:
        fd = os.memfd_create("frames")
        try:
            os.ftruncate(fd, sum(_padded(view.nbytes) for view in views))
            at = 0
            for view in views:
                done = 0
                while done < view.nbytes:
                    done += os.pwrite(fd, view[done:], at + done)
                at += _padded(view.nbytes)
            send_handle(lane, fd, None)
        finally:
            os.close(fd)


def _receive(lane: Connection) -> tuple[bool, Any]:
    head, sizes = lane.recv()
    if not sizes:
        return pickle.loads(head)  # type: ignore[no-any-return]
    fd = recv_handle(lane)
    try:
        shared = memoryview(mmap.mmap(fd, max(sum(map(_padded, sizes)), 1)))
    finally:
        os.close(fd)
    views, at = [], 0
    for size in sizes:
        views.append(shared[at : at + size])
        at += _padded(size)
    return pickle.loads(head, buffers=views)  # type: ignore[no-any-return]


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _serve(lane: Connection) -> None:
    """Answer requests until the parent is gone."""
    try:
        lane.send_bytes(b"ready")
        while True:
            request = lane.recv_bytes()
            try:
                function, args = pickle.loads(request)
                answer = True, function(*args)
            except Exception as error:  # the boundary: it is raised again in the parent
                error.add_note(traceback.format_exc())
                answer = False, _sendable(error)
            _send(lane, answer)
            del answer  # not one unit's frames beside the next one's
    except (EOFError, OSError):
        os._exit(0)
    finally:  # no thread of it may end alone: the caller would wait
        os._exit(1)


def _sendable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # an exception's own pickling may raise anything
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _main(module: str, parent: int, *fds: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before that
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    importlib.import_module(module)
    for fd in fds[1:]:
        threading.Thread(target=_serve, args=(Connection(fd),), daemon=True).start()
    _serve(Connection(fds[0]))


if __name__ == "__main__":
    _main(sys.argv[1], *map(int, sys.argv[2:]))
