"""``reelscribe calibrate``: measure on this cluster's engine what a job's units cost.

Some of the job's own units go through the engine, in several sizes and with all or some of the
tasks, so that costs of what is seen, read and written can be told apart.
"""

import dataclasses
import itertools
import platform
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import median
from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text

from jobs.calibration import Calibration, calibration_uri, write_calibration
from jobs.cluster import actor_errors, connected, pools
from jobs.cost import FEATURES, Array, Rates, fit, rates_of
from jobs.plan import Opened, open_job
from pipeline.build import Pools
from pipeline.guard import remember_deaths
from pipeline.isolate import Isolated
from pipeline.plan import PROBE_THREADS, Planner
from pipeline.recipe import recipe
from pipeline.same_code import code_digest
from pipeline.stages import Generate, Prepare
from schemas.errors import ResourceError
from schemas.job import Job
from schemas.unit import (
    PREPARED,
    AnsweredUnit,
    Unit,
    UnitStatus,
    from_table,
    to_table,
)

SECONDS = 90.0
"""Measured so long; with the engine's start about two minutes."""

_ITEMS = 128
_SIZES = (1.0, 0.5, 0.25)
_ROUNDS = 12
_LEAST_ROUNDS = 3
_ROUND_UNITS = 64
_ROUND_BYTES = 1 << 29


@dataclass(frozen=True, kw_only=True)
class Round:
    """What the engine did at once: sums of FEATURES, and its seconds."""

    num_units: int
    sums: Array
    seconds: float


def run(
    job: Job, console: Console, *, seconds: float = SECONDS, file: str | None = None
) -> Calibration:
    """Measure, write the calibration, and print what came out.

    seconds: to measure for; the engine's start comes on top.
    file: where to write; default: ``cost.calibration``, else the output's calibration.json.

    Raises:
        UserError: with one clear message.
    """
    named = job.cost.calibration
    job = job.model_copy(update={"cost": job.cost.model_copy(update={"calibration": None})})
    opened = open_job(job)
    uri = file or named or calibration_uri(opened.job)
    sizes = planned_sizes(opened)
    with connected(console), actor_errors(), pools(opened.job) as fitted:
        device = _device(fitted)
        console.print(Text(f"starting the engine on {device}"))
        rounds, written = measure(opened, sizes, fitted, seconds, console)
    found = calibration(opened, device, rounds, written)
    write_calibration(found, uri, opened.storage)
    _print(found, uri, console)
    return found


def planned_sizes(opened: Opened) -> list[list[Unit]]:
    """Units of some of the job's items, as the job has them, and as smaller pictures of the same.

    Raises:
        ResourceError: none of them can be read.
    """
    items = opened.items
    if len(items) > _ITEMS:
        items = random.Random(0).sample(items, _ITEMS)
    whole = _planned(opened, opened.job, items)
    if not whole:
        raise ResourceError(
            f"none of {len(items)} items of the job can be done, so nothing can be measured: "
            "`reelscribe plan` says why"
        )
    smaller = [_planned(opened, _smaller(opened.job, whole, size), items) for size in _SIZES[1:]]
    return [whole, *smaller]


def _planned(opened: Opened, job: Job, items: Sequence[Any]) -> list[Unit]:
    isolated = Isolated("pipeline.choose", PROBE_THREADS, quiet=True)
    planner = Planner(job, opened.checkpoint.max_model_len, opened.storage, isolated)
    units = [unit for unit in planner.plan(items) if unit.status != UnitStatus.FAILED]
    random.Random(0).shuffle(units)
    return units


def _smaller(job: Job, units: Sequence[Unit], share: float) -> Job:
    """The job with a budget of a share of what its units have in the middle."""
    sides: dict[str, list[int]] = {"image": [], "video": []}
    for part in (part for unit in units for part in unit.seen):
        tokens = part.sampling.num_vision_tokens // part.sampling.grid_thw[0]
        sides[part.media.media_type].append(tokens)
    budget = job.budget.model_dump()
    for kind, name in (("image", "image_tokens"), ("video", "frame_tokens")):
        if sides[kind]:
            most = max(4, int(median(sides[kind]) * share))
            budget[name] = (min(budget[name][0], most), most)
    return job.model_copy(update={"budget": type(job.budget)(**budget)})


