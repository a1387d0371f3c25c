"""Decoders in processes of their own: crashes, hangs and bombs cost their own call, and no more."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from pipeline.workers.child_limits import ChildLimits
from pipeline.workers.child_process import Isolated
from schemas.errors import ErrorType, ResourceError, UnitError
from tests.support.misbehave import (
    after,
    crash,
    crash_once,
    die,
    eat_memory,
    frames,
    hang,
    hang_holding_the_interpreter,
    is_running,
    loaded,
    pid,
    refuse,
    start_program,
)
from tests.support.paths import ROOT
from tests.support.waiting import wait_until

LIMITS = ChildLimits(timeout_seconds=60, max_resident_bytes=1 << 30)
SHORT = ChildLimits(timeout_seconds=1, max_resident_bytes=1 << 30)


@pytest.fixture
def isolated():
    made = Isolated("tests.support.misbehave")
    yield made
    made.close()


@pytest.mark.parametrize("shape", [(4, 8, 3), (5, 777, 3), (20, 640, 512)])
def test_arrays_come_back_as_they_are(isolated, shape):
    for sent, came in zip(
        frames(*shape), isolated.call(frames, *shape, limits=LIMITS), strict=True
    ):
        assert came.dtype == sent.dtype
        assert np.array_equal(sent, came)


def test_calls_share_a_child_that_is_another_process(isolated):
    pids = {isolated.call(pid, limits=LIMITS) for _ in range(3)}
    assert len(pids) == 1
    assert pids != {os.getpid()}


def test_what_it_raises_is_raised_here(isolated):
    with pytest.raises(UnitError, match="no such luck") as caught:
        isolated.call(refuse, "no such luck", limits=LIMITS)
    assert caught.value.error_type == ErrorType.MEDIA_UNREADABLE
    with pytest.raises(ZeroDivisionError) as divided:
        isolated.call(divmod, 1, 0, limits=LIMITS)
    assert "forker.py" in divided.value.__notes__[0]


def test_a_crash_costs_its_own_call(isolated):
    before = isolated.call(pid, limits=LIMITS)
    with pytest.raises(UnitError, match="process ended with SIGSEGV") as caught:
        isolated.call(crash, limits=LIMITS)
    assert caught.value.error_type == ErrorType.DECODER_CRASHED
    assert caught.value.attempts == 2
    assert isolated.call(pid, limits=LIMITS) != before


def test_a_child_that_was_killed_is_no_fault_of_the_call(isolated, tmp_path):
    assert isolated.call(crash_once, str(tmp_path / "marker"), limits=LIMITS) == "answered"
    os.kill(isolated.call(pid, limits=LIMITS), signal.SIGKILL)
    assert isolated.call(abs, -1, limits=LIMITS) == 1


@pytest.mark.parametrize("function", [hang, hang_holding_the_interpreter])
def test_a_hang_ends_at_its_deadline(isolated, function):
    child = isolated.call(pid, limits=LIMITS)
    isolated.call(abs, -1, limits=LIMITS)
    with pytest.raises(UnitError, match=r"not done after 1 s; .*decode_timeout_seconds") as caught:
        isolated.call(function, limits=SHORT)
    assert caught.value.error_type == ErrorType.DECODE_TIMEOUT
    assert not is_running(child)
    assert isolated.call(abs, -1, limits=LIMITS) == 1


def test_memory_is_bounded(isolated):
    small = ChildLimits(timeout_seconds=60, max_resident_bytes=300 << 20)
    with pytest.raises(UnitError, match=r"GiB of memory, over resources\.decode_memory_gib") as was:
        isolated.call(eat_memory, limits=small)
    assert was.value.error_type == ErrorType.MEDIA_TOO_LARGE
    assert isolated.call(abs, -1, limits=LIMITS) == 1


@pytest.mark.parametrize("then", ["hang", "eat_memory", "crash", "die"])
def test_what_a_child_has_started_ends_with_it(isolated, tmp_path, then):
    small = ChildLimits(timeout_seconds=5 if then == "hang" else 300, max_resident_bytes=300 << 20)
    with pytest.raises(UnitError):
        isolated.call(start_program, str(tmp_path / "mark"), then, limits=small)
    wait_until(lambda: not is_running(int((tmp_path / "mark").read_text())))


def test_what_a_child_has_started_ends_with_the_calls(tmp_path):
    isolated = Isolated("tests.support.misbehave")
    started = isolated.call(start_program, str(tmp_path / "mark"), "", limits=LIMITS)
    assert is_running(started)
    isolated.close()
    wait_until(lambda: not is_running(started))


def test_of_calls_at_a_time_only_the_bad_ones_fail():
    bad = {crash: ErrorType.DECODER_CRASHED, hang: ErrorType.DECODE_TIMEOUT}
    isolated = Isolated("tests.support.misbehave", 4)
    with ThreadPoolExecutor(4) as pool:
        lost = {f: pool.submit(isolated.call, f, limits=SHORT) for f in bad}
        answers = [pool.submit(isolated.call, after, 0.3, k, limits=LIMITS) for k in range(12)]
        assert [answer.result() for answer in answers] == list(range(12))
        assert {f: call.exception().error_type for f, call in lost.items()} == bad
    isolated.close()


def test_few_calls_keep_few_children():
    isolated = Isolated("tests.support.misbehave", 4)
    assert len({isolated.call(pid, limits=LIMITS) for _ in range(8)}) == 1


def test_modules_are_imported_before_children_are_forked(isolated):
    """Once for all children, and one that has them not yet is replaced."""
    wanted = {"wave", "no_such_module"}
    before = isolated.call(loaded, "wave", limits=LIMITS)
    with_it = isolated.call(loaded, "wave", limits=LIMITS, modules=wanted)
    assert (before[1], with_it[1]) == (False, True)
    assert before[0] != with_it[0]
    assert isolated.call(loaded, "wave", limits=LIMITS) == with_it


def test_a_child_has_the_environment_and_folder_of_now(isolated, monkeypatch, tmp_path):
    isolated.call(pid, limits=LIMITS)
    monkeypatch.setenv("PLANTED", "now")
    monkeypatch.chdir(tmp_path)
    other = Isolated("tests.support.misbehave")
    assert other.call(os.getenv, "PLANTED", limits=LIMITS) == "now"
    assert other.call(os.getcwd, limits=LIMITS) == str(tmp_path)


def test_hundreds_of_crashes_cost_little(isolated):
    """A child is forked, not started: a start imports for a second or more."""
    for _ in range(100):
        with pytest.raises(UnitError, match="SIGKILL"):
            isolated.call(die, limits=LIMITS)
    assert isolated.call(abs, -1, limits=LIMITS) == 1


def test_a_forker_that_ends_is_started_again(isolated):
    forker = isolated.call(os.getppid, limits=LIMITS)
    os.kill(forker, signal.SIGKILL)
    wait_until(lambda: not is_running(forker))
    assert isolated.call(os.getppid, limits=LIMITS) != forker


def test_what_cannot_start_is_the_machines_fault():
    with pytest.raises(ResourceError, match=r"did not start: .* ended with exit code 1"):
        Isolated("no_such_module").call(pid, limits=LIMITS)


@pytest.mark.parametrize("busy", ["hang", "hang_holding_the_interpreter", None])
def test_no_child_outlives_its_parent(busy, tmp_path):
    """The parent is killed with SIGKILL, and its child is idle, waits, or never looks up again."""
    doing = f"isolated.call(misbehave.{busy}, limits=limits)" if busy else "time.sleep(600)"
    code = f"""
