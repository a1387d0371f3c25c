"""How evenly engines are kept busy on a skewed archive, next to what plain Ray Data does.

Videos of log-normal length, each one unit, planned tokens, a simulated 8B model on an H100. Seconds
over the lower bound max(all work / replicas, the longest unit), for three ways to cut and order:

    plain     the manifest's order, blocks of equally many rows, as many as ours: Ray Data's own
    tokens    ours, by the plan's tokens: a first run
    learnt    ours, by the costs that a run before has learnt

64 replicas do not fit onto two cores, so they run on a virtual clock, by Ray Data's dispatch rule
(the next block goes to the actor with the fewest, at most one at work and one waiting); and
fewer real actors do the same on real Ray, against the same clock's prediction.

    python benchmarks/bench_balance.py [--real N]     N real actors; default 8, 0 for none
"""

import heapq
import json
import os
import statistics
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT)]
ROUNDS = 5
NUM_UNITS = 8_000
REAL_SECONDS = 25.0
OUT = ROOT / "build" / "bench" / "balance.json"
WAYS = ("plain", "tokens", "learnt")


def skewed_units(num_units, seed, job):
    """Units of videos of log-normal length, 2 frames a second, at most 768; in a random order."""
    import numpy as np

    from schemas.unit import UNIT, Media, Prompt, Sampling, Unit, to_table

    (question,) = job.questions()
    units = []
    for k, seconds in enumerate(np.random.default_rng(seed).lognormal(3.4, 1.2, num_units)):
        pairs = int(min(max(seconds, 2.0), 384.0))
        tokens = pairs * 128
        sampling = Sampling(
            num_frames=2 * pairs,
            resized_height=256,
            resized_width=512,
            grid_thw=(pairs, 16, 32),
            num_vision_tokens=tokens,
        )
        shared = tokens + 10 * pairs
        prompt = Prompt(task="caption", num_prompt_tokens=shared + 20, num_own_tokens=20)
        units.append(
            Unit(
                unit_id=f"{seed}-{k}",
                media_id=f"{seed}-{k}",
                uri="none.mp4",
                media=Media(media_type="video", width=512, height=256),
                sampling=sampling,
                prompts=(prompt,),
                num_shared_tokens=shared,
                predicted_cost=float(prompt.num_prompt_tokens + question.max_new_tokens),
            )
        )
    return to_table(units, UNIT)


def prepared(table):
    """What the engine gets, without frames, which the simulated one does not look at."""
    import pyarrow as pa

    from schemas.unit import PREPARED

    units = table.to_pylist()
    for unit in units:
        for prompt in unit["prompts"]:
            prompt["input_ids"] = [0] * prompt["num_prompt_tokens"]
    return pa.Table.from_pylist(units, schema=PREPARED)


def engine_seconds(units, job):
    """Seconds that the simulated engine takes for each unit, by unit id; nothing sleeps."""
    from unittest import mock

    from pipeline.engines.simulated import SimulatedEngine
    from schemas.unit import PreparedUnit, from_table

    engine = SimulatedEngine(job)
    found = {}
    with mock.patch("time.sleep"):
        for at in range(0, units.num_rows, 500):
            answered = engine.generate(from_table(prepared(units.slice(at, 500)), PreparedUnit))
            found |= {unit.unit_id: unit.engine_seconds for unit in answered}
    return found


