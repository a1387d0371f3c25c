"""All calls at a time have one limit of memory; what does not fit beside others is tried alone."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.workers import child_process
from pipeline.workers.child_limits import ChildLimits
from pipeline.workers.child_process import Isolated
from schemas.errors import ErrorType, UnitError
from tests.support.misbehave import after, die_once, hold_memory, is_running, pid
from tests.support.waiting import wait_until

MIB = 1 << 20
LIMITS = ChildLimits(timeout_seconds=600, max_resident_bytes=256 * MIB)


def noted(folder: Path) -> list[int]:
    return [int(mark.name) for mark in folder.iterdir() if mark.name.isdecimal()]


@pytest.mark.parametrize("share", [0.9, 0.6, 0.4])
def test_calls_that_exceed_the_limit_together_are_done_one_after_the_other(tmp_path, share):
    """Each fits into the limit; before the file is there, so many run as fit together."""
    isolated = Isolated("tests.support.misbehave", 6)
    num_bytes = int(share * LIMITS.max_resident_bytes)

    def fit() -> bool:
        found = noted(tmp_path)
        # Where several are the largest, all of them end: then fewer run, and the others wait.
        return len(found) >= 6 and 1 <= sum(map(is_running, found)) <= int(1 / share)

    with ThreadPoolExecutor(6) as pool:
        calls = [
            pool.submit(isolated.call, hold_memory, str(tmp_path), num_bytes, limits=LIMITS)
            for _ in range(6)
        ]
        try:
            wait_until(fit)
        finally:
            (tmp_path / "go").touch()  # else the calls would wait for ever
        assert [call.result() for call in calls] == [num_bytes // 8 * 8] * 6
    isolated.close()


@pytest.mark.parametrize(
    ("losses", "alone", "error"),
    [
        ("cm", [False, False, True], None),
        ("cmm", [False, False, True], ErrorType.MEDIA_TOO_LARGE),
        ("mc", [False, True], ErrorType.DECODER_CRASHED),
        ("cc", [False, False], ErrorType.DECODER_CRASHED),
        ("mm", [False, True], ErrorType.MEDIA_TOO_LARGE),
        ("t", [False], ErrorType.DECODE_TIMEOUT),
    ],
)
def test_nothing_is_too_large_before_it_was_tried_alone(monkeypatch, losses, alone, error):
    """c: a crash, m: too much memory, t: a deadline; then the call succeeds."""
    kinds = {"c": ErrorType.DECODER_CRASHED, "m": ErrorType.MEDIA_TOO_LARGE,
             "t": ErrorType.DECODE_TIMEOUT}  # fmt: skip
    left, seen = list(losses), []

    class Child:
        def call(self, *args: object) -> str:
            if not left:
                return "done"
            kind = left.pop(0)
            raise child_process._LostError(kinds[kind], "lost", lacked_memory=kind == "m")

    @contextmanager
    def child(self, modules, *, is_alone: bool):
        seen.append(is_alone)
        yield Child()

    monkeypatch.setattr(Isolated, "_child", child)
    isolated = Isolated("tests.support.misbehave", 2)
    if error is None:
        assert isolated.call(pid, limits=LIMITS) == "done"
    else:
        with pytest.raises(UnitError) as caught:
            isolated.call(pid, limits=LIMITS)
        assert caught.value.error_type == error
    assert seen == alone


def test_a_call_that_is_too_large_alone_fails_and_the_others_do_not(tmp_path):
    isolated = Isolated("tests.support.misbehave", 4)
    (tmp_path / "go").touch()
    with ThreadPoolExecutor(4) as pool:
        bad = pool.submit(isolated.call, hold_memory, str(tmp_path), 2048 * MIB, limits=LIMITS)
        good = [pool.submit(isolated.call, after, 0.1, k, limits=LIMITS) for k in range(20)]
        assert [call.result() for call in good] == list(range(20))
        with pytest.raises(UnitError, match=r"over resources\.decode_memory_gib 0\.25") as caught:
            bad.result()
    assert caught.value.error_type == ErrorType.MEDIA_TOO_LARGE
    assert caught.value.attempts == 2
    isolated.close()


def test_what_the_kernel_killed_is_tried_alone(tmp_path):
    isolated = Isolated("tests.support.misbehave", 4)
    with ThreadPoolExecutor(2) as pool:
        held = pool.submit(isolated.call, hold_memory, str(tmp_path), MIB, limits=LIMITS)
        wait_until(lambda: bool(noted(tmp_path)))
        (other,) = noted(tmp_path)
        killed = pool.submit(isolated.call, die_once, str(tmp_path), other, limits=LIMITS)
        wait_until((tmp_path / "died").exists)
        assert is_running(other) and not killed.done()
        (tmp_path / "go").touch()
        assert held.result() == MIB
        assert killed.result() is False  # the other one had ended with its call
    isolated.close()


def test_memory_that_an_idle_child_keeps_does_not_count_against_others(tmp_path):
    """Its child is ended instead."""
    isolated = Isolated("tests.support.misbehave", 2)
    with ThreadPoolExecutor(2) as pool:
        calls = [
            pool.submit(isolated.call, hold_memory, str(tmp_path), 200 * MIB, limits=LIMITS)
            for _ in range(2)
        ]
        wait_until(lambda: len(noted(tmp_path)) == 2 and sum(map(is_running, noted(tmp_path))) == 1)
        (tmp_path / "go").touch()
        assert all(call.result() for call in calls)
    before = isolated.call(pid, limits=LIMITS)
    assert isolated.call(pid, limits=LIMITS) == before
    isolated.close()
