"""Engines that die, hang or leak: every unit has its row, and only those at fault are errors."""

import faulthandler
import io
import mmap
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pyarrow.dataset as ds
import pytest
import ray
from PIL import Image
from rich.console import Console

import pipeline.stages.graph
from jobs.plan import plan
from jobs.run import annotate, driver
from pipeline.workers.child_limits import resident_bytes
from pipeline.workers.code_version import code_digest
from pipeline.workers.engine_guard import DeathsActor, Guard, group_by_deaths, running_deaths
from schemas.errors import ResourceError
from schemas.job.job import Job, check_job
from schemas.job.resources import Resources
from tests.support.job_files import hide_ray

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
    """Rows by file name: engines run on Ray, and the plan, which has none, is made without it."""
    console = Console(file=io.StringIO(), width=120)
    with pytest.MonkeyPatch.context() as patch:
        hide_ray(patch)
        plan.run(spec, console)
    annotate.run(spec, console)
    return rows_of(spec)


def rows_of(spec: Job) -> dict[str, dict]:
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


def make_faulty(log: Path, before, calls_at_once: int = 1) -> type:
    """The stage Generate whose engine calls ``before`` with the units; it notes its process."""

    class Engine:
        def __init__(self, engine) -> None:
            self._engine = engine

        def generate(self, units, generation=None):
            with log.open("a") as file:
                file.write(f"{os.getpid()} {len(units)}\n")
            before(self, units)
            return self._engine.generate(units, generation)

    class Faulty(pipeline.stages.graph.Generate):
        CALLS_AT_ONCE = {"simulated": calls_at_once}  # noqa: RUF012

        def _load(self, job):
            self._guard.seconds_per_token = 1e-6  # as if it had been measured: hangs are noticed
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

    with monkeypatch.context() as patch:
        hide_ray(patch)  # its rows are the same without Ray
        whole_job = job(checkpoint, media, tmp_path / "whole")
        annotate.run(whole_job, Console(file=io.StringIO(), width=120))
    whole = rows_of(whole_job)
    faulty = make_faulty(tmp_path / "log", misbehave)
    monkeypatch.setattr(pipeline.stages.graph, "Generate", faulty)
    rows = run(job(checkpoint, media, tmp_path / "out", replicas=1, engine_timeout_seconds=5))
    assert rows.keys() == whole.keys()
    at_fault = {"03.png", "07.png"}
    for name, row in rows.items():
        if name in at_fault:
            assert row["error"] == {
                "stage": "engine",
                "type": "engine_crashed",
                "message": "the engine's process died 3 times at this unit, the last time alone "
                "with it",
                "attempts": 3,
            }
        else:
            assert row["caption"] == whole[name]["caption"]
            assert row["error"] == whole[name]["error"]
    calls = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    assert len({pid for pid, _ in calls}) <= 2 * 3 + 1  # three deaths for each, no more
    assert ["1"] in [rest for _, *rest in calls]  # alone at last


@pytest.mark.parametrize("hangs", [1, 9])
def test_an_engine_that_hangs_while_it_loads(
    media: Path,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    hangs: int,
):
    """It is started anew; where that does not help, the run ends with a message."""
    log = tmp_path / "log"

    class Hangs(pipeline.stages.graph.Generate):
        def _load(self, job):
            with log.open("a") as file:
                file.write("one\n")
            if len(log.read_text().splitlines()) <= hangs:
                time.sleep(600)
            return super()._load(job)

    monkeypatch.setattr(pipeline.stages.graph, "Generate", Hangs)
    spec = job(checkpoint, media, tmp_path / "out", replicas=1, engine_load_timeout_seconds=5)
    if hangs == 1:
        assert len(run(spec)) == 13
        assert log.read_text().count("one") == 2
    else:
        with pytest.raises(ResourceError, match=r"died 3 times while it loaded .* over 5 s"):
            run(spec)
        assert log.read_text().count("one") == 3


def together(units) -> list:
    """Units as far as a guard needs them: ids, costs and statuses."""
    return [SimpleNamespace(unit_id=name, predicted_cost=1.0, status="planned") for name in units]


def call_all(guard: Guard, blocks, generate) -> None:
    with ThreadPoolExecutor(len(blocks)) as pool:
        list(pool.map(lambda block: guard.answer(together(block), generate), blocks))


def meet_of_three():
    """A ``generate`` that three threads pass at once, or none."""
    barrier = threading.Barrier(3, timeout=300)

    def generate(units):
        barrier.wait()
        return units

    return generate


def test_an_engine_works_on_several_blocks_at_a_time():
    with running_deaths() as deaths:
        guard = Guard(DeathsActor(deaths), Resources(), num_threads=3)
        with guard.start():
            pass
        call_all(guard, [["a"], ["b"], ["c"]], meet_of_three())


def deadlines(guard: Guard, costs, monkeypatch) -> list[float]:
    """Seconds that the guard allows for units of these costs, one after the other."""
    allowed = []
    monkeypatch.setattr(
        faulthandler, "dump_traceback_later", lambda seconds, **_: allowed.append(seconds)
    )
    for cost in costs:
        unit = SimpleNamespace(unit_id="a", predicted_cost=cost, status="planned")
        guard.answer([unit], lambda units: units)
    return list(allowed)


class NoDeaths:
    """A ``DeathsLink`` without an actor."""

    engine_id = "one"

    def call(self, method: str, *args):
        return [0 for _ in args[0]] if method == "count" else None


