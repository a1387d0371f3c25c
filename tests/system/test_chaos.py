"""A short storm of kills; the long one is `make chaos`."""

import random
from pathlib import Path

import pytest

from tests.system import chaos


@pytest.mark.timeout(900)
def test_after_kills_of_driver_decoder_engine_and_node_every_unit_has_its_row(
    checkpoint: Path, tmp_path: Path
):
    chaos.make_media(tmp_path / "media")
    machines = chaos.Machines()
    try:
        whole = chaos.undisturbed(
            chaos.Job(tmp_path, checkpoint, str(tmp_path / "whole"), {}), machines
        )
        job = chaos.Job(tmp_path, checkpoint, str(tmp_path / "out"), {})
        victims = ("driver", "planner", "decoder", "engine", "node")
        outcome = chaos.storm(job, machines, len(victims), random.Random(1), victims)
    finally:
        machines.close()
    chaos.check(job, whole, outcome)
    assert not outcome.wrong, (outcome.wrong, (tmp_path / "driver.log").read_text()[-3000:])
    assert outcome.kills  # something was killed before the run was complete
