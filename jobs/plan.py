"""``reelscribe plan``: manifest to units, with exact token counts, before a GPU is touched."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jobs.alternatives import print_alternatives
from jobs.cluster import actor_errors, connected, on_this_machine, plan_actors
from jobs.estimate import check_cost, estimate, print_estimate
from jobs.plan_uris import with_secrets, without_secrets
from jobs.printable import printable
from jobs.progress import Progress
from jobs.runs import Run, open_run
from pipeline.build import PLAN_BATCH_ITEMS, build_plan
from pipeline.checkpoint import Checkpoint, inspect_checkpoint, with_advice
from pipeline.engines.vllm_args import check_vllm
from pipeline.isolate import Isolated
from pipeline.known import Known, is_told
from pipeline.plan import PROBE_THREADS, Planner
from pipeline.prompt import Prompter
from pipeline.recipe import recipe, recipe_id
from pipeline.select import select
from pipeline.shots import check_shots
from pipeline.storage import Storage, join, shown
from pipeline.write import is_read, read_parquet, write_parquet
from schemas.errors import ErrorType, ManifestError, StorageError
from schemas.job import Job
from schemas.manifest import MediaItem
from schemas.unit import UNIT, Unit, UnitStatus, to_table

_SHOWN_PROBLEMS = 20
_PARTS_APART = 256
"""Tables of few units take several times the memory of one of many: they are put together."""


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A job that was checked: everything a run needs before Ray starts."""

    job: Job
    storage: Storage
    checkpoint: Checkpoint
    items: list[MediaItem]
    num_known: int
    run: Run
    changes: list[str]


def open_job(job: Job) -> Opened:
    """Check all that can be wrong before work starts, and find the run to continue.

    Raises:
        UserError: with one clear message.
    """
    from pipeline.engines.grammar import check_grammars  # imports torch

    if job.model.engine == "vllm" and not os.environ.get("RAY_ADDRESS"):
        check_vllm()  # of a cluster's nodes only the actors can tell
    job = _with_absolute_paths(job)
    storage = Storage(job.storage_options, job.input.allow_private_hosts)
    checkpoint = inspect_checkpoint(job.model)
    # A tokenizer or template that is none is found here too.
    prompter = Prompter(job.model.source, job.model.revision)
    job = with_advice(job, checkpoint, reasons=prompter.opens_reasoning)
    check_grammars(job)
    if job.sampling.segmentation.kind == "shots":
        check_shots()
    asked = recipe(job, checkpoint.identity)
    chosen = select(job.input, storage, lambda: Known(job.output, recipe_id(asked), storage))
    _check_tasks(job, chosen.items)
    run, changes = open_run(job, chosen.digest, asked, storage)
    return Opened(
        job=job,
        storage=storage,
        checkpoint=checkpoint,
        items=chosen.items,
        num_known=chosen.num_known,
        run=run,
        changes=changes,
    )


def _with_absolute_paths(job: Job) -> Job:
    """Local paths start at the driver's folder; its actors may stand in another."""
    model, folder = job.model, Path(job.model.source).expanduser()
    if folder.is_dir():
        model = model.model_copy(update={"source": str(folder.resolve())})
    if model.adapter is not None and (adapter := Path(model.adapter).expanduser()).is_dir():
        model = model.model_copy(update={"adapter": str(adapter.resolve())})
    output = job.output
    if "://" not in output:
        output = os.path.abspath(os.path.expanduser(output))
    return job.model_copy(update={"model": model, "output": output})


def _check_tasks(job: Job, items: list[MediaItem]) -> None:
    asked = {task for item in items for task in item.tasks}
    unknown = sorted(asked - {task.name for task in job.tasks})
    if unknown:
        raise ManifestError(
            f"the manifest's `tasks` column asks for {unknown}, which the job file does not have: "
            f"add them to its tasks, {[task.name for task in job.tasks]}"
        )


def make_plan(opened: Opened, console: Console, *, dry_run: bool = False) -> pa.Table:
    """Read the run's plan, or make it: UNIT rows, longest first, a stable order.

    dry_run: write nothing.

    The items of a plan that was made are let go.

    The plan belongs to the run; once the run has begun, it stays as it is.
    Before that, items that could not be read are looked at again.
    """
    try:
        plan = read_plan(opened)
    except FileNotFoundError:
        plan = UNIT.empty_table()
    failed = set(plan["media_id"].filter(pc.is_valid(plan["error"])).to_pylist())
    if plan.num_rows and (opened.run.starts or not failed):
        return plan
    kept = plan.filter(pc.invert(_is_among(plan["media_id"], failed)))
    planned = set(kept["media_id"].to_pylist())
    items = [item for item in opened.items if item.media_id not in planned]
    found = _probe(items, opened, console)
    if not opened.num_known:  # what is left of a night may well be what never could be read
        _check_access(pa.concat_tables([kept, found]))
    table = pa.concat_tables([kept, _only_new(found, items, opened)])
    # A driver may hold a million, and a sorted plan beside an unsorted one takes as much again.
    opened.items.clear()
    items.clear()
    return _checked(table) if dry_run else _write_plan(table, opened)


