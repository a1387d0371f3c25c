"""How time and the driver's memory grow with the number of units: plan, annotate, continue.

``first rows``: seconds until the first file of rows is there, in an output without a plan.

Each size runs in a process of its own, on one machine, in one of two ways.

stages         the whole pipeline: one tiny image under N ids, really planned, decoded, prompted,
               parsed and written; the simulated engine takes no time.
orchestration  the stages' actors only copy a row: this leaves the work of the driver and of Ray,
               which does not spread over a cluster.

    python benchmarks/bench_growth.py                             the short form
    python benchmarks/bench_growth.py orchestration 1000000       any size, by one way
"""

import os
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT)]

from benchmarks.common import call, is_child, parser, start_ray, write_results  # noqa: E402

SHORT = [("stages", 1_000), ("orchestration", 10_000), ("orchestration", 50_000)]
SMALL = [("stages", 8), ("orchestration", 8)]


def main(argv: list[str] | None = None) -> None:
    from scripts.demo_model.tiny_checkpoint import write_tiny_checkpoint

    arguments = parser(__doc__)
    arguments.add_argument("way", nargs="?", choices=["stages", "orchestration"])
    arguments.add_argument("sizes", nargs="*", type=int)
    options = arguments.parse_args(argv)
    small = options.small
    runs = SMALL if small else [(options.way, size) for size in options.sizes] or SHORT
    results = []
    with tempfile.TemporaryDirectory() as folder:
        write_tiny_checkpoint(Path(folder) / "checkpoint")
        for way, size in runs:
            env = {"RAY_ADDRESS": "local"}
            results.append(call(child, folder, way, str(size), small=small, env=env))
            print(_line(results[-1]), flush=True)
    write_results("growth", {"cpus": os.cpu_count(), "runs": results}, small=small)


def _line(found: dict) -> str:
    steps = ", ".join(
        f"{name} {step['seconds']:.1f} s (driver's CPU {step['driver_cpu_seconds']:.1f} s)"
        for name, step in found["steps"].items()
    )
    first = found["first rows"]
    return (
        f"growth: {found['way']}, {found['units']:,} units: {steps}; driver {_memory(found)}; "
        f"first rows after {first.get('seconds')} s, with {first.get('planned')} units planned"
    )


def _memory(found: dict) -> str:
    return f"{found['driver_mib']:,} MiB peak, {found['driver_own_mib']:,} MiB its own at the end"


def child(place: str, way: str, units: str) -> dict[str, Any]:
    """Plan and annotate ``units`` units, then continue the complete run; returns the figures."""
    folder, size = Path(place), int(units)
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image
    from rich.console import Console

    from jobs.plan import plan
    from jobs.run import annotate
    from pipeline.stages import graph
    from schemas.job.job import check_job

    def quiet() -> Console:
        return Console(file=io.StringIO(), width=120)

    Image.new("RGB", (32, 32), "teal").save(folder / "tiny.png")
    ids = pa.array([f"item-{k:07}" for k in range(size)])
    uris = pa.array(["tiny.png"] * size)
    pq.write_table(pa.table({"uri": uris, "media_id": ids}), folder / f"{size}.parquet")
    job = check_job(
        {
            "name": f"growth-{way}-{size}",
            "input": {"manifest": str(folder / f"{size}.parquet")},
            "output": str(folder / f"out-{way}-{size}"),
            "model": {
                "source": str(folder / "checkpoint"),
                "engine": "simulated",
                "simulated": {"speed": 1e9},
            },
            "tasks": ["caption"],
            "resources": {"cpus_per_replica": 0.5, "units_per_file": 256},
        },
        "the benchmark",
    )
    steps = {}

    def timed(name, work):
        started, cpu = time.perf_counter(), time.process_time()
        result = work()
        steps[name] = {
            "seconds": round(time.perf_counter() - started, 3),
            "driver_cpu_seconds": round(time.process_time() - cpu, 3),
        }
        return result

    start_ray(num_cpus=2)
    stages = copying_stages(job, folder) if way == "orchestration" else {}
    with mock.patch.multiple(graph, **stages) if stages else nullcontext():
        alone = job.model_copy(update={"output": f"{job.output}-planned"})
        timed("plan", lambda: plan.run(alone, quiet()))
        with waiting_for_rows(Path(job.output)) as first:
            run = timed("annotate", lambda: annotate.run(job, quiet()))
        assert run.counts["units"] == size, run.counts
        saved = Path(job.output) / "runs" / run.run_id / "run.json"
        saved.write_text(saved.read_text().replace('"complete"', '"running"', 1))
        again = timed("go on", lambda: annotate.run(job, quiet()))
        assert again.counts["units"] == size, again.counts
    status = Path("/proc/self/status").read_text()
    own = int(status.split("RssAnon:")[1].split()[0]) // 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    figures = {"driver_mib": peak, "driver_own_mib": own}
    return {"way": way, "units": size, "steps": steps, "first rows": first} | figures


