"""``reelscribe calibrate``: measure the cost of a job's units on this cluster's engine.

Some of the job's units go through the engine, in several sizes and with all or half of the tasks,
so that the costs of vision tokens, text tokens and output tokens can be separated.
"""

import dataclasses
import itertools
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import median

import numpy as np
from rich.console import Console
from rich.text import Text

from jobs.cluster.gpus import batch_tokens
from jobs.cluster.one_engine import Answer, one_engine
from jobs.cost.calibration import Calibration, calibration_uri, write_calibration
from jobs.cost.rates import FEATURES, Array, Rates, fit, rates_of
from jobs.plan.open_job import JobContext, open_job
from pipeline.plan.planner import PROBE_THREADS, Planner
from pipeline.plan.recipe import recipe
from pipeline.stages.prepare import Prepare
from pipeline.workers.child_process import Isolated
from pipeline.workers.code_version import code_digest
from schemas.errors import ResourceError
from schemas.job.job import Job
from schemas.tables.columns import from_table, to_table
from schemas.tables.manifest import MediaItem
from schemas.tables.unit import PREPARED, AnsweredUnit, Unit, UnitStatus

SECONDS = 90.0
"""Duration of the measurement; with the engine's start it takes about two minutes."""

_MAX_ITEMS = 128
_SIZES = (1.0, 0.5, 0.25)
"""Vision tokens of an image or frame, as shares of the job's median."""
_NUM_ROUNDS = 12
_MIN_ROUNDS = 3
_MAX_ROUND_UNITS = 64
_MAX_ROUND_BYTES = 1 << 29


@dataclass(frozen=True, kw_only=True)
class Round:
    """One batch of the engine: sums of FEATURES over its units, and its seconds."""

    num_units: int
    sums: Array
    seconds: float


def run(
    job: Job, console: Console, *, seconds: float = SECONDS, file: str | None = None
) -> Calibration:
    """Measure, write the calibration, and print it.

    seconds: duration of the measurement, without the engine's start.
    file: where to write; default: ``cost.calibration``, else the output's calibration.json.

    Raises:
        UserError: the job or the storage does not work, or too little was measured.
    """
    named = job.cost.calibration
    context, items = items_to_measure(job)
    uri = file or named or calibration_uri(context.job)
    sizes = planned_sizes(context, items)
    with one_engine(context.job, len(sizes[0]), console) as (device, answer):
        console.print(Text(f"starting the engine on {device}"))
        rounds, answers = measure(context, sizes, answer, seconds, console)
    found = calibration(context, device, rounds, answers)
    write_calibration(found, uri, context.storage)
    _print(found, uri, console)
    return found


def items_to_measure(job: Job) -> tuple[JobContext, Sequence[MediaItem]]:
    """Open the job without its calibration, and with the media that the table has already."""
    update = {
        "cost": job.cost.model_copy(update={"calibration": None}),
        "input": job.input.model_copy(update={"only_new": False}),
    }
    return open_job(job.model_copy(update=update))


def planned_sizes(context: JobContext, items: Sequence[MediaItem]) -> list[list[Unit]]:
    """Plan some of the job's items with the job's budget and with smaller ones.

    Returns the units for each of ``_SIZES``.

    Raises:
        ResourceError: none of the items can be read.
    """
    if len(items) > _MAX_ITEMS:
        items = random.Random(0).sample(items, _MAX_ITEMS)
    whole = _planned(context, context.job, items)
    if not whole:
        raise ResourceError(
            f"none of {len(items)} items of the job can be done, so nothing can be measured: run "
            "`reelscribe plan`, which lists the reasons"
        )
    smaller = [_planned(context, _smaller(context.job, whole, size), items) for size in _SIZES[1:]]
    return [whole, *smaller]


def _planned(context: JobContext, job: Job, items: Sequence[MediaItem]) -> list[Unit]:
    isolated = Isolated("pipeline.plan.sampler", PROBE_THREADS, quiet=True)
    planner = Planner(job, context.checkpoint.max_model_len, context.storage, isolated)
    units = [unit for unit in planner.plan(items) if unit.status != UnitStatus.FAILED]
    random.Random(0).shuffle(units)
    return units


def _smaller(job: Job, units: Sequence[Unit], share: float) -> Job:
    """The job with a budget of a share of the median tokens of its images and frames."""
    tokens_of: dict[str, list[int]] = {"image": [], "video": []}
    for part in (part for unit in units for part in unit.seen):
        tokens = part.sampling.num_vision_tokens // part.sampling.grid_thw[0]
        tokens_of[part.media.media_type].append(tokens)
    budget = job.budget.model_dump()
    for kind, name in (("image", "image_tokens"), ("video", "frame_tokens")):
        if tokens_of[kind]:
            max_tokens = max(4, int(median(tokens_of[kind]) * share))
            budget[name] = (min(budget[name][0], max_tokens), max_tokens)
    return job.model_copy(update={"budget": type(job.budget)(**budget)})


