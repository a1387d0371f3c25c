"""A stage in a process of its own: it survives what ends the process."""

import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pipeline.workers.engine_process import EngineProcess
from schemas.errors import ModelError, ResourceError
from tests.support.faulty_engine import Obeys


class Unreadable:
    """Raises where it is unpickled."""

    def __reduce__(self) -> tuple:
        return (int, ("no number",))


@pytest.fixture
def engine() -> Iterator[EngineProcess]:
    process = EngineProcess("tests.support.faulty_engine", {"OF_ENGINE": "1"})
    try:
        yield process
    finally:
        process.close()


def test_calls_go_to_one_process_until_it_dies(engine: EngineProcess, tmp_path: Path):
    engine.open(Obeys, marker=tmp_path / "starts")
    first = engine("work")
    assert first == engine("work") != os.getpid()
    assert psutil.Process(first).environ()["OF_ENGINE"] == "1"
    second = engine(tmp_path / "dies once")  # the call is repeated in the next process
    assert second == engine("work") != first
    assert (tmp_path / "starts").read_text() == "xx"


def test_an_error_is_raised_as_itself_and_the_process_stays(engine: EngineProcess, tmp_path: Path):
    engine.open(Obeys, marker=tmp_path / "starts")
    first = engine("work")
    with pytest.raises(ModelError, match="the weights are gone"):
        engine("refuse")
    assert engine("work") == first


@pytest.mark.parametrize(
    ("order", "error"),
    [
        ("no space", OSError),
        ("an answer that cannot be sent", TypeError),
        (Unreadable(), ValueError),
    ],
)
def test_an_error_of_any_kind_is_no_death(engine: EngineProcess, tmp_path: Path, order, error):
    """Also one that looks like a lost process, and what cannot be sent."""
    engine.open(Obeys, marker=tmp_path / "starts")
    first = engine("work")
    with pytest.raises(error):
        engine(order)
    assert engine("work") == first
    assert (tmp_path / "starts").read_text() == "x"


def test_a_process_that_dies_before_the_stage_is_made_is_started_four_times(tmp_path: Path):
    """Nothing counts its deaths but the driver; without that it would be started for ever."""
    engine = EngineProcess("tests.support.dies_at_import", {"OF_ENGINE": "1"})
    try:
        engine.open(Obeys, marker=tmp_path / "starts")
        with pytest.raises(ResourceError, match="does not start: it ended with SIGKILL"):
            engine("work")
    finally:
        engine.close()
    assert not (tmp_path / "starts").exists()


def test_a_start_that_hangs_is_ended_and_tried_three_times(engine: EngineProcess, tmp_path: Path):
    engine.open(Obeys, marker=tmp_path / "starts", hangs=True)
    with pytest.raises(ResourceError, match="died 3 times while it loaded the model"):
        engine("work")
    assert (tmp_path / "starts").read_text() == "xxxx"  # the last one only counts the others
    engine.open(Obeys, marker=tmp_path / "starts")  # another stage begins anew
    assert engine("work")


def test_a_closed_one_is_not_started_again(engine: EngineProcess, tmp_path: Path):
    engine.open(Obeys, marker=tmp_path / "starts")
    process = psutil.Process(engine("work"))
    engine.close()
    assert not process.is_running()
    with pytest.raises((EOFError, OSError)):
        engine("work")
    assert (tmp_path / "starts").read_text() == "x"