@contextmanager
def waiting_for_rows(output: Path) -> Iterator[dict[str, float]]:
    """Yields a dict that gets the seconds until there are rows, and the units planned by then."""
    import pyarrow.parquet as pq

    found: dict[str, float] = {}
    started, ended = time.perf_counter(), threading.Event()

    def watch() -> None:
        while not ended.wait(0.1) and not found:
            if any(output.glob("annotations*/**/*.parquet")):
                found["seconds"] = round(time.perf_counter() - started, 3)
                plans = output.glob("runs/*/plan/*.parquet")
                found["planned"] = sum(pq.read_metadata(file).num_rows for file in plans)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()


def copying_stages(job, folder: Path) -> dict[str, type]:
    """Stages that copy the row that the real stages made from one item, by name in ``graph``."""
    import hashlib

    import pyarrow as pa

    from pipeline.output.file_names import file_name
    from pipeline.output.rows import ANNOTATION, RunKey, annotation_row
    from pipeline.stages import graph as build
    from pipeline.stages.commit import COMMITTED
    from pipeline.storage.parquet import write_parquet
    from pipeline.storage.storage import Storage
    from pipeline.workers.engine_guard import DeathsActor
    from schemas.tables.annotation import PIECES, RecipeIds
    from schemas.tables.columns import from_table
    from schemas.tables.manifest import MediaItem
    from schemas.tables.unit import ANSWERED, PREPARED, UNIT, AnsweredUnit

    storage, code = Storage(), build.code_digest()
    item = MediaItem(media_id="one", uri=str(folder / "tiny.png"))
    planned = build.Plan(job, 262_144, storage, code)({"item": [item]})
    (prepared,) = build.Prepare(job, storage, code)(planned)
    with build.running_deaths() as deaths:
        answered = build.Generate(job, DeathsActor(deaths), code, 1.0)(prepared)
    (unit,) = from_table(answered, AnsweredUnit)
    questions = {question.name: question for question in job.questions()}
    key = RunKey(
        run_id="none", recipe_ids=RecipeIds("none", "none", "none", "none"), run_date="none"
    )
    row = pa.Table.from_pylist([annotation_row(unit, questions, key)], schema=ANNOTATION)

    def copies(one: pa.Table, schema: pa.Schema, **columns) -> pa.Table:
        count = len(columns["unit_id"])
        table = one.take(pa.array([0] * count))
        for name, values in columns.items():
            at = schema.get_field_index(name)
            column = values if isinstance(values, pa.Array) else pa.array(values, pa.string())
            table = table.set_column(at, schema.field(at), column)
        return table.cast(schema)

    def ids_of(batch: pa.Table, *more: str) -> dict[str, pa.Array]:
        return {name: batch[name].combine_chunks() for name in ("unit_id", "media_id", *more)}

    class Plan:
        def __init__(self, *args) -> None:
            pass

        def __call__(self, batch) -> pa.Table:
            media = [item.media_id for item in batch["item"]]
            ids = [hashlib.sha256(name.encode()).hexdigest()[:24] for name in media]
            return copies(planned, UNIT, unit_id=ids, media_id=media)

    class PlanSlice(build.PlanSlice):
        def _probe(self, items) -> pa.Table:
            return Plan()({"item": items})

    class Prepare(Plan):
        def __call__(self, batch: pa.Table) -> pa.Table:
            return copies(prepared, PREPARED, **ids_of(batch, "shard"))

    class Generate(Plan):
        calls_at_once = staticmethod(lambda job: 1)

        def __call__(self, batch: pa.Table) -> pa.Table:
            return copies(answered, ANSWERED, **ids_of(batch, "shard"))

    class Commit(Plan):
        def __init__(self, job, key, storage, code, units_per_file) -> None:
            self.job, self.key, self.storage = job, key, storage

        def __call__(self, batch: pa.Table) -> pa.Table:
            ids, n = batch["unit_id"].to_pylist(), batch.num_rows
            names = {"run_id": [self.key.run_id] * n, "recipe_id": [self.key.recipe_ids.video] * n}
            table = copies(row, ANNOTATION, **ids_of(batch), **names)
            place = f"{self.job.output}/{PIECES}/run_date={self.key.run_date}/"
            shards = batch["shard"].to_numpy()
            for shard in sorted(set(shards.tolist())):
                name = file_name(self.key.run_id, self.key.recipe_ids.video, shard=shard)
                write_parquet(table.filter(pa.array(shards == shard)), place + name, self.storage)
            numbers = {f.name: 1 for f in COMMITTED if pa.types.is_primitive(f.type)}
            same = numbers | {"status": "ok", "responses": [], "timings": {"decode_seconds": 0.001}}
            account = [
                same | {"unit_id": unit_id, "shard": shard}
                for unit_id, shard in zip(ids, shards.tolist(), strict=True)
            ]
            return pa.Table.from_pylist(account, schema=COMMITTED)

    return {
        "Plan": Plan,
        "PlanSlice": PlanSlice,
        "Prepare": Prepare,
        "Generate": Generate,
        "Commit": Commit,
    }


if __name__ == "__main__":
    if not is_child(globals()):
        main()
