"""The chain's actors hold what they need and no longer."""

import threading
import time
from pathlib import Path

import pyarrow as pa
import pytest

pytestmark = pytest.mark.usefixtures("ray_session")

DEADLINE_SECONDS = 120


def test_a_replica_without_work_gives_back_its_resources_while_another_works_on(tmp_path: Path):
    """So no GPU is held after its last unit."""
    import ray

    from pipeline.build import stage

    class Waits:
        """Works on the block 1 until there is a file; on the other not at all."""

        def __call__(self, batch: pa.Table) -> pa.Table:
            (tmp_path / f"begun-{batch['block'][0].as_py()}").touch()
            while batch["block"][0].as_py() == 1 and not (tmp_path / "go").exists():
                time.sleep(0.05)
            return batch

    blocks = [pa.table({"block": [k]}) for k in range(2)]
    dataset = stage(ray.data.from_arrow(blocks), Waits, (), 2, num_cpus=1)
    done = []
    run = threading.Thread(target=lambda: done.extend(dataset.take_all()))
    cpus = ray.cluster_resources()["CPU"]
    run.start()
    try:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while len(list(tmp_path.glob("begun-*"))) < 2 or _free_cpus() < cpus - 1:
            assert time.monotonic() < deadline, f"{_free_cpus()} of {cpus} CPUs are free"
            time.sleep(0.1)
        assert run.is_alive()
    finally:
        (tmp_path / "go").touch()
        run.join(DEADLINE_SECONDS)
    assert len(done) == 2


def _free_cpus() -> float:
    import ray

    return ray.available_resources().get("CPU", 0.0)
