"""Print a plan as a table."""

import pyarrow as pa
import pyarrow.compute as pc
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jobs.cluster.session import fit_job
from jobs.cluster.small import MAX_SMALL, why_ray
from jobs.plan.open_job import JobContext
from pipeline.plan.plan_file import plan_folder
from schemas.errors import ResourceError
from schemas.job.job import Job
from schemas.shown import one_line, redact_uri
from schemas.tables.unit import UnitStatus

_MAX_PROBLEMS = 20


def print_left_out(context: JobContext, console: Console) -> None:
    """Print what the listing of a folder left out, a line for each reason."""
    for line in context.left_out:
        console.print(Text(one_line(f"left out: {line}")), soft_wrap=True)


def print_plan(
    table: pa.Table,
    context: JobContext,
    console: Console,
    *,
    dry_run: bool = False,
    num_media: int | None = None,
) -> None:
    """Print the numbers of items, units, hours and tokens, and the errors of units that failed.

    num_media: of the run, where the table has only the first of them.
    """
    failed = pc.equal(table["status"], pa.scalar(UnitStatus.FAILED.value))
    media_type = pc.struct_field(table["media"], "media_type")
    grid = Table(title=f"plan of {context.run.run_id}", title_justify="left", box=box.SIMPLE_HEAD)
    for name in ("", "items", "units", "hours of video", "vision tokens", "prompt tokens"):
        grid.add_column(name, justify="left" if not name else "right")
    for kind in ("image", "video"):
        is_kind = pc.and_not(pc.equal(media_type, pa.scalar(kind)), failed)
        grid.add_row(kind, *_sums(table.filter(is_kind)))
    conversations = table.filter(pc.and_not(pc.is_valid(table["messages"]), failed))
    if conversations.num_rows:
        grid.add_row("conversation", *_sums(conversations))
    problems = table.filter(failed)
    grid.add_row("cannot be done", *_sums(problems), style="yellow")
    grid.add_row("all", *_sums(table), style="bold")
    console.print(grid)
    if num_media is not None:
        num_first = pc.count_distinct(table["media_id"]).as_py()
        text = f"these are {num_first:,} of {num_media:,} media; others are planned meanwhile"
        console.print(Text(text), soft_wrap=True)
    for unit in problems.slice(0, _MAX_PROBLEMS).to_pylist():
        uri, message = redact_uri(unit["uri"]), unit["error"]["message"]
        where = "" if message.startswith(uri) else f"{uri}: "
        line = f"  {unit['error']['type']}: {where}{message}"
        console.print(Text(one_line(line)), soft_wrap=True)
    if (more := problems.num_rows - _MAX_PROBLEMS) > 0:
        where = "" if dry_run else ", in the plan's `error` column"
        console.print(f"  ... and {more:,} more{where}")
    console.print(Text(one_line(f"the engine is {context.run.engine}")), soft_wrap=True)
    for line in context.checkpoint.processors.exceeded(context.job.budget):
        console.print(Text(f"warning: {line}", style="yellow"), soft_wrap=True)
    if context.expects_reasoning:
        is_on = context.job.generation.reasoning == "on"
        why = "generation.reasoning is on" if is_on else "the checkpoint always does so"
        console.print(Text(f"answers begin with reasoning: {why}"), soft_wrap=True)
    if way := _way(context.job, num_media or table.num_rows):
        console.print(Text(one_line(f"annotate runs {way}")), soft_wrap=True)
    if not dry_run:
        folder = plan_folder(context.run.folder(context.job.output))
        console.print(Text(f"The plan: {folder}"), soft_wrap=True)


def _way(job: Job, num_units: int) -> str | None:
    """How ``annotate`` would run here; None if the job does not fit into this machine."""
    try:
        reason = why_ray(job, num_units, "units", fit_job(job).replicas)
    except ResourceError:
        return None
    return f"on Ray: {reason}" if reason else f"without Ray: at most {MAX_SMALL} units, one engine"


def _sums(units: pa.Table) -> list[str]:
    """Items, units, hours, vision tokens and prompt tokens of some units, formatted."""
    parts = pc.list_flatten(units["parts"].combine_chunks())
    seen = pa.chunked_array(
        [units["sampling"].combine_chunks(), pc.struct_field(parts, "sampling")]
    )
    start, end, tokens = (
        pc.struct_field(seen, name)
        for name in ("start_seconds", "end_seconds", "num_vision_tokens")
    )
    prompts = pc.list_flatten(units["prompts"].combine_chunks())
    prompt_tokens = pc.struct_field(prompts, "num_prompt_tokens")
    counts = [
        pc.count_distinct(units["media_id"]).as_py(),
        units.num_rows,
        (pc.sum(pc.subtract(end, start)).as_py() or 0.0) / 3600,
        pc.sum(tokens).as_py() or 0,
        pc.sum(prompt_tokens).as_py() or 0,
    ]
    return [f"{count:,.3f}" if isinstance(count, float) else f"{count:,}" for count in counts]
