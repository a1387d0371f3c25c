"""Units per second of the engine's token-budget batches, over a loop of single calls.

The peer is the same engine with a budget that allows one prompt at a time. Each round has other
media, so that no cache helps.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT)]

from benchmarks.common import parser, write_results  # noqa: E402

ROUNDS = 5


def main(argv: list[str] | None = None) -> None:
    small = parser(__doc__).parse_args(argv).small
    rounds = 1 if small else ROUNDS
    from benchmarks.render_media import render_some
    from pipeline.engines.transformers.engine import TransformersEngine
    from pipeline.plan.planner import Planner
    from pipeline.stages.prepare import Prepare
    from pipeline.storage.storage import Storage
    from pipeline.workers.code_version import code_digest
    from schemas.job.job import check_job
    from schemas.tables.manifest import MediaItem, guess_media_type
    from scripts.demo_model.tiny_checkpoint import write_tiny_checkpoint

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
        for seed in range(rounds):
            uris = render_some(Path(folder) / str(seed), seed, small=small)
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
    print(f"batching: units/s over a loop of single calls, one thread, median of {rounds}")
    for kind, found in results.items():
        print(f"  {kind:24} {found['median']:.2f}  ({found['min']:.2f} to {found['max']:.2f})")
    found_all = {"rounds": rounds, "speed_over_single_calls": results}
    write_results("batching", found_all, small=small)


if __name__ == "__main__":
    main()
