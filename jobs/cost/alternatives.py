"""Predict the cost of a plan under other settings, with the planner's own functions.

No media is read again. Units keep their spans; frames, sizes and tokens are counted again.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jobs.cost.estimate import Estimate, number, time_unit
from jobs.cost.rates import features
from pipeline.media.timestamps import pair_seconds, time_tokens
from pipeline.model.frame_size import image_size, video_size
from pipeline.plan.segment import num_frames
from schemas.job.job import Job, check_job
from schemas.shown import printable
from schemas.tables.columns import from_table, to_table
from schemas.tables.unit import UNIT, Unit

SAMPLE_UNITS = 400
"""Number of units that represent a plan, evenly spread from the most expensive to the cheapest."""


@dataclass(frozen=True, kw_only=True)
class MediaTokens:
    """Frames and tokens of a unit's media."""

    num_frames: int
    num_vision_tokens: int
    num_time_tokens: int


@dataclass(frozen=True, kw_only=True)
class Alternative:
    """A plan under another setting.

    setting: as ``--set`` takes it.
    vision, seconds: factors of the job's vision tokens and engine seconds.
    over: share of the units that are longer than the context; they cost nothing.
    """

    setting: str
    vision: float
    seconds: float
    over: float


def sample_units(units: pa.Table) -> list[Unit]:
    """Choose units that represent a plan, most expensive first."""
    units = units.filter(pc.is_null(units["error"]))
    count = min(units.num_rows, SAMPLE_UNITS)
    rows = np.linspace(0, units.num_rows - 1, count).round().astype(int)
    return from_table(units.take(pa.array(rows, pa.int64())), Unit)


def alternatives(
    units: list[Unit], job: Job, estimated: Estimate, max_model_len: int
) -> list[Alternative]:
    """Predict the cost of units under each of ``other_settings``.

    max_model_len: maximum tokens of a prompt and its answer.
    """
    if not units:
        return []
    vision, seconds = _sums(units, estimated)
    found = []
    for setting, other in other_settings(job):
        changed = [recount_unit(unit, job, other) for unit in units]
        fitting = [unit for unit in changed if _fits(unit, other, max_model_len)]
        other_vision, other_seconds = _sums(fitting, estimated)
        found.append(
            Alternative(
                setting=setting,
                vision=other_vision / vision if vision else 1.0,
                seconds=other_seconds / seconds if seconds else 1.0,
                over=1 - len(fitting) / len(units),
            )
        )
    return found


