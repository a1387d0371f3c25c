"""How time and memory grow with the number of units: planning, annotating, going on.

The whole pipeline with the simulated engine, which takes no time here, and one tiny image under as
many ids: what is left is the cost of orchestration. Each size runs in a process of its own, on one
machine; the driver is what does not spread over a cluster.

    python benchmarks/bench_growth.py                   1,000 and 10,000 units
    python benchmarks/bench_growth.py 100000 1000000    as many units as given
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
SIZES = [1_000, 10_000]
OUT = ROOT / "build" / "bench" / "growth.json"


def main() -> None:
    from jobs.tiny_checkpoint import write_tiny_checkpoint

    sizes = [int(size) for size in sys.argv[1:]] or SIZES
    results = []
    with tempfile.TemporaryDirectory() as folder:
        write_tiny_checkpoint(Path(folder) / "checkpoint")
        for size in sizes:
            command = [sys.executable, __file__, "--child", folder, str(size)]
            environment = os.environ | {"RAY_ADDRESS": "local"}
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
            results.append(json.loads(done.stdout.decode().splitlines()[-1]))
            print(_line(results[-1]), flush=True)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps({"cpus": os.cpu_count(), "sizes": results}, indent=2))
    print(f"  -> {OUT}")


def _line(found: dict) -> str:
    steps = ", ".join(
        f"{name} {step['seconds']:.1f} s ({1000 * step['driver_cpu_seconds'] / found['units']:.2f} "
        "ms/unit of the driver)"
        for name, step in found["steps"].items()
    )
    return f"growth: {found['units']:>9,} units: {steps}; driver {found['driver_mib']:,} MiB"


def child(folder: Path, size: int) -> None:
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
            "name": f"growth-{size}",
            "input": {"manifest": str(folder / f"{size}.parquet")},
            "output": str(folder / f"out-{size}"),
            "model": {
                "source": str(folder / "checkpoint"),
                "engine": "simulated",
                "simulated": {"speed": 1e9},
            },
            "tasks": ["caption"],
            "resources": {"cpus_per_replica": 0.5, "cpus_per_decoder": 1, "units_per_file": 1024},
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
    timed("plan", lambda: plan.run(job, quiet()))
    run = timed("annotate", lambda: annotate.run(job, quiet()))
    assert run.counts["units"] == size, run.counts
    saved = Path(job.output) / "runs" / run.run_id / "run.json"
    saved.write_text(saved.read_text().replace('"complete"', '"running"', 1))
    again = timed("go on", lambda: annotate.run(job, quiet()))
    assert again.counts["units"] == size, again.counts
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(json.dumps({"units": size, "steps": steps, "driver_mib": peak}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        main()