import sys, time; sys.path[:0] = {[str(ROOT), *sys.path]!r}
from tests.support import misbehave
from pipeline.workers.child_limits import ChildLimits
from pipeline.workers.child_process import Isolated
limits = ChildLimits(timeout_seconds=600, max_resident_bytes=1 << 40)
isolated = Isolated("tests.support.misbehave")
print(isolated.call(misbehave.pid, limits=limits), flush=True)
{doing}
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    child = int(parent.stdout.readline())
    assert is_running(child)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_until(lambda: not is_running(child))


def test_a_child_outlives_the_thread_that_made_it(isolated):
    found: list[int] = []
    os.kill(isolated.call(pid, limits=LIMITS), signal.SIGKILL)
    thread = threading.Thread(target=lambda: found.append(isolated.call(pid, limits=LIMITS)))
    thread.start()
    thread.join()
    time.sleep(0.2)
    assert isolated.call(pid, limits=LIMITS) == found[0]


def test_a_fork_of_the_parent_has_children_of_its_own(isolated):
    """As a data loader of training has, whose parent has decoded before."""
    ours = isolated.call(os.getppid, limits=LIMITS)
    code = f"""
import os, sys; sys.path[:0] = {[str(ROOT), *sys.path]!r}
from pipeline.workers.child_limits import ChildLimits
from pipeline.workers.child_process import Isolated
limits = ChildLimits(timeout_seconds=600, max_resident_bytes=1 << 40)
ours = Isolated("tests.support.misbehave").call(os.getppid, limits=limits)
if os.fork() == 0:
    theirs = Isolated("tests.support.misbehave").call(os.getppid, limits=limits)
    os._exit(0 if theirs != ours else 1)
print(os.waitstatus_to_exitcode(os.wait()[1]))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["0"]
    assert isolated.call(os.getppid, limits=LIMITS) == ours