def measure(
    context: JobContext, sizes: list[list[Unit]], answer: Answer, seconds: float, console: Console
) -> tuple[list[Round], dict[str, tuple[int, int]]]:
    """Run the engine on units for about ``seconds``.

    sizes: the units in each size; none is used twice in one size, since engines have caches.
    answer: the function that ``one_engine`` yields.

    Returns the rounds, and per task the number of answers and of their tokens.
    """
    job = context.job
    prepare = Prepare(job, context.storage, code_digest())
    written: Counter[str] = Counter()
    answers: Counter[str] = Counter()
    rounds: list[Round] = []

    def work(units: Sequence[Unit]) -> Round:
        prepared = to_table([prepare.prepare(unit) for unit in units], PREPARED)
        done = [u for u in from_table(answer(prepared), AnsweredUnit) if u.answers]
        for found in (found for unit in done for found in unit.answers):
            answers[found.task] += 1
            written[found.task] += found.num_output_tokens
        return Round(
            num_units=len(done),
            sums=np.array([_features(unit) for unit in done]).reshape(-1, 3).sum(axis=0),
            seconds=sum(unit.engine_seconds for unit in done),
        )

    for cheapest in sorted(sizes[-1] or sizes[0], key=lambda unit: unit.predicted_cost):
        first = work([cheapest])  # compiles and fills caches: not measured
        if first.seconds:  # 0 if its header was readable, but its content is not
            break
    else:
        return [], {}
    seconds_per_token = first.seconds / max(cheapest.predicted_cost, 1.0)
    answers.clear()
    written.clear()
    two_batches = 2 * batch_tokens(job, context.checkpoint.memory)
    until = time.monotonic() + seconds
    queues = [iter(units) for units in sizes]
    for k in itertools.count():
        if len(rounds) >= _MIN_ROUNDS and time.monotonic() > until:
            break
        max_tokens = min(seconds / _NUM_ROUNDS / seconds_per_token, two_batches)
        third = max(1, len(sizes[k % len(sizes)]) // 3)
        units = list(_take(queues[k % len(queues)], max_tokens, min(third, _MAX_ROUND_UNITS)))
        if not units and k >= 3 * len(queues):
            break
        if not units:
            continue
        found = work([_with_fewer_tasks(unit, k) for unit in units])
        if not found.num_units or not found.seconds:
            continue
        rounds.append(found)
        tokens = float(found.sums.sum())
        seconds_per_token = found.seconds / max(tokens, 1.0)
        console.print(
            f"{found.num_units:,} units, {tokens:,.0f} tokens, {found.seconds:,.2f} s",
            style="dim",
        )
    return rounds, {task: (count, written[task]) for task, count in answers.items()}


def _take(units: Iterator[Unit], max_tokens: float, max_units: int) -> Iterator[Unit]:
    """Take units for a round, at least one."""
    tokens, num_bytes = 0.0, 0
    for count, unit in enumerate(units, start=1):
        yield unit
        tokens += unit.predicted_cost
        for part in unit.seen:
            seen = part.sampling
            num_bytes += 3 * seen.num_frames * seen.resized_height * seen.resized_width
        if tokens >= max_tokens or count >= max_units or num_bytes >= _MAX_ROUND_BYTES:
            return


def _with_fewer_tasks(unit: Unit, k: int) -> Unit:
    """The unit, with half of its tasks in every second round; its vision tokens stay the same."""
    half = len(unit.prompts) // 2
    if not half or k % 2 == 0:
        return unit
    prompts = unit.prompts[:half] if k % 4 == 1 else unit.prompts[half:]
    return dataclasses.replace(unit, prompts=prompts)


def _features(unit: AnsweredUnit) -> list[float]:
    """FEATURES of an answered unit: measured tokens, not limits."""
    vision = sum(part.sampling.num_vision_tokens for part in unit.seen)
    output = sum(answer.num_output_tokens for answer in unit.answers)
    return [float(vision), float(unit.num_fed_tokens - vision), float(output)]


def calibration(
    context: JobContext, device: str, rounds: Sequence[Round], answers: dict[str, tuple[int, int]]
) -> Calibration:
    """Fit seconds per token to the rounds.

    answers: per task the number of answers and of their tokens.

    Raises:
        ResourceError: too few rounds were measured.
    """
    weights = fit([(one.sums, one.seconds) for one in rounds], min_files=_MIN_ROUNDS)
    if weights is None:
        raise ResourceError(
            f"only {len(rounds)} rounds of the engine could be measured, too few: give more items "
            "or --seconds; `reelscribe plan` lists the items that cannot be done"
        )
    now = datetime.now(UTC)
    actual = np.array([one.seconds for one in rounds])
    predicted = np.array([one.sums @ weights for one in rounds])
    means = {task: tokens / count for task, (count, tokens) in answers.items()}
    model = recipe(context.job, context.checkpoint.identity)["model"]
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


def _print(found: Calibration, uri: str, console: Console) -> None:
    rates: Rates = found.rates
    units = sum(one["num_units"] for one in found.rounds)
    seconds = sum(one["engine_seconds"] for one in found.rounds)
    console.print(
        f"{len(found.rounds)} rounds, {units:,.0f} units, {seconds:,.1f} s of the engine; the "
        f"costs below differ by {found.error:.0%} from the measured seconds"
    )
    for name, kind in zip(FEATURES, ("vision", "text", "output"), strict=True):
        console.print(f"  1,000 {kind:<6} tokens  {1000 * rates.seconds_each[name]:,.4g} s")
    if len(set(rates.seconds_each.values()) - {0.0}) < len(FEATURES):
        text = "  kinds with one cost, or none, cannot be told apart: give more items or --seconds"
        console.print(text, soft_wrap=True)
    means = ", ".join(f"{task} {tokens:,.0f}" for task, tokens in rates.output_tokens.items())
    console.print(Text(f"  output tokens per answer: {means}"), soft_wrap=True)
    console.print(Text(f"The calibration, which plan and annotate use: {uri}"), soft_wrap=True)
