"""Hold a stage in a process of its own, without Ray, so that its death does not end the driver.

The driver's end is ``EngineProcess``: it sends a batch and waits for the answer. If the process
dies, another one gets the same batch; ``engine_guard`` limits that, as it does on Ray. The other
end is ``main``. Both share a socket, over which the process also reaches ``Deaths`` in the driver;
arrays and tables are in shared memory.
"""

import ctypes
import gc
import importlib
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection, Pipe
from typing import Any

from pipeline.workers.forker import sendable
from pipeline.workers.shared_memory import receive, send
from schemas.errors import ResourceError

logger = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1
_MAIN = (
    "import sys, _reelscribe; from pipeline.workers.engine_process import main; "
    "main(sys.argv[1], *map(int, sys.argv[2:]))"
)
_ENGINE_ID = "engine"
_MESSAGE_CHARS = 2000


class EngineProcess:
    """A process that holds one stage; the thread that makes it must outlive it."""

    def __init__(self, module: str, environment: Mapping[str, str]) -> None:
        """Start the process, which imports ``module`` while the caller does other things.

        environment: variables that differ from this process's.
        """
        self._module, self._environment = module, dict(environment)
        self._stage: tuple[type[Any], dict[str, Any]] | None = None
        self._deaths: Any = None
        self._lock, self._is_closed = threading.Lock(), False
        self._start()

    def open(self, stage: type[Any], **arguments: Any) -> None:
        """Name the stage, which ``load`` or the first call makes; it gets ``deaths`` as well."""
        from pipeline.workers.engine_guard import Deaths  # the start does not wait for this import

        self._stage, self._deaths, self._is_open = (stage, arguments), Deaths(), False

    def load(self) -> None:
        """Make the stage now; raise what that raises."""
        self._repeated(lambda: None)

    def __call__(self, batch: Any) -> Any:
        """Return what the stage returns for a batch; raise what it raises."""
        return self._repeated(lambda: self._ask("call", batch))

    def _repeated(self, ask: Callable[[], Any]) -> Any:
        from pipeline.workers.engine_guard import MAX_DEATHS

        num_starts = 0
        while True:
            try:
                if not self._is_open:
                    num_starts += 1
                    self._ask("open", self._stage)
                    self._is_open, num_starts = True, 0
                return ask()
            except _DiedError:
                with self._lock:
                    if self._is_closed:
                        raise
                    how = self._end()
                    # Its guard counts deaths while it loads; before that, nothing else does.
                    if num_starts > MAX_DEATHS:
                        raise ResourceError(
                            f"the engine's process does not start: it {how}"
                        ) from None
                    logger.warning("the engine's process %s; it is started again", how)
                    self._start()

    def close(self) -> None:
        """End the process; a call that waits for it in another thread raises."""
        with self._lock:
            self._is_closed = True
            self._process.kill()
            self._process.wait()
            self._messages.close()

    def _end(self) -> str:
        """Return how the process has ended, and its last messages."""
        self._process.kill()  # if it lives, it cannot be reached
        code = self._process.wait()
        self._lane.close()
        with self._messages:
            self._messages.seek(0)
            last = self._messages.read().decode(errors="replace").strip()[-_MESSAGE_CHARS:]
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return f"ended with {how}" + (f" after it wrote: {last}" if last else "")

    def _start(self) -> None:
        self._is_open = False
        self._lane, theirs = Pipe()
        folders = os.pathsep.join(os.path.abspath(folder) for folder in sys.path)
        # OpenMP's idle threads would spin on cores that decoders need.
        environment = {"OMP_WAIT_POLICY": "PASSIVE"} | os.environ | {"PYTHONPATH": folders}
        self._messages = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        arguments = [self._module, str(os.getpid()), str(theirs.fileno())]
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _MAIN, *arguments],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._messages,  # of libraries; errors of the stage are raised here
            env=environment | self._environment,
            process_group=0,  # Ctrl-C is for the driver, which ends this process
        )
        theirs.close()

    def _ask(self, kind: str, content: Any) -> Any:
        try:
            kind, answer = self._exchange(kind, content)
        except (EOFError, OSError) as error:
            raise _DiedError from error
        if kind == "error":  # which may be an OSError too
            raise answer
        return answer

    def _exchange(self, kind: str, content: Any) -> tuple[str, Any]:
        send(self._lane, (kind, content))
        while True:
            kind, content = receive(self._lane)
            if kind != "deaths":
                return kind, content
            method, args = content
            send(self._lane, ("noted", getattr(self._deaths, method)(*args)))


class _DiedError(EOFError):
    """The engine's process cannot be reached."""


class _DeathsLink:
    """The ``DeathsLink`` of this process."""

    engine_id = _ENGINE_ID

    def __init__(self, lane: Connection) -> None:
        self._lane = lane

    def call(self, method: str, *args: Any) -> Any:
        send(self._lane, ("deaths", (method, args)))
        return receive(self._lane)[1]


def main(module: str, parent: int, lane_fd: int) -> None:
    """Make a stage and answer calls, until the driver's end of the socket is closed."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent died before prctl
        return
    lane = Connection(lane_fd)
    # The collector would visit all modules again and again: a fifth of the time of the imports.
    gc.disable()
    try:
        importlib.import_module(module)
    except Exception as error:  # the stage itself will raise it
        logger.debug("%s is not imported: %s", module, error)
    stage: Any = None
    while True:
        answer: Any = None
        try:
            kind, content = receive(lane)
        except (EOFError, OSError):
            return
        except Exception as error:  # it cannot be unpickled here
            send(lane, ("error", sendable(error)))
            continue
        try:
            if kind == "open":
                stage = None  # its memory is free before the next one is made
                stage_class, arguments = content
                stage = stage_class(**arguments, deaths=_DeathsLink(lane))
                gc.freeze()
                gc.enable()
            else:
                answer = stage(content)
            send(lane, ("answer", answer))
        except Exception as error:  # the boundary: the driver raises it
            send(lane, ("error", sendable(error)))
        del content, answer  # do not hold one block during the next call