def cut(way, units, seconds, job, replicas):
    """Blocks of units, by one of the ways."""
    import numpy as np

    from jobs.blocks import in_blocks
    from jobs.cost import FEATURES, features, fit
    from pipeline.build import Pools

    pools = Pools(
        decoders=replicas, cpus_per_decoder=1, replicas=replicas, cpus_per_replica=1,
        gpus_per_replica=0,
    )  # fmt: skip
    costs = units["predicted_cost"].to_numpy()
    if way == "learnt":
        each = features(units, {"caption": float(job.model.simulated.output_tokens)})
        took = np.array([seconds[unit] for unit in units["unit_id"].to_pylist()])
        rows = min(64, units.num_rows // 24)  # of each of the files that it has learnt from
        files = [slice(at, at + rows) for at in range(0, 24 * rows, rows)]
        weights = fit([(each[file].sum(axis=0), float(took[file].sum())) for file in files])
        assert weights is not None and len(weights) == len(FEATURES)
        costs = each @ weights
    blocks = in_blocks(units, costs, pools, job.resources.max_batch_tokens)
    if way == "plain":
        edges = np.linspace(0, units.num_rows, len(blocks) + 1).astype(int)
        blocks = [units.slice(a, b - a) for a, b in pairwise(edges)]
    return blocks


def virtual(blocks, replicas):
    """Seconds to the end, by Ray Data's rule. blocks: seconds of each, in order."""
    waiting = [[] for _ in range(replicas)]
    todo = iter(blocks)
    for _ in range(2):
        for queue in waiting:
            queue += [block for block in [next(todo, None)] if block is not None]
    free = [(0.0, k) for k in range(replicas)]
    end = 0.0
    while free:
        now, k = heapq.heappop(free)
        end = max(end, now)
        if waiting[k]:
            heapq.heappush(free, (now + waiting[k].pop(0), k))
            waiting[k] += [block for block in [next(todo, None)] if block is not None]
    return end


def block_seconds(blocks, seconds):
    return [sum(seconds[unit] for unit in block["unit_id"].to_pylist()) for block in blocks]


def simulate(job):
    """Over the bound at 64 replicas, by way; and throughput per replica from 1 to 64, over 1's."""
    over = {way: [] for way in WAYS}
    scaling = {replicas: [] for replicas in (1, 8, 64)}
    for seed in range(ROUNDS):
        units = skewed_units(NUM_UNITS, seed, job)
        seconds = engine_seconds(units, job)
        total, longest = sum(seconds.values()), max(seconds.values())
        for way in WAYS:
            blocks = block_seconds(cut(way, units, seconds, job, 64), seconds)
            over[way].append(virtual(blocks, 64) / max(total / 64, longest))
        for replicas, found in scaling.items():
            blocks = block_seconds(cut("learnt", units, seconds, job, replicas), seconds)
            found.append(total / replicas / virtual(blocks, replicas))
    return over, scaling


def real(job, replicas):
    """Real actors that sleep: seconds over the bound, the clock's prediction, and busy share."""
    os.environ["RAY_ADDRESS"] = "local"
    import ray

    from jobs.cluster import start_ray
    from pipeline.build import stage
    from pipeline.guard import remember_deaths
    from pipeline.same_code import code_digest
    from pipeline.stages import Generate

    log = Path(tempfile.mkdtemp())

    class Timed(Generate):
        """The engine's stage, which writes down when it worked."""

        def __call__(self, batch):
            started = time.time()
            answered = super().__call__(batch)
            with (log / str(os.getpid())).open("a") as file:
                print(started, time.time(), file=file)
            return answered

    start_ray(num_cpus=2)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.wait_for_min_actors_s = 600  # on a cluster they start side by side
    found = {}
    for way in ("plain", "learnt"):
        units = skewed_units(40 * replicas, 7, job)
        seconds = engine_seconds(units, job)
        total, longest = sum(seconds.values()), max(seconds.values())
        speed = max(total / replicas, longest) / REAL_SECONDS
        model = {"engine": "simulated", "simulated": {"speed": speed}}
        faster = job.model_copy(update={"model": type(job.model).model_validate(model)})
        blocks = cut(way, units, seconds, job, replicas)
        dataset = stage(
            ray.data.from_blocks([prepared(block) for block in blocks]),
            Timed, (faster, remember_deaths(), code_digest()), replicas, num_cpus=1 / replicas,
        )  # fmt: skip
        for _ in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
            pass
        spans = [
            [float(value) for value in line.split()]
            for file in log.iterdir()
            for line in file.read_text().splitlines()
        ]
        for file in log.iterdir():
            file.unlink()
        took = max(end for _, end in spans) - min(start for start, _ in spans)
        busy = sum(end - start for start, end in spans)
        found[way] = {
            "blocks": len(blocks),
            "seconds": took,
            "over_bound": took / REAL_SECONDS,
            "predicted": virtual(block_seconds(blocks, seconds), replicas) / speed / REAL_SECONDS,
            "busy_share": busy / (took * replicas),
        }
    ray.shutdown()
    return found


def main():
    from schemas.job import check_job

    spec = {"input": {"manifest": "none"}, "output": "none", "model": {"engine": "simulated"}}
    job = check_job(spec, "bench")
    over, scaling = simulate(job)
    print(f"balance: seconds over the lower bound, 64 replicas, virtual clock, {ROUNDS} archives")
    for way, found in over.items():
        print(f"  {way:8} {statistics.median(found):.3f}  ({min(found):.3f} to {max(found):.3f})")
    print("balance: work done a second and replica, of what one alone does at best")
    for replicas, found in scaling.items():
        print(f"  {replicas:3} replicas  {statistics.median(found):.3f}  (least {min(found):.3f})")
    results = {"over_bound": over, "efficiency": scaling}
    replicas = int(sys.argv[sys.argv.index("--real") + 1]) if "--real" in sys.argv else 8
    if replicas:
        results["real"] = {"replicas": replicas} | real(job, replicas)
        print(f"balance: {replicas} real actors, {REAL_SECONDS:.0f} s of work each")
        for way in ("plain", "learnt"):
            figures = ", ".join(f"{k} {v:.3f}" for k, v in results["real"][way].items())
            print(f"  {way:8} {figures}")
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(results, indent=2))
    print(f"  -> {OUT}")


if __name__ == "__main__":
    main()