def read_plan(opened: Opened) -> pa.Table:
    """Read the run's plan.

    Raises:
        FileNotFoundError: there is none yet, or ``reelscribe compact`` has removed it.
    """
    plan = read_parquet(_plan_uri(opened), opened.storage).cast(UNIT)
    return with_secrets(plan, opened.items)


def plan_again(opened: Opened, plan: pa.Table, media_ids: set[str], console: Console) -> pa.Table:
    """Look at some items of a run's plan again, and write what they are now into the plan.

    media_ids: the items; of those that cannot be read now, be it one stretch of several, or are not
        in the manifest any more, the units stay as they are.
    """
    items = [item for item in opened.items if item.media_id in media_ids]
    fresh = _probe(items, opened, console) if items else UNIT.empty_table()
    was_read = set(plan["media_id"].filter(is_read(plan)).to_pylist())
    unread = set(fresh["media_id"].filter(pc.invert(is_read(fresh))).to_pylist())
    fresh = fresh.filter(pc.invert(_is_among(fresh["media_id"], was_read & unread)))
    replaced = _is_among(plan["media_id"], set(fresh["media_id"].to_pylist()))
    return _write_plan(pa.concat_tables([plan.filter(pc.invert(replaced)), fresh]), opened)


def _is_among(column: pa.ChunkedArray, values: set[str]) -> pa.ChunkedArray:
    return pc.is_in(column, pa.array(sorted(values), pa.string()))


def _plan_uri(opened: Opened) -> str:
    return join(opened.run.folder(opened.job.output), "plan", "part-0.parquet")


def _checked(table: pa.Table) -> pa.Table:
    table = table.sort_by([("predicted_cost", "descending"), ("unit_id", "ascending")])
    _check_distinct(table)
    return table


def _write_plan(table: pa.Table, opened: Opened) -> pa.Table:
    table = _checked(table)
    write_parquet(without_secrets(table), _plan_uri(opened), opened.storage)
    return table


def _only_new(units: pa.Table, items: list[MediaItem], opened: Opened) -> pa.Table:
    """Leave out known units of items that could not be told to be known before they were read."""
    if not opened.job.input.only_new or all(is_told(item) for item in items):
        return units
    with Known(opened.job.output, opened.run.key.recipe_id, opened.storage) as known:
        return known.new_units(units)


def _probe(items: list[MediaItem], opened: Opened, console: Console) -> pa.Table:
    """Plan items: a few in this process, which takes less time than to start another."""
    if not items:
        return UNIT.empty_table()
    num_items = len(items)
    bar = Progress(console, "planning", total_units=num_items, total_cost=float(num_items))
    by_header = opened.job.sampling.segmentation.kind != "shots"
    if num_items <= PLAN_BATCH_ITEMS and by_header and on_this_machine():
        return _probe_here(items, opened, bar)
    with connected(console):
        return _probe_there(items, opened, bar)


def _probe_here(items: list[MediaItem], opened: Opened, bar: Progress) -> pa.Table:
    isolated = Isolated("pipeline.choose", PROBE_THREADS, quiet=True)
    planner = Planner(opened.job, opened.checkpoint.max_model_len, opened.storage, isolated)
    units: list[Unit] = []
    with bar:
        for of_item in planner.plan_each(items):
            units += of_item
            bar.advance(units=1, cost=1.0)
    isolated.close()
    return to_table(units, UNIT)


def _probe_there(items: list[MediaItem], opened: Opened, bar: Progress) -> pa.Table:
    actors = plan_actors(len(items), opened.job.resources)
    context = opened.checkpoint.max_model_len
    dataset = build_plan(items, opened.job, context, opened.storage, actors)
    parts: list[pa.Table] = []
    whole: list[pa.Table] = []
    with bar, actor_errors():
        for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
            parts.append(batch.cast(UNIT))
            if len(parts) == _PARTS_APART:
                whole.append(pa.concat_tables(parts).combine_chunks())
                parts.clear()
            media_ids = len(set(batch["media_id"].to_pylist()))
            bar.advance(units=media_ids, cost=float(media_ids))
    return pa.concat_tables([*whole, *parts])