def other_settings(job: Job) -> Iterator[tuple[str, Job]]:
    """Halve and double each setting of frames and sizes: yields ``--set`` texts and their jobs."""
    sampling, budget = job.sampling, job.budget
    settings: list[tuple[str, Any]] = []
    for factor in (0.5, 2.0):
        if sampling.num_frames is not None:
            settings.append(("sampling.num_frames", max(2, round(sampling.num_frames * factor))))
        else:
            settings.append(("sampling.fps", sampling.fps * factor))
            settings.append(("sampling.max_frames", max(2, round(sampling.max_frames * factor))))
        settings.append(("budget.unit_tokens", max(4, round(budget.unit_tokens * factor))))
        for name in ("frame_tokens", "image_tokens"):
            lower, upper = getattr(budget, name)
            upper = max(1, round(upper * factor))
            settings.append((f"budget.{name}", [min(lower, upper), upper]))
    lower, upper = budget.frame_tokens
    settings.append(("budget.frame_tokens", [max(1, lower // 2), upper]))
    for dotted, value in sorted(settings, key=lambda setting: setting[0]):
        section, key = dotted.split(".")
        spec = job.model_dump()
        spec[section][key] = value
        if key == "max_frames":
            spec[section]["min_frames"] = min(spec[section]["min_frames"], value)
        shown = f"{value:g}" if isinstance(value, float) else str(value).replace(" ", "")
        yield f"{dotted}={shown}", check_job(spec, "another setting of the job")


def media_tokens(unit: Unit, job: Job) -> MediaTokens | None:
    """Count a unit's frames and tokens under a job's settings; None for a conversation."""
    media, sampling = unit.media, unit.sampling
    if media is None or sampling is None:
        return None
    if media.media_type == "image":
        size = image_size(media.height, media.width, job.budget)
        return MediaTokens(num_frames=1, num_vision_tokens=size.num_tokens, num_time_tokens=0)
    count = sampling.num_frames
    if not unit.frames:  # a list of frames is used whole
        start, end = sampling.start_seconds or 0.0, sampling.end_seconds or 0.0
        count = num_frames(start, end, media.average_fps, job.sampling)
    size = video_size(count, media.height, media.width, job.budget)
    times = dataclasses.replace(sampling, num_frames=count).times_seconds()
    seconds = pair_seconds([t - sampling.origin_seconds for t in times])
    return MediaTokens(
        num_frames=count,
        num_vision_tokens=size.num_tokens,
        num_time_tokens=sum(map(time_tokens, seconds)),
    )


def recount_unit(unit: Unit, job: Job, other: Job) -> Unit:
    """Return the unit as another job would plan it.

    Conversations, and items whose manifest row sets a size or frame rate, stay as they are: other
    settings than the job's determine their tokens.
    """
    before, after = media_tokens(unit, job), media_tokens(unit, other)
    if before is None or after is None or unit.sampling is None:
        return unit
    planned = (unit.sampling.num_frames, unit.sampling.num_vision_tokens)
    if (before.num_frames, before.num_vision_tokens) != planned:
        return unit
    vision = after.num_vision_tokens - before.num_vision_tokens
    more = vision + after.num_time_tokens - before.num_time_tokens
    begins = {prompt.num_prompt_tokens - prompt.num_own_tokens for prompt in unit.prompts}
    return dataclasses.replace(
        unit,
        sampling=dataclasses.replace(
            unit.sampling,
            num_frames=after.num_frames,
            num_vision_tokens=after.num_vision_tokens,
        ),
        prompts=tuple(
            dataclasses.replace(prompt, num_prompt_tokens=prompt.num_prompt_tokens + more)
            for prompt in unit.prompts
        ),
        num_shared_tokens=unit.num_shared_tokens + more * len(begins),
    )


def _fits(unit: Unit, job: Job, max_model_len: int) -> bool:
    longest = {question.name: question.max_new_tokens for question in job.questions()}
    return all(p.num_prompt_tokens + longest[p.task] <= max_model_len for p in unit.prompts)


def _sums(units: list[Unit], estimated: Estimate) -> tuple[float, float]:
    """Vision tokens and engine seconds."""
    each = features(to_table(units, UNIT), estimated.rates.output_tokens, estimated.kept)
    sums = each.sum(axis=0)
    return float(sums[0]), float(sums @ estimated.rates.weights)


def print_alternatives(
    plan: pa.Table, job: Job, estimated: Estimate, max_model_len: int, console: Console
) -> None:
    """Print the predicted cost under other settings."""
    units = sample_units(plan)
    found = alternatives(units, job, estimated, max_model_len)
    changing = [a for a in found if (a.vision, a.seconds, a.over) != (1.0, 1.0, 0.0)]
    idle = [a.setting for a in found if a not in changing]
    if not found:
        return
    price = job.cost.per_hour
    title = "cost under other settings"
    grid = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    unit = time_unit(estimated.seconds)
    columns = ["--set", "vision tokens", f"engine {unit.name}"]
    columns += [printable(job.cost.currency)] if price else []
    columns += ["over the context"] if any(a.over for a in changing) else []
    for name in columns:
        grid.add_column(name, justify="left" if name == "--set" else "right")
    for other in changing:
        hours = estimated.hours * other.seconds
        time = f"{number(hours * 3600 / unit.seconds)} (x {other.seconds:.2f})"
        cells = [other.setting, f"x {other.vision:.2f}", time]
        cells += [number(hours * price)] if price else []
        cells += [f"{other.over:.1%} of units"] if "over the context" in columns else []
        grid.add_row(*cells)
    if changing:
        console.print(grid)
    remarks = [f"  Without effect on these media: {', '.join(idle)}."] if idle else []
    num_good = plan.num_rows - (plan["error"].length() - plan["error"].null_count)
    if num_good > len(units):
        remarks.append(f"  From {len(units):,} of {num_good:,} units, evenly spread by cost.")
    for line in remarks:
        console.print(Text(line), soft_wrap=True)
