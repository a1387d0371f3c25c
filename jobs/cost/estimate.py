"""Predict what a plan will cost, in engine hours and money, in total and by task."""

import dataclasses
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jobs.cost.rates import Rates, Work, features, read_again
from pipeline.engines.speed import EngineTimes
from pipeline.engines.vllm.prefix import KeptPrefix, planned_prefix
from pipeline.model.checkpoint import load_config
from pipeline.model.sizes import ModelSize
from schemas.errors import CostError
from schemas.job.job import Job
from schemas.shown import printable

MEDIA = "media, read once"
AGAIN = "media, read again by further tasks"


@dataclass(frozen=True, kw_only=True)
class Share:
    """The work of one task, or of the media, which all tasks share."""

    name: str
    num_read: float
    num_written: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class TimeUnit:
    """The unit in which a time is printed."""

    name: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The predicted engine seconds of a plan.

    unmeasured: tasks whose answers are assumed to have their maximum length.
    kept: what the engine keeps of the beginning that a unit's tasks share.
    """

    shares: tuple[Share, ...]
    seconds: float
    rates: Rates
    is_measured: bool
    unmeasured: tuple[str, ...]
    kept: KeptPrefix

    @property
    def hours(self) -> float:
        """Engine hours."""
        return self.seconds / 3600


def estimate(
    units: pa.Table, job: Job, known: Rates | None, kept: KeptPrefix | None = None
) -> Estimate:
    """Predict the cost of units.

    units: UNIT rows; those that cannot be done cost nothing.
    known: measured rates; None: ``default_rates``.
    kept: what the engine keeps of the beginning that a unit's tasks share; None: all of it.
    """
    kept = kept or KeptPrefix()
    units = units.filter(pc.is_null(units["error"]))
    rates = known or default_rates(job, units)
    longest = {question.name: float(question.max_new_tokens) for question in job.questions()}
    prompts = pc.list_flatten(units["prompts"])
    questions = pa.table(
        {name: pc.struct_field(prompts, name) for name in ("task", "num_own_tokens")}
    ).group_by("task")
    found = {
        row["task"]: (row["num_own_tokens_sum"], row["task_count"])
        for row in questions.aggregate([("num_own_tokens", "sum"), ("task", "count")]).to_pylist()
    }
    unmeasured = tuple(
        task for task in longest if task in found and task not in rates.output_tokens
    )
    rates = dataclasses.replace(
        rates, output_tokens=rates.output_tokens | {task: longest[task] for task in unmeasured}
    )
    vision, _, _ = features(units, rates.output_tokens).sum(axis=0)
    shared = float(pc.sum(units["num_shared_tokens"]).as_py() or 0)
    per_vision, per_text, per_output = rates.weights
    shares = [
        Share(
            name=MEDIA,
            num_read=shared,
            num_written=0.0,
            seconds=vision * per_vision + (shared - vision) * per_text,
        )
    ]
    if again := float(read_again(units, kept).sum()):
        seconds = again * per_text
        shares.append(Share(name=AGAIN, num_read=again, num_written=0.0, seconds=seconds))
    for task in longest:
        if task in found:
            own, count = found[task]
            written = count * rates.output_tokens[task]
            seconds = own * per_text + written * per_output
            shares.append(Share(name=task, num_read=own, num_written=written, seconds=seconds))
    return Estimate(
        shares=tuple(shares),
        seconds=sum(share.seconds for share in shares),
        rates=rates,
        is_measured=known is not None,
        unmeasured=unmeasured,
        kept=kept,
    )


def default_rates(job: Job, units: pa.Table) -> Rates:
    """Assume rates from arithmetic and memory traffic of a model of this size.

    The GPU is ``model.simulated.gpu``; Source: ``pipeline/engines/speed.py``.
    """
    model = job.model
    if model.engine == "simulated":
        times, size = EngineTimes.of(model.simulated), f"Qwen3-VL {model.simulated.size}"
    else:
        found = ModelSize.of(load_config(model.source, model.revision, model.yarn).to_dict())
        times, size = EngineTimes.of(model.simulated, found), found.description
    prompts = pc.list_flatten(units["prompts"])
    context = pc.mean(pc.struct_field(prompts, "num_prompt_tokens")).as_py() or 0.0
    per_output = times.per_step / times.max_num_seqs + context * times.per_cached_token
    return Rates(
        seconds_each={
            "num_vision_tokens": times.per_vision_token + times.per_prompt_token,
            "num_text_tokens": times.per_prompt_token,
            "num_output_tokens": per_output,
        },
        output_tokens={},
        origin=f"defaults, NOT measured: arithmetic and memory traffic of a model of {size} on one "
        f"{model.simulated.gpu.upper()}, {times.max_num_seqs} answers at a time; `reelscribe "
        "calibrate` measures",
    )


def money(estimated: Estimate, job: Job) -> str:
    """Write the engines' time, with its price if the job has one."""
    unit = time_unit(estimated.seconds)
    time = f"{number(estimated.seconds / unit.seconds)} engine {unit.name}"
    if job.cost.per_hour is None:
        return time
    price = number(estimated.hours * job.cost.per_hour)
    return f"{time}, {price} {printable(job.cost.currency)}"


