"""Start the processes that fork children, and ask them for children.

multiprocessing's forkserver does not fit: a process has only one, with the environment and the path
of its first use, and each child imports the caller's main module, here Ray's worker.
"""

import atexit
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Pipe
from multiprocessing.reduction import send_handle

_FORKER = (
    "import sys, _reelscribe; from pipeline.workers.forker import main; "
    "main(sys.argv[1], *map(int, sys.argv[2:]))"
)

# The kernel kills a child when the thread that started it ends: this thread ends with the process.
_starter = ThreadPoolExecutor(1, thread_name_prefix="isolate")


class Forker:
    """The process that forks children: one for each module, as long as this process runs."""

    _known: dict[str, "Forker"] = {}  # noqa: RUF012
    _lock = threading.Lock()

    def __init__(self, module: str, quiet: bool) -> None:
        self._control, theirs = Pipe()
        self.process = _starter.submit(_start, module, theirs.fileno(), quiet).result()
        theirs.close()
        atexit.register(_kill, self.process)
        self._modules: frozenset[str] = frozenset()

    @classmethod
    def of(cls, module: str, quiet: bool) -> "Forker":
        """Return the forker of a module; start it if there is none, or it has ended."""
        with cls._lock:
            forker = cls._known.get(module)
            if forker is None or forker.process.poll() is not None:
                forker = cls._known[module] = Forker(module, quiet)
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


def _forget() -> None:
    """Leave alone what belongs to the process of which this one, as a data loader, is a fork."""
    global _starter
    _starter = ThreadPoolExecutor(1, thread_name_prefix="isolate")
    Forker._known, Forker._lock = {}, threading.Lock()


os.register_at_fork(after_in_child=_forget)


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
