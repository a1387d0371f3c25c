"""Peak use of the object store by a run, with slow decoders and with a slow engine.

The whole pipeline on images of 3 MB of pixels each, together several times the size of the object
store, with a simulated engine that is far slower than the decoders, and one that is far faster.
Nothing may be spilled to disk.

    python benchmarks/bench_flow.py [--units N] [--small]
"""

import io
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT)]

from benchmarks.common import call, is_child, parser, start_ray, watching, write_results  # noqa: E402

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
        for way in WAYS:
            env = {"RAY_ADDRESS": "local"}
            found = call(child, folder, way, str(units), small=small, env=env)
            results[way] = found
            figures = ", ".join(f"{name} {value:,}" for name, value in found.items())
            print(f"flow: {way}: {figures}", flush=True)
    write_results("flow", results, small=small)


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
