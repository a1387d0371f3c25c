"""How time and the driver's memory grow with the number of units: planning, annotating, going on.

Each size runs in a process of its own, on one machine, in one of two ways.

stages         the whole pipeline: one tiny image under as many ids, really planned, decoded,
               prompted, parsed and written; the simulated engine takes no time.
orchestration  the stages' actors make rows by copying one: what is left is what does not spread
               over a cluster, the driver's work, and Ray's.

    python benchmarks/bench_growth.py                             the short form
    python benchmarks/bench_growth.py orchestration 1000000       any size, by one way
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
SHORT = [("stages", 1_000), ("orchestration", 10_000), ("orchestration", 50_000)]
OUT = ROOT / "build" / "bench" / "growth.json"


def main() -> None:
    from jobs.tiny_checkpoint import write_tiny_checkpoint

    runs = [(sys.argv[1], int(size)) for size in sys.argv[2:]] or SHORT
    results = []
    with tempfile.TemporaryDirectory() as folder:
        write_tiny_checkpoint(Path(folder) / "checkpoint")
        for way, size in runs:
            command = [sys.executable, __file__, "--child", folder, way, str(size)]
            environment = os.environ | {"RAY_ADDRESS": "local"}
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
            results.append(json.loads(done.stdout.decode().splitlines()[-1]))
            print(_line(results[-1]), flush=True)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps({"cpus": os.cpu_count(), "runs": results}, indent=2))
    print(f"  -> {OUT}")


def _line(found: dict) -> str:
    steps = ", ".join(
        f"{name} {step['seconds']:.1f} s (driver's CPU {step['driver_cpu_seconds']:.1f} s)"
        for name, step in found["steps"].items()
    )
    return f"growth: {found['way']}, {found['units']:,} units: {steps}; driver {_memory(found)}"


def _memory(found: dict) -> str:
    return (
        f"{found['driver_mib']:,} MiB at most, {found['driver_own_mib']:,} MiB its own at the end"
    )


def child(folder: Path, way: str, size: int) -> None:
    """Plan, annotate and go on with ``size`` units; prints the figures as JSON."""
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image
    from rich.console import Console

    from jobs import annotate, plan
    from jobs.cluster import start_ray
    from schemas.job import check_job

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
    if way == "orchestration":
        copy_rows(job, folder)
    timed("plan", lambda: plan.run(job, quiet()))
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
    print(json.dumps({"way": way, "units": size, "steps": steps} | figures))


def copy_rows(job, folder: Path) -> None:
    """Put stages in the place of the real ones that copy the row that those made of one item."""
    import hashlib

    import pyarrow as pa

    from pipeline import build
    from pipeline.stages import COMMITTED
    from pipeline.storage import Storage
    from pipeline.write import ANNOTATION, RunKey, annotation_row, part_name, write_parquet
    from schemas.manifest import MediaItem
    from schemas.unit import ANSWERED, PREPARED, UNIT, AnsweredUnit, from_table

    storage, code = Storage(), build.code_digest()
    item = MediaItem(media_id="one", uri=str(folder / "tiny.png"))
    planned = build.Plan(job, 262_144, storage, code)({"item": [item]})
    (prepared,) = build.Prepare(job, storage, code)(planned)
    answered = build.Generate(job, build.remember_deaths(), code, 1.0)(prepared)
    (unit,) = from_table(answered, AnsweredUnit)
    questions = {question.task: question for question in job.questions()}
    key = RunKey(run_id="none", recipe_id="none", run_date="none")
    row = pa.Table.from_pylist([annotation_row(unit, questions, key)], schema=ANNOTATION)

    def copies(one: pa.Table, schema: pa.Schema, **columns) -> pa.Table:
        count = len(columns["unit_id"])
        table = one.take(pa.array([0] * count))
        for name, values in columns.items():
            at = schema.get_field_index(name)
            table = table.set_column(at, schema.field(at), pa.array(values, pa.string()))
        return table.cast(schema)

    def ids_of(batch: pa.Table) -> dict[str, pa.Array]:
        return {name: batch[name].combine_chunks() for name in ("unit_id", "media_id")}

    class Plan:
        def __init__(self, *args) -> None:
            pass

        def __call__(self, batch) -> pa.Table:
            media = [item.media_id for item in batch["item"]]
            ids = [hashlib.sha256(name.encode()).hexdigest()[:24] for name in media]
            return copies(planned, UNIT, unit_id=ids, media_id=media)

    class Prepare(Plan):
        def __call__(self, batch: pa.Table) -> pa.Table:
            return copies(prepared, PREPARED, **ids_of(batch))

    class Generate(Plan):
        calls_at_once = staticmethod(lambda job: 1)

        def __call__(self, batch: pa.Table) -> pa.Table:
            return copies(answered, ANSWERED, **ids_of(batch))

    class Commit(Plan):
        def __init__(self, job, key, storage, code) -> None:
            self.job, self.key, self.storage = job, key, storage

        def __call__(self, batch: pa.Table) -> pa.Table:
            ids, n = batch["unit_id"].to_pylist(), batch.num_rows
            names = {"run_id": [self.key.run_id] * n, "recipe_id": [self.key.recipe_id] * n}
            table = copies(row, ANNOTATION, **ids_of(batch), **names)
            place = f"{self.job.output}/annotations/run_date={self.key.run_date}/"
            name = part_name(ids, self.key.run_id, self.key.recipe_id)
            write_parquet(table, place + name, self.storage)
            numbers = {f.name: 1 for f in COMMITTED if pa.types.is_primitive(f.type)}
            same = numbers | {"status": "ok", "responses": [], "timings": {"decode_seconds": 0.001}}
            account = [same | {"unit_id": unit_id} for unit_id in ids]
            return pa.Table.from_pylist(account, schema=COMMITTED)

    build.Plan, build.Prepare, build.Generate, build.Commit = Plan, Prepare, Generate, Commit


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
    else:
        main()
