"""The process that forks children for ``child_process``, and what each child does.

Its arguments are ``MODULE PARENT_PID CONTROL_FD``. It imports ``MODULE`` and then forks a child for
each request of the parent over the control socket.
"""

import ctypes
import gc
import importlib
import logging
import multiprocessing
import os
import pickle
import signal
import traceback
from collections.abc import Collection
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import recv_handle
from typing import Any

from pipeline.workers.shared_memory import send

logger = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1


def _serve(lane: Connection, environment: dict[str, str], folder: str) -> None:
    """Answer requests in a child, until the parent's end of the socket is closed.

    The child leads a session: what a library may start belongs to its group, and ends with it.
    """
    os.setsid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if (parent := multiprocessing.parent_process()) is None or os.getppid() != parent.pid:
        os._exit(0)  # the forker died before prctl
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
            except Exception as error:  # the boundary: the parent raises it again
                error.add_note(traceback.format_exc())
                answer = False, sendable(error)
            send(lane, answer)
            del answer  # do not hold one unit's frames during the next call
    except (EOFError, OSError):
        os._exit(0)
    finally:
        os._exit(1)


def sendable(error: Exception) -> Exception:
    """Return an exception that another process can unpickle: this one, or its text."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # an exception's pickling may raise anything
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def main(module: str, parent: int, control_fd: int) -> None:
    """Fork and kill children as the parent requests, and report each child's exit code."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent died before prctl
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    importlib.import_module(module)
    control = Connection(control_fd)
    fork = multiprocessing.get_context("fork")
    children: dict[int, tuple[Any, Connection]] = {}  # by sentinel
    handles: dict[Connection, Any] = {}
    while True:
        for ready in wait([control, *handles, *children]):
            if ready is control:
                try:
                    modules, environment, folder = pickle.loads(control.recv_bytes())
                    lane, handle = (Connection(recv_handle(control)) for _ in range(2))
                except (EOFError, OSError):
                    return  # the parent's process ends
                _import(modules)
                gc.collect()
                gc.freeze()  # the collector does not touch shared pages in children
                child = fork.Process(target=_serve, args=(lane, environment, folder))
                child.start()
                lane.close()
                children[child.sentinel] = child, handle
                handles[handle] = child
            elif ready in children:
                child, handle = children.pop(ready)
                _kill(child)  # before join, after which the group's number may be another's
                child.join()
                handles.pop(handle, None)
                with suppress(OSError):
                    handle.send_bytes(child.exitcode.to_bytes(4, signed=True))
                handle.close()
            elif ready in handles:
                _kill(handles.pop(ready))


def _kill(child: Any) -> None:
    """Kill a child and all processes of its group."""
    child.kill()
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)


def _import(modules: Collection[str]) -> None:
    for name in modules:
        try:
            importlib.import_module(name)
        except Exception as error:  # the call itself will raise it
            logger.debug("%s is not imported: %s", name, error)
