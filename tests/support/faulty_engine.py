"""Engines that die or hang, which another process can import."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

from pipeline.stages.generate import Generate
from pipeline.workers.engine_guard import DeathsLink, Guard
from schemas.errors import ModelError
from schemas.job.resources import Resources
from schemas.tables.unit import AnsweredUnit, PreparedUnit

DEADLY = "kills the engine.png"


class Deadly(Generate):
    """Dies at each unit of the file DEADLY that has not failed yet."""

    def _answer(self, units: list[PreparedUnit]) -> list[AnsweredUnit]:
        if any(Path(u.uri).name == DEADLY and u.error is None for u in units):
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._answer(units)


class Obeys:
    """A stage that does what it is called with, and returns the number of its process."""

    def __init__(self, deaths: DeathsLink, marker: Path, hangs: bool = False) -> None:
        """marker: a file with one character for each start."""
        with marker.open("a") as file:
            file.write("x")
        with Guard(deaths, Resources(engine_load_timeout_seconds=1 if hangs else 3600)).start():
            if hangs:
                time.sleep(600)

    def __call__(self, order: Any) -> int:
        if order == "refuse":
            raise ModelError("the weights are gone")
        if order == "no space":
            raise OSError(28, "No space left on device")
        if order == "an answer that cannot be sent":
            return threading.Lock()  # type: ignore[return-value]
        if isinstance(order, Path) and not order.exists():
            order.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return os.getpid()