def print_estimate(estimated: Estimate, job: Job, console: Console) -> None:
    """Print the cost of each task, and where the rates come from."""
    price = job.cost.per_hour
    grid = Table(title="predicted cost", title_justify="left", box=box.SIMPLE_HEAD)
    unit = time_unit(estimated.seconds)
    names = ["", "tokens read", "tokens written", f"engine {unit.name}"]
    for name in [*names, *([printable(job.cost.currency)] if price else [])]:
        grid.add_column(name, justify="left" if not name else "right")
    reads = sum(share.num_read for share in estimated.shares)
    writes = sum(share.num_written for share in estimated.shares)
    total = Share(name="all", num_read=reads, num_written=writes, seconds=estimated.seconds)
    for share in (*estimated.shares, total):
        cells = [f"{share.num_read:,.0f}", f"{share.num_written:,.0f}"]
        cells.append(number(share.seconds / unit.seconds))
        cells += [number(share.seconds / 3600 * price)] if price else []
        grid.add_row(share.name, *cells, style="bold" if share is total else None)
    console.print(grid)
    for line in _remarks(estimated, job):
        console.print(Text(f"  {printable(line)}"), soft_wrap=True)


def _remarks(estimated: Estimate, job: Job) -> list[str]:
    lines = [f"By {estimated.rates.origin or 'measurements of this run'}."]
    if estimated.unmeasured:
        tasks = ", ".join(estimated.unmeasured)
        lines.append(f"Answers of {tasks} are assumed to have max_new_tokens.")
    if any(share.name == AGAIN for share in estimated.shares):
        lines.append(f"By the engine's rules, to be seen in run.json: {estimated.kept}.")
    gpus = job.model.vllm.gpus if job.model.engine == "vllm" else 1
    if gpus > 1:
        unit = time_unit(estimated.seconds)
        time = number(estimated.seconds * gpus / unit.seconds)
        lines.append(f"An engine has {gpus} GPUs: {time} GPU-{unit.name}.")
    if job.summary is not None:
        lines.append("Summaries of whole videos are not included.")
    lines.append("The engines' start and waiting for decoders are not included.")
    return lines


def check_cost(estimated: Estimate, job: Job) -> None:
    """Refuse a run that is over the job's limit.

    Raises:
        CostError: the predicted cost is over the limit.
    """
    max_cost, price = job.limits.max_cost, job.cost.per_hour
    if max_cost is None:
        return
    cost = estimated.hours * (price or 1.0)
    if cost <= max_cost:
        return
    predicted = f"{number(cost)} {job.cost.currency}" if price else money(estimated, job)
    unit = job.cost.currency if price else "engine hours (there is no cost.per_hour)"
    raise CostError(
        f"this run is predicted to cost {predicted}, over limits.max_cost {max_cost:g} {unit}; by "
        f"{estimated.rates.origin or 'measurements of this run'}. Take fewer "
        "items (--limit, --sample), lower sampling.fps or budget, or raise --max-cost; `reelscribe "
        "plan` shows what each would change. Nothing was annotated"
    )


def relative_error(units: pa.Table, job: Job, known: Rates | None) -> float:
    """The standard error of the mean cost of a medium, over that mean; 0 without units."""
    if not units.num_rows:
        return 0.0
    costs = Work(units, known, planned_prefix(job.model)).costs
    media = units["media_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    of_media = np.bincount(media, weights=costs)
    mean = of_media.mean()
    return float(of_media.std() / np.sqrt(len(of_media)) / mean) if mean else 0.0


def time_unit(seconds: float) -> TimeUnit:
    """Return hours, or seconds for a time of less than 36 s, which is 0.01 hours."""
    if 0 < seconds < 36:
        return TimeUnit(name="seconds", seconds=1.0)
    return TimeUnit(name="hours", seconds=3600.0)


def number(value: float) -> str:
    """Write a time or money with at least two decimals, or three significant digits to 0.001."""
    if value >= 10:
        return f"{value:,.2f}"
    if value >= 0.1 or value == 0:
        return f"{value:.3f}"
    return f"{value:.3g}" if value >= 0.001 else "<0.001"
