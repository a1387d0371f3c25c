"""A check becomes one line, whatever it does, and within its deadline."""

import threading
import time

import pytest

from jobs.console import waiting
from jobs.doctor.finding import State, Warn, checked
from schemas.errors import ErrorType, StorageError, UnitError


def raising(error: Exception):
    def check() -> str:
        raise error

    return check


@pytest.mark.parametrize(
    ("error", "state", "text"),
    [
        (Warn("slow"), State.WARNING, "slow"),
        (StorageError("s3://b: denied"), State.TO_DO, "s3://b: denied"),
        (UnitError(ErrorType.MEDIA_MISSING, "gone"), State.TO_DO, "gone"),
        (KeyError("surprise"), State.TO_DO, "KeyError: 'surprise'"),
        (RecursionError("deep"), State.TO_DO, "RecursionError: deep"),
        (ValueError("two\nlines\x1b[2J"), State.TO_DO, "ValueError: two lines\\x1b[2J"),
        (ValueError("at https://u:pw@h/x?sig=1"), State.TO_DO, "ValueError: at https://h/x?..."),
    ],
)
def test_what_a_check_raises_is_its_line(error: Exception, state: State, text: str):
    found = checked("job", "name", raising(error))
    assert (found.state, found.text) == (state, text)


def test_a_check_that_is_late_is_announced_and_left_behind(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(waiting, "SECONDS", 0.1)
    end = threading.Event()
    begin = time.monotonic()
    found = checked("output", "write", lambda: str(end.wait(600)), seconds=0.3)
    assert time.monotonic() - begin < 300
    end.set()
    assert found.state == State.TO_DO and found.text.startswith("no answer within 0.3 s")
    assert caplog.messages == ["still waiting for the check of output: write"]