def measure(
    opened: Opened, sizes: list[list[Unit]], fitted: Pools, seconds: float, console: Console
) -> tuple[list[Round], dict[str, tuple[int, int]]]:
    """Let the engine work on units for about so many seconds. Needs a Ray session.

    sizes: the units in each size, no unit is taken twice in one of them: engines have caches.

    Returns the rounds, and of each task its answers and their tokens.
    """
    import ray

    job = opened.job
    engine = (
        ray.remote(Generate)
        .options(num_cpus=fitted.cpus_per_replica, num_gpus=fitted.gpus_per_replica)
        .remote(job, remember_deaths(), code_digest(), fitted.cpus_per_replica)
    )
    prepare = Prepare(job, opened.storage, code_digest())
    written: Counter[str] = Counter()
    answers: Counter[str] = Counter()
    rounds: list[Round] = []

    def work(units: Sequence[Unit]) -> Round:
        prepared = to_table([prepare.prepare(unit) for unit in units], PREPARED)
        answered = ray.get(engine.__call__.remote(prepared))
        done: list[AnsweredUnit] = [u for u in from_table(answered, AnsweredUnit) if u.answers]
        for answer in (answer for unit in done for answer in unit.answers):
            answers[answer.task] += 1
            written[answer.task] += answer.num_output_tokens
        return Round(
            num_units=len(done),
            sums=np.array([_features(unit) for unit in done]).reshape(-1, 3).sum(axis=0),
            seconds=sum(unit.engine_seconds for unit in done),
        )

    try:
        for least in sorted(sizes[-1] or sizes[0], key=lambda unit: unit.predicted_cost):
            first = work([least])  # compiles, fills caches: not measured
            if first.seconds:  # else it was planned, but is broken further in
                break
        else:
            return [], {}
        per_token = first.seconds / max(least.predicted_cost, 1.0)
        answers.clear()
        written.clear()
        until = time.monotonic() + seconds
        queues = [iter(units) for units in sizes]
        for k in itertools.count():
            if len(rounds) >= _LEAST_ROUNDS and time.monotonic() > until:
                break
            most = min(seconds / _ROUNDS / per_token, 2 * job.resources.max_batch_tokens)
            share = max(1, len(sizes[k % len(sizes)]) // 3)
            units = list(_some(queues[k % len(queues)], most, min(share, _ROUND_UNITS)))
            if not units and k >= 3 * len(queues):
                break
            if not units:
                continue
            found = work([_asked_less(unit, k) for unit in units])
            if not found.num_units or not found.seconds:
                continue
            rounds.append(found)
            tokens = float(found.sums.sum())
            per_token = found.seconds / max(tokens, 1.0)
            console.print(
                f"{found.num_units:,} units, {tokens:,.0f} tokens, {found.seconds:,.2f} s",
                style="dim",
            )
    finally:
        ray.kill(engine)
    return rounds, {task: (count, written[task]) for task, count in answers.items()}


def _some(units: Iterator[Unit], most_tokens: float, most_units: int) -> Iterator[Unit]:
    """Take units for a round: one at the least."""
    tokens, num_bytes = 0.0, 0
    for count, unit in enumerate(units, start=1):
        yield unit
        tokens += unit.predicted_cost
        for part in unit.seen:
            seen = part.sampling
            num_bytes += 3 * seen.num_frames * seen.resized_height * seen.resized_width
        if tokens >= most_tokens or count >= most_units or num_bytes >= _ROUND_BYTES:
            return


def _asked_less(unit: Unit, k: int) -> Unit:
    """The unit, in every second round with half of its tasks: what is seen costs the same."""
    half = len(unit.prompts) // 2
    if not half or k % 2 == 0:
        return unit
    prompts = unit.prompts[:half] if k % 4 == 1 else unit.prompts[half:]
    return dataclasses.replace(unit, prompts=prompts)


def _features(unit: AnsweredUnit) -> list[float]:
    """FEATURES of an answered unit: what it took, not what it may have."""
    vision = sum(part.sampling.num_vision_tokens for part in unit.seen)
    output = sum(answer.num_output_tokens for answer in unit.answers)
    return [float(vision), float(unit.num_fed_tokens - vision), float(output)]


def calibration(
    opened: Opened, device: str, rounds: Sequence[Round], written: dict[str, tuple[int, int]]
) -> Calibration:
    """Fit costs to what was measured.

    Raises:
        ResourceError: too little was.
    """
    weights = fit([(one.sums, one.seconds) for one in rounds], least=_LEAST_ROUNDS)
    if weights is None:
        raise ResourceError(
            f"only {len(rounds)} rounds of the engine could be measured, which is too few: give "
            "more items or --seconds; `reelscribe plan` says what cannot be done"
        )
    now = datetime.now(UTC)
    actual = np.array([one.seconds for one in rounds])
    predicted = np.array([one.sums @ weights for one in rounds])
    means = {task: tokens / count for task, (count, tokens) in written.items()}
    model = recipe(opened.job, opened.checkpoint.identity)["model"]
    return Calibration(
        created_at=now.isoformat(timespec="seconds"),
        device=device,
        model=model,
        rates=rates_of(weights, means, f"a calibration on {device}, {now:%Y-%m-%d %H:%M} UTC"),
        rounds=[
            dict(zip(FEATURES, one.sums.tolist(), strict=True))
            | {"num_units": float(one.num_units), "engine_seconds": one.seconds}
            for one in rounds
        ],
        error=float(np.abs(predicted - actual).sum() / actual.sum()),
    )


def _device(fitted: Pools) -> str:
    """Name what an engine gets."""
    import ray

    def name() -> str:
        if fitted.gpus_per_replica:
            import torch

            return f"{fitted.gpus_per_replica:g} x {torch.cuda.get_device_name(0)}"
        return f"{fitted.cpus_per_replica:g} CPU of {platform.machine()}"

    options = {"num_cpus": fitted.cpus_per_replica, "num_gpus": fitted.gpus_per_replica}
    found: str = ray.get(ray.remote(name).options(**options).remote())
    return found


def _print(found: Calibration, uri: str, console: Console) -> None:
    rates: Rates = found.rates
    units = sum(one["num_units"] for one in found.rounds)
    seconds = sum(one["engine_seconds"] for one in found.rounds)
    console.print(
        f"{len(found.rounds)} rounds, {units:,.0f} units, {seconds:,.1f} s of the engine; the "
        f"costs below are {found.error:.0%} off what was measured"
    )
    for name, said in zip(FEATURES, ("seen", "read", "written"), strict=True):
        console.print(f"  1,000 tokens {said:<8} {1000 * rates.seconds_each[name]:,.4g} s")
    means = ", ".join(f"{task} {tokens:,.0f}" for task, tokens in rates.output_tokens.items())
    console.print(Text(f"  tokens of an answer: {means}"), soft_wrap=True)
    console.print(Text(f"The calibration, which plan and annotate take: {uri}"), soft_wrap=True)


if __name__ == "__main__":
    from jobs.cli import main

    main(prog_name="reelscribe", args=["calibrate", *sys.argv[1:]])