def _check_access(table: pa.Table) -> None:
    """A storage that has or gives nothing is a mistake of the job, not of each of its items."""
    kinds = pc.struct_field(table["error"], "type")
    barred = pa.array(
        [ErrorType.MEDIA_DENIED, ErrorType.MEDIA_MISSING, ErrorType.STORAGE_FAILED], pa.string()
    )
    if table.num_rows and pc.all(pc.is_in(kinds, barred)).as_py():
        message = table["error"][0].as_py()["message"]
        raise StorageError(f"none of the {table.num_rows:,} media can be read, such as {message}")


def _check_distinct(table: pa.Table) -> None:
    if pc.count_distinct(table["unit_id"]).as_py() == table.num_rows:
        return
    counts = table.group_by("unit_id").aggregate([("media_id", "count"), ("media_id", "first")])
    repeated = counts.filter(pc.greater(counts["media_id_count"], 1))
    raise ManifestError(
        f"{repeated.num_rows} stretches of media are in the manifest more than once, such as "
        f"{repeated['media_id_first'][0]}: two rows whose start_seconds and end_seconds come to "
        "the same"
    )


def run(job: Job, console: Console, *, dry_run: bool = False) -> pa.Table:
    """Plan a job and print what it comes to.

    dry_run: write nothing.

    Raises:
        UserError: with one clear message.
    """
    opened = open_job(job)
    if nothing_new(opened, console):
        return UNIT.empty_table()
    if opened.run.status != "complete" and not dry_run:
        opened.run.save(opened.job, opened.storage)  # an output that cannot be written is noticed
    table = make_plan(opened, console, dry_run=dry_run)
    print_plan(table, opened, console, dry_run=dry_run)
    predicted = estimate(table, opened.job, opened.run.cost)
    print_estimate(predicted, opened.job, console)
    context = opened.checkpoint.max_model_len
    print_alternatives(table, opened.job, predicted, context, console)
    check_cost(predicted, opened.job)
    if dry_run:
        console.print("a dry run: nothing was written")
    return table


def nothing_new(opened: Opened, console: Console) -> bool:
    """Say how many media are known; True if a run with ``only_new`` would have no others."""
    if not opened.job.input.only_new:
        return False
    console.print(
        f"{opened.num_known:,} media are in the table already, {len(opened.items):,} are taken as "
        "new"
    )
    return not opened.items and opened.run.starts == 0


def print_plan(table: pa.Table, opened: Opened, console: Console, *, dry_run: bool = False) -> None:
    """Print items, units, hours, tokens, and what cannot be done and why."""
    failed = pc.equal(table["status"], UnitStatus.FAILED)
    media_type = pc.struct_field(table["media"], "media_type")
    grid = Table(title=f"plan of {opened.run.run_id}", title_justify="left", box=box.SIMPLE_HEAD)
    for name in ("", "items", "units", "hours of video", "vision tokens", "prompt tokens"):
        grid.add_column(name, justify="left" if not name else "right")
    for kind in ("image", "video"):
        of_kind = pc.and_not(pc.equal(media_type, kind), failed)
        grid.add_row(kind, *_sums(table.filter(of_kind)))
    talks = table.filter(pc.and_not(pc.is_valid(table["messages"]), failed))
    if talks.num_rows:
        grid.add_row("conversation", *_sums(talks))
    problems = table.filter(failed)
    grid.add_row("cannot be done", *_sums(problems), style="yellow")
    grid.add_row("all", *_sums(table), style="bold")
    console.print(grid)
    for unit in problems.slice(0, _SHOWN_PROBLEMS).to_pylist():
        uri, message = shown(unit["uri"]), unit["error"]["message"]
        where = "" if message.startswith(uri) else f"{uri}: "
        line = f"  {unit['error']['type']}: {where}{message}"
        console.print(Text(printable(line)), soft_wrap=True)
    if (more := problems.num_rows - _SHOWN_PROBLEMS) > 0:
        console.print(f"  ... and {more:,} more, in the plan's `error` column")
    folder = join(opened.run.folder(opened.job.output), "plan")
    if dry_run:
        return
    console.print(Text(f"The plan: {folder}"), soft_wrap=True)


def _sums(units: pa.Table) -> list[str]:
    """Items, units, hours, vision tokens and prompt tokens of some units, as texts."""
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


if __name__ == "__main__":
    from jobs.cli import main

    main(prog_name="reelscribe", args=["plan", *sys.argv[1:]])
