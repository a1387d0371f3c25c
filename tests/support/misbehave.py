"""Functions that break their process as a decoder may, to call in a child process."""

import contextlib
import faulthandler
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from pipeline.storage.media_file import MediaFile
from pipeline.storage.storage import Storage
from schemas.errors import ErrorType, UnitError


def pid() -> int:
    return os.getpid()


def loaded(module: str) -> tuple[int, bool]:
    return os.getpid(), module in sys.modules


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def crash() -> None:
    faulthandler._sigsegv()


def crash_once(marker: str) -> str:
    if not os.path.exists(marker):
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "answered"


def hang() -> None:
    while True:
        time.sleep(10)


def hang_holding_the_interpreter() -> None:
    """Never return, and block all other threads of the process, as broken C code may."""
    sys.setswitchinterval(1e6)
    while True:
        pass


def eat_memory() -> None:
    eaten = []
    while True:
        eaten.append(np.ones(1 << 22))


def start_program(mark: str, then: str) -> int:
    """Start a program as a library may, leave its number in a file, and break as ``then`` says."""
    started = subprocess.Popen(["sleep", "600"])
    Path(mark).write_text(str(started.pid))
    if then:
        globals()[then]()
    return started.pid


def hold_memory(folder: str, num_bytes: int) -> int:
    """Note this process, take memory, and keep it until the file ``go`` is there."""
    (Path(folder) / str(os.getpid())).touch()
    held = np.ones(num_bytes // 8)
    while not (Path(folder) / "go").exists():
        time.sleep(0.01)
    return held.nbytes


def die_once(folder: str, other: int) -> bool:
    """Be killed as by a kernel that lacks memory; then return whether another process runs."""
    mark = Path(folder) / "died"
    if not mark.exists():
        mark.touch()
        die()
    return is_running(other)


def is_running(process_id: int) -> bool:
    """Whether a process runs and is no zombie."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process_id}/status").read_text()
    except OSError:
        return False


def frames(*shape: int) -> list[np.ndarray]:
    numbers = np.arange(np.prod(shape), dtype=np.uint64).astype(np.uint8).reshape(shape)
    return [numbers, numbers[:, ::2], np.empty((0, 3)), numbers + 1]


def refuse(message: str) -> None:
    raise UnitError(ErrorType.MEDIA_UNREADABLE, message)


def after(seconds: float, answer: int) -> int:
    time.sleep(seconds)
    return answer


class Trap(Storage):
    """Storage that crashes, hangs or fills the process that opens a file, by the file's name.

    A name with the words ``crash``, ``hang`` or ``bomb`` does so when it is decoded; when it is
    planned, if the name also ends with ``plan``.
    """

    @contextlib.contextmanager
    def open_media(self, uri: str, *, header_only: bool = False):
        with super().open_media(uri, header_only=header_only) as opened:
            self._spring(Path(uri).stem, opened, header_only)
            yield opened

    def _spring(self, name: str, opened: MediaFile, header_only: bool) -> None:
        if name.endswith("plan") != header_only:
            return
        words = name.split()
        if "crash" in words:
            crash()
        if "hang" in words:
            hang_holding_the_interpreter()
        if "bomb" in words:
            eat_memory()
