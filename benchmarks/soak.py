"""Memory of a long run: driver, actors and object store, while it annotates many small units.

The whole pipeline with the simulated engine: one tiny image under many ids, really planned,
decoded, prompted, parsed and written. Prints for each kind of process its private memory after
warm-up and at the end, the slope in between, and the driver's peak over the whole run.

    python benchmarks/soak.py [UNITS] [--small]      default 1,000,000: half an hour on two cores
"""

import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT)]

from benchmarks.bench_flow import store  # noqa: E402
from benchmarks.common import parser, start_ray, watching, write_results  # noqa: E402

UNITS = 1_000_000
SAMPLE_SECONDS = 5.0
WARM_UP = 0.25
"""Share of the samples that is left out as warm-up, from the start of annotating."""


def main(argv: list[str] | None = None) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image
    from rich.console import Console

    from jobs.run import annotate
    from schemas.job.job import check_job
    from scripts.demo_model.tiny_checkpoint import write_tiny_checkpoint

    arguments = parser(__doc__)
    arguments.add_argument("units", nargs="?", type=int, default=UNITS)
    options = arguments.parse_args(argv)
    size, interval = (40, 0.1) if options.small else (options.units, SAMPLE_SECONDS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tiny_checkpoint(folder / "checkpoint")
        Image.new("RGB", (32, 32), "teal").save(folder / "tiny.png")
        rows = {"uri": ["tiny.png"] * size, "media_id": [f"item-{k:07}" for k in range(size)]}
        pq.write_table(pa.table(rows), folder / "manifest.parquet")
        job = check_job(
            {
                "name": "soak",
                "input": {"manifest": str(folder / "manifest.parquet")},
                "output": str(folder / "out"),
                "model": {
                    "source": str(folder / "checkpoint"),
                    "engine": "simulated",
                    "simulated": {"speed": 1e9},
                },
                "tasks": ["caption"],
                "resources": {"cpus_per_replica": 0.5, "units_per_file": 256},
            },
            "the soak",
        )
        start_ray(num_cpus=2)
        samples: list[dict] = []
        started = time.perf_counter()
        with watching(lambda: samples.append(sample(started, folder / "out")), interval):
            run = annotate.run(job, Console(file=sys.stderr, width=120))
        seconds = time.perf_counter() - started
    assert run.counts["units"] == size, run.counts
    found = {"units": size, "seconds": round(seconds, 1), "memory": summary(samples)}
    print(json.dumps(found, indent=2))
    write_results("soak", found | {"samples": samples}, small=options.small)


def sample(started: float, output: Path) -> dict[str, float]:
    """Seconds since ``started``, files committed, and MiB of each kind of process."""
    stored = store()
    return {
        "seconds": round(time.perf_counter() - started, 1),
        "files": len(list(output.glob("annotations/*/part-*.parquet"))),
        "driver": _own_mib(os.getpid()),
        **_actors(),
        "object store": stored["used"] / 2**20,
        "spilled": stored["spilled"] / 2**20,
    }


def _actors() -> dict[str, float]:
    """MiB of the largest actor of each stage, of this user's Ray session."""
    found: dict[str, float] = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            title = (process / "cmdline").read_bytes().decode(errors="replace")
            kind = re.match(r"ray::MapWorker\(MapBatches\((\w+)\)\)", title)
            if kind and _session(int(process.name)) == os.getpid():
                found[kind[1]] = max(found.get(kind[1], 0.0), _own_mib(int(process.name)))
        except (OSError, ValueError, IndexError):
            continue  # it has ended
    return found


def _session(pid: int) -> int:
    """The process that started the Ray of a worker: the parent of its raylet."""
    for _ in range(2):
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return pid


def _own_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) / 1024


def summary(samples: list[dict]) -> dict[str, dict[str, float]]:
    """MiB after warm-up and at the end of annotating, and the slope of the fitted line."""
    import numpy as np

    working = [sample for sample in samples if sample["files"] and "Generate" in sample]
    steady = working[int(len(working) * WARM_UP) :]
    found = {"driver, whole run": {"most_mib": round(max(s["driver"] for s in samples), 1)}}
    for kind in ("driver", "Prepare", "Generate", "Commit", "object store", "spilled"):
        points = [(s["files"] * 256 / 1000, s[kind]) for s in steady if kind in s]
        if len({x for x, _ in points}) < 3:
            continue
        slope = float(np.polyfit(*zip(*points, strict=True), 1)[0])
        found[kind] = {
            "first_mib": round(points[0][1], 1),
            "last_mib": round(points[-1][1], 1),
            "most_mib": round(max(value for _, value in points), 1),
            "mib_per_1000_units": round(slope, 3),
        }
    return found


if __name__ == "__main__":
    main()
