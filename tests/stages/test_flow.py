"""The chain's actors hold what they need and no longer."""

import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.support.waiting import SECONDS, wait_until

pytestmark = pytest.mark.usefixtures("ray_session")


def test_a_replica_without_work_gives_back_its_resources_while_another_works_on(tmp_path: Path):
    """So no GPU is held after its last unit."""
    import ray

    from pipeline.stages.graph import stage
    from pipeline.stages.pools import Pool

    class Waits:
        """Works on the block 1 until there is a file; on the other not at all."""

        def __call__(self, batch: pa.Table) -> pa.Table:
            (tmp_path / f"begun-{batch['block'][0].as_py()}").touch()
            while batch["block"][0].as_py() == 1 and not (tmp_path / "go").exists():
                time.sleep(0.05)
            return batch

    # More than two: the actor that starts first may be given two before the other is there.
    blocks = [pa.table({"block": [int(k == 1)]}) for k in range(6)]
    dataset = stage(ray.data.from_arrow(blocks), Waits, (), Pool(num_actors=2, num_cpus=1))
    done = []
    run = threading.Thread(target=lambda: done.extend(dataset.take_all()))
    cpus = ray.cluster_resources()["CPU"]
    run.start()
    try:
        wait_until(
            lambda: len(list(tmp_path.glob("begun-*"))) >= 2 and _free_cpus() >= cpus - 1, every=0.1
        )
        assert run.is_alive()
    finally:
        (tmp_path / "go").touch()
        run.join(SECONDS)
    assert len(done) == 6


def test_a_piece_of_work_comes_to_the_engine_as_one(monkeypatch: pytest.MonkeyPatch):
    """Else an engine works on one long video at a time."""
    from pipeline.stages import graph as build

    class Frames:
        def __init__(self, *args: object) -> None: ...

        def __call__(self, batch: pa.Table):
            for unit in batch["unit"].to_pylist():
                frames = pa.array([bytes(60 << 20)], pa.large_binary())
                yield pa.table({"unit": [unit], "frames": frames})

    class Counts(Frames):
        calls_at_once = staticmethod(lambda job: 1)

        def __call__(self, batch: pa.Table) -> pa.Table:
            return pa.table({"units": [batch.num_rows]})

    class Passes(Frames):
        def __call__(self, batch: pa.Table) -> pa.Table:
            return batch

    for name, fake in (("Prepare", Frames), ("Generate", Counts), ("Commit", Passes)):
        monkeypatch.setattr(build, name, fake)
    monkeypatch.setattr(build, "largest_media", lambda blocks: None)
    monkeypatch.setattr(build, "frame_bytes", lambda block: np.zeros(1))
    pools = build.Pools(
        decoders=1, cpus_per_decoder=1, replicas=1, cpus_per_replica=1, gpus_per_replica=0
    )
    units = pa.table({"unit": list(range(4))})
    with build.build_annotate([units], None, None, None, pools, 8) as dataset:
        assert dataset.take_all() == [{"rows": [{"units": 4}]}]


def _free_cpus() -> float:
    import ray

    return ray.available_resources().get("CPU", 0.0)
