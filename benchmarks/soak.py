"""Memory of a long run: driver, actors and object store, sampled while many small units go through.

The whole pipeline with the simulated engine: one tiny image under as many ids, really planned,
decoded, prompted, parsed and written. Prints, for each kind of process, its own memory (without
what it shares) at the begin and the end of what comes after warm-up, the slope in between, and the
most of the driver from start to end.

    python benchmarks/soak.py [UNITS]      default 1,000,000: half an hour on two cores
"""

import json
import os
import re
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "benchmarks")]
UNITS = 1_000_000
SAMPLE_SECONDS = 5.0
WARM_UP = 0.25
"""Share of the samples, at the begin of the annotating, that is left out."""
OUT = ROOT / "build" / "bench" / "soak.json"


def main() -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image
    from rich.console import Console

    from jobs import annotate
    from jobs.cluster import start_ray
    from jobs.tiny_checkpoint import write_tiny_checkpoint
    from schemas.job import check_job

    os.environ["RAY_ADDRESS"] = "local"
    size = int(sys.argv[1]) if len(sys.argv) > 1 else UNITS
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
        samples, ended = [], threading.Event()
        watcher = threading.Thread(target=watch, args=(samples, ended, folder / "out"), daemon=True)
        watcher.start()
        started = time.perf_counter()
        run = annotate.run(job, Console(file=sys.stderr, width=120))
        seconds = time.perf_counter() - started
        ended.set()
        watcher.join()
    assert run.counts["units"] == size, run.counts
    found = {"units": size, "seconds": round(seconds, 1), "memory": summary(samples)}
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(found | {"samples": samples}, indent=2))
    print(json.dumps(found, indent=2))
    print(f"  -> {OUT}")


def watch(samples: list[dict], ended: threading.Event, output: Path) -> None:
    """Sample until ``ended``: seconds, files committed, and MiB of each kind of process."""
    from bench_flow import store

    started = time.perf_counter()
    while not ended.wait(SAMPLE_SECONDS):
        stored = store()
        samples.append(
            {
                "seconds": round(time.perf_counter() - started, 1),
                "files": len(list(output.glob("annotations/*/part-*.parquet"))),
                "driver": _own_mib(os.getpid()),
                **_actors(),
                "object store": stored["used"] / 2**20,
                "spilled": stored["spilled"] / 2**20,
            }
        )


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
    """MiB at both ends of the annotating after warm-up, and the slope of the line through it."""
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
