"""A run begins with the nodes that are there, and uses those that come later."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.system import chaos

SIZES = {"replicas": 6, "decoders": 3, "cpus_per_replica": 1, "wait_seconds": 120}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_engines_whose_nodes_come_late_are_used(checkpoint: Path, tmp_path: Path):
    """Nine CPUs are wanted, and five are there when the run begins."""
    chaos.make_media(tmp_path / "media")
    job = chaos.Job(tmp_path, checkpoint, str(tmp_path / "out"), {})
    command = [sys.executable, "-m", "jobs.cli", "annotate", str(job.file)]
    for name, value in SIZES.items():
        command += ["--set", f"resources.{name}={value}"]
    command += ["--set", "model.simulated={seconds_per_step: 0.2, output_tokens: 20}"]
    command += ["--set", "resources.max_batch_tokens=512"]
    machines = chaos.Machines()
    with (tmp_path / "driver.log").open("ab") as log:
        environment = os.environ | {"RAY_ADDRESS": machines.address}
        driver = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        wait_for(lambda: job.pieces(), driver, tmp_path)
        with stopped(machines.actors("Generate")) as early:
            assert 1 <= len(early) < 6
            machines.add_node(4)
            wait_for(lambda: len(machines.actors("Generate")) == 6, driver, tmp_path)
        assert driver.wait(600) == 0, said(tmp_path)
    finally:
        machines.close()
        driver.kill()
        driver.wait()
    assert "of 6 engines fit into the cluster now" in said(tmp_path)
    assert len(job.answers()) == len(list((tmp_path / "media").iterdir()))


@contextmanager
def stopped(processes: list[psutil.Process]) -> Iterator[list[psutil.Process]]:
    """Stop processes for a while: a run cannot end without them, however slow a new node is."""
    for process in processes:
        process.suspend()
    try:
        yield processes
    finally:
        for process in processes:
            process.resume()


def wait_for(reached, driver: subprocess.Popen, folder: Path) -> None:
    deadline = time.monotonic() + 300
    while not reached():
        assert driver.poll() is None, said(folder)
        assert time.monotonic() < deadline, said(folder)
        time.sleep(0.2)


def said(folder: Path) -> str:
    return (folder / "driver.log").read_text()[-3000:]
