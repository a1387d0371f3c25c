"""How much of the object store a run takes, whatever is the slow part: the decoders or the engine.

The whole pipeline on images of 3 MB of pixels each, several times as much in all as the object
store holds, with a simulated engine that is far slower than the decoders, and one that is far
faster. Nothing may be spilled to disk. And how soon the first row of the demo is there.

    python benchmarks/bench_flow.py [--units N]
"""

import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
NUM_UNITS = 500
STORE_BYTES = 600 << 20
SIDE = 1024
WAYS = {"slow engine": 0.03, "slow decoders": 0.0}
"""Seconds of the engine for a unit; decoding one takes about as long on one core."""
OUT = ROOT / "build" / "bench" / "flow.json"


def main() -> None:
    from jobs.tiny_checkpoint import write_tiny_checkpoint

    units = int(sys.argv[sys.argv.index("--units") + 1]) if "--units" in sys.argv else NUM_UNITS
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        write_tiny_checkpoint(Path(folder) / "checkpoint")
        results["first row"] = first_row(Path(folder))
        print("flow: first row: " + ", ".join(f"{k} {v}" for k, v in results["first row"].items()))
        for way in WAYS:
            command = [sys.executable, __file__, "--child", folder, way, str(units)]
            environment = os.environ | {"RAY_ADDRESS": "local"}
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
            found = results[way] = json.loads(done.stdout.decode().splitlines()[-1])
            figures = ", ".join(f"{name} {value:,}" for name, value in found.items())
            print(f"flow: {way}: {figures}", flush=True)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(results, indent=2))
    print(f"  -> {OUT}")


def first_row(folder: Path) -> dict[str, float]:
    """Seconds from the command to the first committed row and to the end: demo archive, its model.

    Everything starts cold: the command, Ray, the actors, the model.
    """
    from jobs.render_archive import render_archive

    render_archive(folder / "archive")
    command = [
        *(sys.executable, "-m", "jobs.cli", "annotate", str(ROOT / "jobs/specs/demo.yaml")),
        *("--input", str(folder / "archive"), "--output", str(folder / "first")),
        *("--model", str(ROOT / "jobs/demo_model")),
    ]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    started = time.perf_counter()
    run = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    found: dict[str, float] = {}
    while run.poll() is None:
        plan = next(folder.glob("first/runs/*/plan/*.parquet"), None)
        row = next(folder.glob("first/annotations/*/part-*.parquet"), None)
        for name, file in (("seconds_to_plan", plan), ("seconds_to_first_row", row)):
            if file is not None and name not in found:
                found[name] = round(time.perf_counter() - started, 1)
        time.sleep(0.05)
    assert run.returncode == 0, run.returncode
    return found | {"seconds_to_end": round(time.perf_counter() - started, 1)}


def child(folder: Path, way: str, size: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image
    from rich.console import Console

    from jobs import annotate
    from jobs.cluster import start_ray
    from schemas.job import check_job

    Image.new("RGB", (SIDE, SIDE), "teal").save(folder / "large.png")
    rows = {"uri": ["large.png"] * size, "media_id": [f"item-{k}" for k in range(size)]}
    pq.write_table(pa.table(rows), folder / "manifest.parquet")
    tokens = SIDE * SIDE // 1024
    times = {
        "seconds_per_vision_token": WAYS[way] / tokens,
        "seconds_per_prompt_token": 0,
        "seconds_per_step": 0,
        "seconds_per_cached_token": 0,
    }
    job = check_job(
        {
            "name": way.replace(" ", "-"),
            "input": {"manifest": str(folder / "manifest.parquet")},
            "output": str(folder / way.replace(" ", "-")),
            "model": {
                "source": str(folder / "checkpoint"),
                "engine": "simulated",
                "simulated": times,
            },
            "resources": {"cpus_per_replica": 0.5, "cpus_per_decoder": 0.5, "decoders": 2},
        },
        "the benchmark",
    )
    start_ray(num_cpus=2, object_store_memory=STORE_BYTES)
    used, ended = [0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.5):
            used.append(store()["used"])

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    started = time.perf_counter()
    run = annotate.run(job, Console(file=io.StringIO(), width=120))
    seconds = time.perf_counter() - started
    ended.set()
    watcher.join()
    assert run.counts["status"] == {"ok": size}, run.counts
    print(
        json.dumps(
            {
                "units": size,
                "mib_of_pixels": size * SIDE * SIDE * 3 >> 20,
                "store_mib": STORE_BYTES >> 20,
                "most_used_mib": max(used) >> 20,
                "spilled_mib": store()["spilled"] >> 20,
                "seconds": round(seconds, 1),
            }
        )
    )


def store() -> dict[str, int]:
    """Bytes used now, and spilled since the start, of the object stores of all nodes."""
    import ray
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address

    address = ray.get_runtime_context().gcs_address
    stats = get_memory_info_reply(get_state_from_address(address)).store_stats
    return {"used": stats.object_store_bytes_used, "spilled": stats.spilled_bytes_total}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
    else:
        main()