def test_the_first_block_of_an_engine_on_a_gpu_has_no_day(media, checkpoint, tmp_path, monkeypatch):
    """Three clips of 26,000 tokens: 22 hours on a CPU, under 45 minutes on a GPU."""
    spec = job(checkpoint, media, tmp_path, engine_timeout_seconds=1800)
    first, second = deadlines(Guard(NoDeaths(), spec.resources), [78_000.0] * 2, monkeypatch)
    assert first == pytest.approx(1800 + 78_000, abs=1)
    assert second < 1900, "measured: it was fast"

    class OnGpu(pipeline.stages.graph.Generate):
        def _load(self, job):
            return None, ()

        def allowed(self) -> list[float]:
            return deadlines(self._guard, [78_000.0], monkeypatch)

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    settings = {"source": str(checkpoint), "device": "auto"}
    on_gpu = spec.model_copy(update={"model": type(spec.model)(**settings)})
    on_cpu = spec.model_copy(update={"model": type(spec.model)(**settings | {"device": "cpu"})})
    seconds = [OnGpu(each, NoDeaths(), code_digest(), 1).allowed() for each in (on_gpu, on_cpu)]
    assert [each for (each,) in seconds] == pytest.approx([2580, 79_800], abs=1)


def test_the_actor_ends_with_its_run():
    """Ray would keep it until the driver exits, since its handle was pickled."""
    with running_deaths() as deaths:
        pickled = ray.cloudpickle.dumps(deaths)
        assert ray.get(ray.cloudpickle.loads(pickled).count.remote(["a"])) == [0]

    def ask_on() -> None:
        while True:  # Ray ends it in the background; what came before is still answered
            ray.get(ray.cloudpickle.loads(pickled).count.remote(["a"]))

    with pytest.raises(ray.exceptions.RayActorError):
        ask_on()


def test_units_at_which_an_engine_may_have_died_have_it_to_themselves():
    with running_deaths() as deaths:
        with Guard(DeathsActor(deaths), Resources(), num_threads=3).start():
            pass
        name = str(ray.get_runtime_context().get_actor_id())
        ray.get([deaths.begin.remote(name, 1, ["a1", "a2"]), deaths.begin.remote(name, 2, ["b"])])
        again = Guard(
            DeathsActor(deaths), Resources(), num_threads=3
        )  # in the process that Ray starts next
        with again.start():
            pass
        inside, most_inside = [], {}

        def generate(units):
            inside.append(units)
            time.sleep(0.05)
            most_inside[units[0].unit_id] = len(inside)
            inside.remove(units)
            return units

        call_all(again, [["a1", "a2"], ["c"], ["b"], ["d"], ["e"]], generate)
        assert (most_inside["a1"], most_inside["b"]) == (1, 1)
        call_all(again, [["c"], ["d"], ["e"]], meet_of_three())  # afterwards, three at once again
        names = ["a1", "a2", "b", "c", "start of None"]
        assert ray.get(deaths.count.remote(names)) == [1, 1, 1, 0, 0]


def test_an_engine_that_dies_while_it_works_on_several_blocks(
    media: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The unit at fault is named, and those beside it have their answers."""

    def die(engine, units) -> None:
        if any(unit.uri.endswith("07.png") and unit.error is None for unit in units):
            os.kill(os.getpid(), 9)

    faulty = make_faulty(tmp_path / "log", die, calls_at_once=3)
    monkeypatch.setattr(pipeline.stages.graph, "Generate", faulty)
    monkeypatch.setattr(
        driver,
        "in_blocks",
        lambda units, *args: [units.slice(k, 2) for k in range(0, units.num_rows, 2)],
    )
    rows = run(job(checkpoint, media, tmp_path / "out", replicas=1))
    errors = {name: row["error"]["type"] for name, row in rows.items() if row["error"]}
    assert errors == {"07.png": "engine_crashed", "broken.jpg": "media_unreadable"}
    assert len(rows) == 13


def test_an_engine_that_leaks_is_replaced_between_blocks(
    media: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def leak(engine, units) -> None:
        engine.kept = [*getattr(engine, "kept", []), b"\1" * (100 << 20)]

    monkeypatch.setattr(pipeline.stages.graph, "Generate", make_faulty(tmp_path / "log", leak))
    monkeypatch.setattr(
        driver,
        "in_blocks",
        lambda units, *args: [units.slice(k, 1) for k in range(units.num_rows)],
    )
    rows = run(job(checkpoint, media, tmp_path / "out", replicas=1, engine_growth_gib=0.5))
    assert {row["error"]["type"] for row in rows.values() if row["error"]} == {"media_unreadable"}
    pids = [line.split()[0] for line in (tmp_path / "log").read_text().splitlines()]
    assert len(pids) == len(rows)  # nothing was done twice
    assert max(map(pids.count, pids)) == 7  # the first, and six more that leaked 600 MB
    assert len(set(pids)) == 2


def test_pages_of_the_object_store_are_no_growth():
    store = mmap.mmap(-1, 256 << 20)  # shared memory, as Ray's
    own = mmap.mmap(-1, 64 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    before = resident_bytes()
    for memory in (store, own):
        for page in range(0, len(memory), mmap.PAGESIZE):
            memory[page] = 1
    assert 48 << 20 < resident_bytes() - before < 80 << 20


def test_units_at_which_an_engine_died_come_again_in_smaller_groups():
    assert list(group_by_deaths([0] * 30)) == [list(range(30))]
    assert list(group_by_deaths([1, 0, 1, 0, 2, 2, 3])) == [[1, 3], [0, 2], [4], [5], [6]]
    assert [len(group) for group in group_by_deaths([1] * 20)] == [8, 8, 4]
