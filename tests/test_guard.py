"""Engines that die, hang or leak: every unit has its row, and only those at fault are errors."""

import io
import mmap
import os
import time
from pathlib import Path

import pyarrow.dataset as ds
import pytest
from PIL import Image
from rich.console import Console

import pipeline.build
from jobs import annotate
from pipeline.guard import _groups, resident_bytes
from schemas.job import Job, check_job

pytestmark = pytest.mark.usefixtures("ray_session")


def job(checkpoint: Path, media: Path, output: Path, **resources) -> Job:
    spec = {
        "input": {"scan": str(media)},
        "output": str(output),
        "model": {
            "source": str(checkpoint),
            "engine": "simulated",
            "simulated": {"speed": 1000.0, "output_tokens": 8},
        },
        "budget": {"image_tokens": [4, 64]},
        "resources": resources,
    }
    return check_job(spec, "test")


def run(spec: Job) -> dict[str, dict]:
    annotate.run(spec, Console(file=io.StringIO(), width=120))
    rows = ds.dataset(Path(spec.output) / "annotations", partitioning="hive").to_table().to_pylist()
    found = {Path(row["uri"]).name: row for row in rows}
    assert len(found) == len(rows)
    return found


@pytest.fixture(scope="module")
def media(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("media")
    for k in range(12):
        Image.new("RGB", (64, 64), (20 * k, 9, 99)).save(folder / f"{k:02}.png")
    (folder / "broken.jpg").write_bytes(b"<html>404</html>")
    return folder


def make_faulty(log: Path, before) -> type:
    """The stage Generate whose engine calls ``before`` with the units; it notes its process."""

    class Engine:
        def __init__(self, engine) -> None:
            self._engine = engine

        def generate(self, units, generation=None):
            with log.open("a") as file:
                file.write(f"{os.getpid()} {len(units)}\n")
            before(self, units)
            return self._engine.generate(units, generation)

    class Faulty(pipeline.build.Generate):
        def _load(self, job):
            self._guard._seconds_per_token = 1e-6  # as if it had been measured: hangs are noticed
            engine, broken = super()._load(job)
            return Engine(engine), broken

    return Faulty


def test_units_that_kill_or_hang_engines_are_error_rows_and_the_run_goes_on(
    media: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def misbehave(engine, units) -> None:
        names = {Path(unit.uri).name for unit in units if unit.status != "failed"}
        if "03.png" in names:
            os.kill(os.getpid(), 9)
        if "07.png" in names:
            time.sleep(600)

    whole = run(job(checkpoint, media, tmp_path / "whole"))
    faulty = make_faulty(tmp_path / "log", misbehave)
    monkeypatch.setattr(pipeline.build, "Generate", faulty)
    rows = run(job(checkpoint, media, tmp_path / "out", replicas=1, engine_timeout_seconds=2))
    assert rows.keys() == whole.keys()
    at_fault = {"03.png", "07.png"}
    for name, row in rows.items():
        if name in at_fault:
            assert row["error"] == {
                "stage": "engine",
                "type": "engine_crashed",
                "message": "the engine's process ended 3 times at this unit, the last time at it "
                "alone",
                "attempts": 3,
            }
        else:
            assert row["caption"] == whole[name]["caption"]
            assert row["error"] == whole[name]["error"]
    calls = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    assert len({pid for pid, _ in calls}) <= 2 * 3 + 1  # three deaths for each, no more
    assert ["1"] in [rest for _, *rest in calls]  # alone at last


@pytest.mark.long
def test_an_engine_that_leaks_is_replaced_between_blocks(
    media: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def leak(engine, units) -> None:
        engine.kept = [*getattr(engine, "kept", []), b"\1" * (100 << 20)]

    monkeypatch.setattr(pipeline.build, "Generate", make_faulty(tmp_path / "log", leak))
    monkeypatch.setattr(
        annotate,
        "in_blocks",
        lambda units, *args: [units.slice(k, 1) for k in range(units.num_rows)],
    )
    rows = run(job(checkpoint, media, tmp_path / "out", replicas=1, engine_growth_gib=0.5))
    assert {row["error"]["type"] for row in rows.values() if row["error"]} == {"media_unreadable"}
    pids = [line.split()[0] for line in (tmp_path / "log").read_text().splitlines()]
    assert len(pids) == len(rows)  # nothing was done twice
    assert max(map(pids.count, pids)) == 7  # the first, and six more that leaked 600 MB
    assert len(set(pids)) == 2


def test_what_an_engine_reads_of_the_object_store_is_no_growth():
    store = mmap.mmap(-1, 256 << 20)  # shared memory, as Ray's
    own = mmap.mmap(-1, 64 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    before = resident_bytes()
    for memory in (store, own):
        for page in range(0, len(memory), mmap.PAGESIZE):
            memory[page] = 1
    assert 48 << 20 < resident_bytes() - before < 80 << 20


def test_what_an_engine_died_at_comes_again_in_smaller_groups():
    assert list(_groups([0] * 30)) == [list(range(30))]
    assert list(_groups([1, 0, 1, 0, 2, 2, 3])) == [[1, 3], [0, 2], [4], [5], [6]]
    assert [len(group) for group in _groups([1] * 20)] == [8, 8, 4]
