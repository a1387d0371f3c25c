"""Peak use of the object store by a run, with slow decoders and with a slow engine.

The whole pipeline on images of 3 MB of pixels each, together several times the size of the object
store, with a simulated engine that is far slower than the decoders, and one that is far faster.
Nothing may be spilled to disk. Also the time to the first row of the demo.

    python benchmarks/bench_flow.py [--units N] [--small]
"""

import io
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT)]

from benchmarks.common import annotate, call, is_child, parser, start_ray, watching, write_results  # noqa: E402

NUM_UNITS = 500
STORE_BYTES = 600 << 20
SIDE = 1024
WAYS = {"slow engine": 0.03, "slow decoders": 0.0}
"""Seconds of the engine for a unit; decoding one takes about as long on one core."""


def main(argv: list[str] | None = None) -> None:
    from scripts.demo_model.tiny_checkpoint import write_tiny_checkpoint

    arguments = parser(__doc__)
    arguments.add_argument("--units", type=int, default=NUM_UNITS)
    options = arguments.parse_args(argv)
    small, units = options.small, 8 if options.small else options.units
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        write_tiny_checkpoint(Path(folder) / "checkpoint")
        results["first row"] = first_row(Path(folder), small=small)
        print("flow: first row: " + ", ".join(f"{k} {v}" for k, v in results["first row"].items()))
        for way in WAYS:
            env = {"RAY_ADDRESS": "local"}
            found = call(child, folder, way, str(units), small=small, env=env)
            results[way] = found
            figures = ", ".join(f"{name} {value:,}" for name, value in found.items())
            print(f"flow: {way}: {figures}", flush=True)
    write_results("flow", results, small=small)


def first_row(folder: Path, *, small: bool) -> dict[str, float]:
    """Seconds from the command to the first committed row and to the end, for the demo.

    Everything starts cold: the command, Ray, the actors, the model.
    """
    from benchmarks.render_media import render_some

    render_some(folder / "archive", 0, small=small)
    started = time.perf_counter()
    found: dict[str, float] = {}

    def look() -> None:
        plan = next(folder.glob("first/runs/*/plan/*.parquet"), None)
        row = next(folder.glob("first/annotations/*/part-*.parquet"), None)
        for name, file in (("seconds_to_plan", plan), ("seconds_to_first_row", row)):
            if file is not None and name not in found:
                found[name] = round(time.perf_counter() - started, 1)

    with watching(look, 0.05):
        annotate(
            str(ROOT / "jobs/specs/demo.yaml"),
            *("--input", str(folder / "archive"), "--output", str(folder / "first")),
            *("--model", str(ROOT / "jobs/demo_model")),
            small=small,
        )
    return found | {"seconds_to_end": round(time.perf_counter() - started, 1)}


def child(place: str, way: str, units: str) -> dict[str, float]:
    """Run one way; returns its figures."""
    folder, size = Path(place), int(units)

    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image
    from rich.console import Console

    from jobs.run import annotate as command
    from schemas.job.job import check_job

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
    used = [0]
    started = time.perf_counter()
    with watching(lambda: used.append(store()["used"]), 0.5):
        run = command.run(job, Console(file=io.StringIO(), width=120))
    seconds = time.perf_counter() - started
    assert run.counts["status"] == {"ok": size}, run.counts
    return {
        "units": size,
        "mib_of_pixels": size * SIDE * SIDE * 3 >> 20,
        "store_mib": STORE_BYTES >> 20,
        "max_used_mib": max(used) >> 20,
        "spilled_mib": store()["spilled"] >> 20,
        "seconds": round(seconds, 1),
    }


def store() -> dict[str, int]:
    """Bytes used now, and spilled since the start, of the object stores of all nodes."""
    import ray
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address

    address = ray.get_runtime_context().gcs_address
    stats = get_memory_info_reply(get_state_from_address(address)).store_stats
    return {"used": stats.object_store_bytes_used, "spilled": stats.spilled_bytes_total}


if __name__ == "__main__":
    if not is_child(globals()):
        main()
