"""How evenly engines are busy on a skewed archive, compared with plain Ray Data.

Videos of log-normal length, each one unit, planned tokens, a simulated 8B model on an H100. Seconds
over the lower bound max(all work / replicas, the longest unit), for three ways to cut and order:

    plain     the manifest's order, blocks of equally many rows: Ray Data's own cut, with our number
    tokens    our blocks, by the plan's tokens: a first run
    learnt    our blocks, by costs that an earlier run has measured

64 replicas do not fit onto two cores, so they run on a virtual clock, by Ray Data's dispatch rule:
the next block goes to the actor with the fewest, at most one running and one waiting. A few real
actors on Ray check the prediction of this clock.

    python benchmarks/bench_balance.py [--real N] [--small]     N real actors; 0: none
"""

import heapq
import os
import statistics
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT)]

from benchmarks.common import parser, start_ray, write_results  # noqa: E402

ROUNDS, NUM_UNITS, REAL_SECONDS = 5, 8_000, 25.0
SMALL_ROUNDS, SMALL_UNITS, SMALL_SECONDS = 1, 100, 0.2
WAYS = ("plain", "tokens", "learnt")


def skewed_units(num_units, seed, job):
    """Units of videos of log-normal length, 2 frames a second, at most 768; in a random order."""
    import numpy as np

    from pipeline.plan.shards import with_shards
    from schemas.tables.columns import to_table
    from schemas.tables.media import Media, Sampling
    from schemas.tables.unit import UNIT, Prompt, Unit

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
    return with_shards(to_table(units, UNIT))


def prepared(table):
    """The engine's input, without frames, which the simulated engine does not read."""
    import pyarrow as pa

    from schemas.tables.unit import PREPARED

    units = table.to_pylist()
    for unit in units:
        for prompt in unit["prompts"]:
            prompt["input_ids"] = [0] * prompt["num_prompt_tokens"]
    return pa.Table.from_pylist(units, schema=PREPARED)


def engine_seconds(units, job):
    """Seconds that the simulated engine takes for each unit, by unit id; nothing sleeps."""
    from unittest import mock

    from pipeline.engines.simulated.engine import SimulatedEngine
    from schemas.tables.columns import from_table
    from schemas.tables.unit import PreparedUnit

    engine = SimulatedEngine(job)
    found = {}
    with mock.patch("time.sleep"):
        for at in range(0, units.num_rows, 500):
            answered = engine.generate(from_table(prepared(units.slice(at, 500)), PreparedUnit))
            found |= {unit.unit_id: unit.engine_seconds for unit in answered}
    return found


def cut(way, units, seconds, job, replicas):
    """Cut units into blocks in one of WAYS."""
    import numpy as np

    from jobs.cost.rates import FEATURES, features, fit
    from pipeline.model.memory import CPU_BATCH_TOKENS
    from pipeline.stages.blocks import in_blocks
    from pipeline.stages.pools import Pools

    pools = Pools(
        decoders=replicas, cpus_per_decoder=1, replicas=replicas, cpus_per_replica=1,
        gpus_per_replica=0,
    )  # fmt: skip
    costs = units["predicted_cost"].to_numpy()
    if way == "learnt":
        each = features(units, {"caption": float(job.model.simulated.output_tokens)})
        took = np.array([seconds[unit] for unit in units["unit_id"].to_pylist()])
        rows = min(64, units.num_rows // 24)  # rows of each file that the rates are fitted to
        files = [slice(at, at + rows) for at in range(0, 24 * rows, rows)]
        weights = fit([(each[file].sum(axis=0), float(took[file].sum())) for file in files])
        assert weights is not None and len(weights) == len(FEATURES)
        costs = each @ weights
    blocks = in_blocks(units, costs, pools, CPU_BATCH_TOKENS)
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


def simulate(job, rounds, num_units):
    """Seconds over the bound at 64 replicas, by way; throughput per replica, relative to one."""
    over = {way: [] for way in WAYS}
    scaling = {replicas: [] for replicas in (1, 8, 64)}
    for seed in range(rounds):
        units = skewed_units(num_units, seed, job)
        seconds = engine_seconds(units, job)
        total, longest = sum(seconds.values()), max(seconds.values())
        for way in WAYS:
            blocks = block_seconds(cut(way, units, seconds, job, 64), seconds)
            over[way].append(virtual(blocks, 64) / max(total / 64, longest))
        for replicas, found in scaling.items():
            blocks = block_seconds(cut("learnt", units, seconds, job, replicas), seconds)
            found.append(total / replicas / virtual(blocks, replicas))
    return over, scaling


def real(job, replicas, real_seconds):
    """Run real actors that sleep; returns seconds over the bound, prediction and busy share."""
    import ray

    from pipeline.stages.generate import Generate
    from pipeline.stages.graph import stage
    from pipeline.stages.pools import Pool
    from pipeline.workers.code_version import code_digest
    from pipeline.workers.engine_guard import DeathsActor, running_deaths

    log = Path(tempfile.mkdtemp())

    class Timed(Generate):
        """The engine's stage; records its busy times."""

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
        speed = max(total / replicas, longest) / real_seconds
        model = {"engine": "simulated", "simulated": {"speed": speed}}
        faster = job.model_copy(update={"model": type(job.model).model_validate(model)})
        blocks = cut(way, units, seconds, job, replicas)
        with running_deaths() as deaths:
            dataset = stage(
                ray.data.from_blocks([prepared(block) for block in blocks]),
                Timed, (faster, DeathsActor(deaths), code_digest(), 1.0),
                Pool(num_actors=replicas, num_cpus=1 / replicas),
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
            "over_bound": took / real_seconds,
            "predicted": virtual(block_seconds(blocks, seconds), replicas) / speed / real_seconds,
            "busy_share": busy / (took * replicas),
        }
    return found


def main(argv=None):
    options = parser(__doc__)
    options.add_argument("--real", type=int, metavar="N", help="N real actors; 0: none")
    args = options.parse_args(argv)
    rounds, num_units, real_seconds = (
        (SMALL_ROUNDS, SMALL_UNITS, SMALL_SECONDS)
        if args.small
        else (ROUNDS, NUM_UNITS, REAL_SECONDS)
    )
    from schemas.job.job import check_job

    spec = {"input": {"manifest": "none"}, "output": "none", "model": {"engine": "simulated"}}
    job = check_job(spec, "bench")
    over, scaling = simulate(job, rounds, num_units)
    print(f"balance: seconds over the lower bound, 64 replicas, virtual clock, {rounds} archives")
    for way, found in over.items():
        print(f"  {way:8} {statistics.median(found):.3f}  ({min(found):.3f} to {max(found):.3f})")
    print("balance: throughput per replica, relative to one replica at best")
    for replicas, found in scaling.items():
        print(f"  {replicas:3} replicas  {statistics.median(found):.3f}  (min {min(found):.3f})")
    results = {"over_bound": over, "efficiency": scaling}
    replicas = args.real if args.real is not None else 2 if args.small else 8
    if replicas:
        results["real"] = {"replicas": replicas} | real(job, replicas, real_seconds)
        print(f"balance: {replicas} real actors, {real_seconds:.1f} s of work each")
        for way in ("plain", "learnt"):
            figures = ", ".join(f"{k} {v:.3f}" for k, v in results["real"][way].items())
            print(f"  {way:8} {figures}")
    write_results("balance", results, small=args.small)


if __name__ == "__main__":
    main()
