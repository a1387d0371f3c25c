"""Units per second of the engine's token-budget batches, over a loop of single calls.

The peer is the same engine with a budget that allows one prompt at a time. Distinct media in every
round, so that nothing can be a cache.
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
ROUNDS = 5
OUT = ROOT / "build" / "bench" / "batching.json"


def main() -> None:
    from jobs.render_archive import render_archive
    from jobs.tiny_checkpoint import write_tiny_checkpoint
    from pipeline.engines.transformers import TransformersEngine
    from pipeline.plan import Planner
    from pipeline.same_code import code_digest
    from pipeline.stages import Prepare
    from pipeline.storage import Storage
    from schemas.job import check_job
    from schemas.manifest import MediaItem, guess_media_type

    with tempfile.TemporaryDirectory() as folder:
        checkpoint = write_tiny_checkpoint(Path(folder) / "checkpoint")
        spec = {
            "input": {"manifest": "unused.jsonl"},
            "output": "unused",
            "model": {"source": str(checkpoint)},
            "budget": {"image_tokens": [4, 128], "frame_tokens": [4, 32], "unit_tokens": 256},
            "generation": {"max_new_tokens": 32},
        }
        batched = check_job(spec | {"resources": {"max_batch_tokens": 8192}}, "bench")
        single = check_job(spec | {"resources": {"max_batch_tokens": 256}}, "bench")
        engines = {
            "batched": TransformersEngine(batched, num_threads=1),
            "single": TransformersEngine(single, num_threads=1),
        }
        ratios = {"image": [], "video": []}
        for seed in range(ROUNDS):
            archive = Path(folder) / str(seed)
            render_archive(archive, seed=seed)
            uris = [str(path) for path in sorted(archive.glob("*/*"))]
            items = [MediaItem(media_id=uri, uri=uri) for uri in uris]
            units = Planner(batched, 262_144, Storage()).plan(items)
            prepare = Prepare(batched, Storage(), code_digest())
            prepared = [u for u in map(prepare.prepare, units) if u.error is None]
            for kind, found in ratios.items():
                some = [u for u in prepared if guess_media_type(u.uri) == kind]
                seconds = {}
                for name, engine in engines.items():
                    started = time.perf_counter()
                    engine.generate(some)
                    seconds[name] = time.perf_counter() - started
                found.append(seconds["single"] / seconds["batched"])
    results = {
        kind: {"median": statistics.median(found), "min": min(found), "max": max(found)}
        for kind, found in ratios.items()
    }
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps({"rounds": ROUNDS, "speed_over_single_calls": results}, indent=2))
    print(f"batching: units/s over a loop of single calls, one thread, median of {ROUNDS}")
    for kind, found in results.items():
        print(f"  {kind:24} {found['median']:.2f}  ({found['min']:.2f} to {found['max']:.2f})")
    print(f"  -> {OUT}")


if __name__ == "__main__":
    main()
