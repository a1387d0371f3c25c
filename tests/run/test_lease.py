"""One driver for a run at a time, and no long wait after a kill."""

import io
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from jobs.run import lease
from jobs.run.lease import leased
from pipeline.storage.storage import Storage
from schemas.errors import ResourceError


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.2)
    monkeypatch.setattr(lease, "LOST_SECONDS", 3.0)


def console() -> Console:
    return Console(file=io.StringIO(), width=200)


def left_by(folder: Path, **content) -> None:
    (folder / "lease.json").write_text(json.dumps({"token": "x", "renewed": 7} | content))


def ended_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_second_driver_learns_who_is_at_work(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(lease, "LOST_SECONDS", 60.0)
    with leased(str(tmp_path), Storage(), console()) as first:
        monkeypatch.setattr(lease.os, "getpid", lambda: 1)  # as another process would see it
        with (
            pytest.raises(ResourceError, match=r"process \d+ on .* is at work on this run: wait"),
            leased(str(tmp_path), Storage(), console()),
        ):
            pass
        first.check()
    assert not (tmp_path / "lease.json").exists()


def test_a_driver_killed_on_this_machine_costs_no_wait(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(lease, "LOST_SECONDS", 1e9)
    left_by(tmp_path, host=lease.socket.gethostname(), pid=ended_process())
    with leased(str(tmp_path), Storage(), console()):
        pass


def test_a_driver_killed_elsewhere_costs_a_short_wait(tmp_path: Path):
    left_by(tmp_path, host="gone", pid=12)
    output, begin = console(), time.monotonic()
    with leased(str(tmp_path), Storage(), output) as mine:
        mine.check()
    assert time.monotonic() - begin >= 3.0
    waiting = "process 12 on gone has this run: waiting to see whether it renews its lease"
    assert waiting in output.file.getvalue()


def test_a_driver_taken_for_dead_stops(tmp_path: Path):
    with leased(str(tmp_path), Storage(), console()) as mine:
        left_by(tmp_path, host="other", pid=3)
        deadline = time.monotonic() + 300
        while mine.lost_to is None and time.monotonic() < deadline:
            time.sleep(0.05)
        with pytest.raises(ResourceError, match="process 3 on other has taken over this run"):
            mine.check()
    assert json.loads((tmp_path / "lease.json").read_text())["pid"] == 3  # not ours to remove
