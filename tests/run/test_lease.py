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
from tests.support.waiting import wait_until


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
    with leased(str(tmp_path), Storage(), console()):
        content = json.loads((tmp_path / "lease.json").read_text())
    left_by(tmp_path, **content | {"pid": ended_process(), "token": "x"})
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
        wait_until(lambda: mine.lost_to is not None)
        with pytest.raises(ResourceError, match="process 3 on other has taken over this run"):
            mine.check()
    assert json.loads((tmp_path / "lease.json").read_text())["pid"] == 3  # not ours to remove


def test_a_driver_that_slept_learns_it_before_its_thread_does(tmp_path: Path, monkeypatch):
    """The whole machine was suspended: the thread has not looked yet."""
    monkeypatch.setattr(lease, "RENEW_SECONDS", 1e6)
    with leased(str(tmp_path), Storage(), console()) as mine:
        mine.confirm()
        left_by(tmp_path, host="other", pid=3)
        mine.check()
        with pytest.raises(ResourceError, match="process 3 on other has taken over this run"):
            mine.confirm()


@pytest.mark.parametrize("error", [KeyError("token"), RuntimeError("closed"), RecursionError()])
def test_a_thread_that_cannot_renew_ends_the_run_with_a_message(tmp_path: Path, error: Exception):
    """Whatever the storage raises, also what no one thought of."""

    class Failing(Storage):
        fails = False

        def open_ranges(self, uri: str):
            if self.fails:
                raise error
            return super().open_ranges(uri)

    storage = Failing()
    with leased(str(tmp_path), storage, console()) as mine:
        mine.check()
        storage.fails = True
        wait_until(lambda: mine.failure is not None)
        storage.fails = False
        with pytest.raises(ResourceError, match=rf"cannot be renewed \({type(error).__name__}"):
            mine.check()


@pytest.mark.parametrize("content", ["[]", "7", "{", "[" * 100_000, '{"pid": "x"}', '{"token": 3}'])
def test_a_lease_of_another_form(tmp_path: Path, monkeypatch, content: str):
    """It is no driver's: the run goes on, or says whose it became."""
    monkeypatch.setattr(lease, "LOST_SECONDS", 0.0)
    (tmp_path / "lease.json").write_text(content)
    with leased(str(tmp_path), Storage(), console()) as mine:
        mine.check()


def test_two_containers_of_one_machine_do_not_take_each_other_for_dead(tmp_path: Path):
    """Both drivers have the process id 1, and the name of the machine that they share."""
    with leased(str(tmp_path), Storage(), console()):
        content = json.loads((tmp_path / "lease.json").read_text())
    left_by(tmp_path, **content | {"pid_namespace": "boot 4026531836", "token": "x"})
    output = console()
    with leased(str(tmp_path), Storage(), output):
        pass
    assert "waiting to see whether it renews its lease" in output.file.getvalue()
