"""``reelscribe annotate``: run a job to its end, or go on where it was interrupted."""

import dataclasses
import sys
import time
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.text import Text

from jobs.blocks import at_most, in_blocks
from jobs.cluster import actor_errors, check_fits, connected, pools
from jobs.cost import Rates, Work
from jobs.estimate import check_cost, estimate, money
from jobs.items import write_items
from jobs.lease import Lease, leased
from jobs.plan import (
    Opened,
    make_plan,
    nothing_new,
    open_job,
    plan_again,
    print_plan,
    read_plan,
)
from jobs.progress import Progress, print_summary
from jobs.run_log import RunLog
from jobs.runs import Run
from jobs.watch import Watch
from pipeline.build import Pools, build_annotate
from pipeline.stages import Generate
from pipeline.storage import Storage, join
from pipeline.torchcodec_frames import torchcodec_problem
from pipeline.views import write_views
from pipeline.write import committed, drop_rows, settle
from schemas.errors import PASSING, ErrorType, ResourceError
from schemas.job import Job
from schemas.unit import UnitStatus

_FILES_PER_RUN = 16
"""A small run commits at least about so many files, so that its progress can be seen."""


def run(job: Job, console: Console) -> Run:
    """Plan if needed, annotate every unit that has no row yet, and print a summary.

    Raises:
        UserError: with one clear message, before work starts.
    """
    opened = open_job(job)
    job = opened.job
    if nothing_new(opened, console):
        return dataclasses.replace(opened.run, status="complete")
    for change in opened.changes:
        console.print(Text(f"new run: {change}"))
    if opened.run.status == "complete":
        _print_run(opened.run, opened, console)
        try:
            plan = read_plan(opened)
        except FileNotFoundError:
            return opened.run  # compacted: no media are read again for what is done
        _write_items(opened, plan, console)
        return opened.run
    started = time.monotonic()
    check_decoder(job)
    current = opened.run
    with leased(current.folder(job.output), opened.storage, console) as lease, connected(console):
        current.save(job, opened.storage)  # an output that cannot be written is noticed
        check_fits(job)
        plan = make_plan(opened, console)
        if opened.run.starts and (away := _without_storage(plan)):
            plan = plan_again(opened, plan, away, console)
        opened = dataclasses.replace(opened, items=[])  # a driver may hold a million
        print_plan(plan, opened, console)
        todo = _left(opened, current, plan)
        if todo.num_rows < plan.num_rows:
            ready = plan.num_rows - todo.num_rows
            console.print(f"{ready:,} units are done already, {todo.num_rows:,} to do")
        predicted = estimate(todo, job, opened.run.cost)
        if predicted.is_measured or job.cost.per_hour or job.limits.max_cost:
            console.print(Text(f"predicted: {money(predicted, job)}"), soft_wrap=True)
        check_cost(predicted, job)
        current = dataclasses.replace(opened.run, starts=opened.run.starts + 1)
        current.save(job, opened.storage)
        if todo.num_rows:  # and only now: GPUs cost money while a plan is made
            with pools(job) as fitted:
                current = annotate_units(opened, current, plan, todo, fitted, lease, console)
        return finish(opened, current, plan, time.monotonic() - started, console)


def annotate_units(
    opened: Opened,
    run: Run,
    plan: pa.Table,
    todo: pa.Table,
    fitted: Pools,
    lease: Lease,
    console: Console,
) -> Run:
    """Commit one row for each unit of ``todo``, a part of the plan. Needs a Ray session.

    Returns the run, with what it learnt of its costs.
    """
    if not todo.num_rows:
        return run
    job, started = opened.job, time.monotonic()
    units_per_file = min(job.resources.units_per_file, -(-plan.num_rows // _FILES_PER_RUN))
    work = Work(todo, run.cost)
    most_tokens, at_once = job.resources.max_batch_tokens, Generate.calls_at_once(job)
    blocks = in_blocks(todo, work.costs, fitted, most_tokens, at_once)
    fitted = at_most(fitted, len(blocks))
    dataset = build_annotate(blocks, job, run.key, opened.storage, fitted, units_per_file)
    with RunLog(run.folder(job.output), run.run_id, run.starts, opened.storage) as log:
        log.write("annotating", units=todo.num_rows, **dataclasses.asdict(fitted))
        watch = Watch(job.name, fitted, log, todo.num_rows)
        run = dataclasses.replace(run, cost=_follow(dataset, work, watch, lease, console))
        log.write("annotated", seconds=round(time.monotonic() - started, 3))
    return run


def _committed(opened: Opened, run: Run, plan: pa.Table) -> pa.Table:
    """What the table has of the plan's media under this recipe, one row for each unit."""
    media_ids = plan["media_id"].combine_chunks().unique()
    recipe_id = run.key.recipe_id
    found = committed(opened.job.output, recipe_id, opened.storage, media_ids=media_ids)
    return settle(found, opened.storage, plan)


def _left(opened: Opened, run: Run, plan: pa.Table) -> pa.Table:
    """The units of the plan that have no row yet, or one that is tried again."""
    rows = _committed(opened, run, plan)
    done = rows["unit_id"].filter(pc.invert(_tried_again(rows, run)))
    return plan.filter(pc.invert(pc.is_in(plan["unit_id"], done))) if len(done) else plan


def _without_storage(plan: pa.Table) -> set[str]:
    """Media whose storage failed when they were planned, which may be what ended the run."""
    kinds = pc.struct_field(plan["error"], "type")
    return set(plan["media_id"].filter(pc.equal(kinds, ErrorType.STORAGE_FAILED)).to_pylist())


def _write_items(opened: Opened, plan: pa.Table, console: Console) -> None:
    if written := write_items(opened, plan, console):
        table = join(opened.job.output, "items")
        console.print(Text(f"{written:,} videos as a whole: {table}"), soft_wrap=True)


def _tried_again(rows: pa.Table, run: Run) -> pa.ChunkedArray:
    """Whether a row failed by something that may have passed since an earlier run.

    In a run that was interrupted, that is the storage: its outage may be what interrupted it.
    """
    kinds = pc.struct_field(rows["error"], "type")
    passing = pc.is_in(kinds, pa.array(sorted(PASSING), pa.string()))
    is_storage = pc.is_in(kinds, pa.array([ErrorType.STORAGE_FAILED], pa.string()))
    return pc.or_(is_storage, pc.and_(passing, pc.not_equal(rows["run_id"], run.run_id)))


def _follow(dataset: Any, work: Work, watch: Watch, lease: Lease, console: Console) -> Rates | None:
    """Run the chain, showing progress by what was committed; returns what work costs."""
    with (
        Progress(
            console, "annotating", total_units=work.num_units, total_cost=work.total_cost
        ) as bar,
        actor_errors(),
    ):
        bar.status("starting decoders and engines")
        for rows in dataset.iter_batches(
            batch_size=None, batch_format="pyarrow", prefetch_batches=0
        ):
            lease.check()
            watch.committed(rows, bar.seconds_left())
            bar.advance(
                units=rows.num_rows,
                cost=work.done(rows),
                failed=pc.sum(pc.equal(rows["status"], UnitStatus.FAILED)).as_py(),
                tokens=pc.sum(rows["num_output_tokens"]).as_py(),
            )
            if work.learnt():
                bar.recost(done=work.done_cost, total=work.total_cost)
    return work.rates


def _remove_pending(run: Run, output: str, storage: Storage) -> None:
    """Remove what writers left half-written that were killed; nobody else writes this run."""
    for folder, pattern in (
        (join(output, "annotations"), f"*/.part-{run.run_id}-*.pending-*"),
        (run.folder(output), "**/.*.pending-*"),
    ):
        for file in storage.list_files(folder, pattern):
            storage.remove(file["uri"])


def finish(opened: Opened, run: Run, plan: pa.Table, seconds: float, console: Console) -> Run:
    """Check that every unit has exactly one row, close the run, and print what came out."""
    storage = opened.storage
    rows = _committed(opened, run, plan)
    is_planned = pc.is_in(rows["unit_id"], plan["unit_id"])
    is_mine = pc.equal(rows["run_id"], run.run_id)
    _drop_changed(rows.filter(pc.and_not(is_mine, is_planned)), plan, opened)
    rows = rows.filter(is_planned)
    if missing := plan.num_rows - rows.num_rows:
        raise ResourceError(
            f"{run.run_id}: {missing} units have no row yet; run the same command again"
        )
    counts = _counts(rows, run)
    finished = dataclasses.replace(run, status="complete", seconds=round(seconds, 3), counts=counts)
    finished.save(opened.job, opened.storage)
    write_views(opened.job.output, storage)
    _remove_pending(run, opened.job.output, storage)
    _print_run(finished, opened, console)
    _write_items(opened, plan, console)
    return finished


def _drop_changed(rows: pa.Table, plan: pa.Table, opened: Opened) -> None:
    """Take out rows of what an object was before a retry found it changed.

    rows: of the run, that the plan does not have.
    """
    if not rows.num_rows:
        return
    media_ids = rows["media_id"].combine_chunks().unique()
    planned = plan.filter(pc.is_in(plan["media_id"], media_ids)).select(["media_id", *_CONTENT])
    content = {(row["media_id"], *_versions(row)) for row in planned.to_pylist()}
    output, recipe_id = opened.job.output, opened.run.key.recipe_id
    columns = ("unit_id", "media_id", *_CONTENT.values())
    # Read anew: settling may just have written rows into other files.
    found = committed(output, recipe_id, opened.storage, columns, media_ids)
    found = found.filter(pc.is_in(found["unit_id"], rows["unit_id"]))
    is_changed = [
        bool(versions := _versions(row)) and (row["media_id"], *versions) not in content
        for row in found.to_pylist()
    ]
    drop_rows(found.filter(pa.array(is_changed, pa.bool_())), opened.storage)


_CONTENT = {
    "media": "media.content_version",
    "parts": "parts.list.element.media.content_version",
}


def _versions(row: dict[str, Any]) -> list[str | None]:
    seen = [row["media"]] if row["media"] else [part["media"] for part in row["parts"] or ()]
    return [media["content_version"] for media in seen]


def _counts(rows: pa.Table, run: Run) -> dict[str, Any]:
    """What the rows of a run's units come to; each unit has one."""
    responses = pc.list_flatten(rows["responses"])
    parts = pc.list_flatten(rows["parts"])
    sampled = [rows["sampling"], pc.struct_field(parts, "sampling")]
    decoders = [_tally(pc.struct_field(sampling, "decoder")) for sampling in sampled]

    def total(values: pa.ChunkedArray) -> Any:
        return pc.sum(values).as_py() or 0

    return {
        "units": rows.num_rows,
        "units_of_earlier_runs": total(pc.not_equal(rows["run_id"], run.run_id)),
        "status": _tally(rows["status"]),
        "errors": _tally(pc.struct_field(rows["error"], "type")),
        "answers": _tally(pc.struct_field(responses, "status")),
        "decoders": {k: sum(of.get(k, 0) for of in decoders) for k in {*decoders[0], *decoders[1]}},
        "prompt_tokens": total(pc.struct_field(responses, "num_prompt_tokens")),
        "output_tokens": total(pc.struct_field(responses, "num_output_tokens")),
        "decode_seconds": round(total(pc.struct_field(rows["timings"], "decode_seconds")), 3),
        "engine_seconds": round(total(pc.struct_field(rows["timings"], "engine_seconds")), 3),
    }


def _tally(values: pa.ChunkedArray) -> dict[str, int]:
    """How often each value comes; nulls are left out."""
    counts = pc.value_counts(values.drop_null())
    return {found["values"]: found["counts"] for found in counts.to_pylist()}


def _print_run(run: Run, opened: Opened, console: Console) -> None:
    counts = run.counts
    lines = [
        ("units", f"{counts['units']:,}: {_listed(counts['status'])}" + _earlier(counts)),
        ("answers", _listed(counts["answers"])),
        ("errors", _listed(counts["errors"])),
        ("decoded by", _listed(counts["decoders"])),
        (
            "tokens",
            f"{counts['prompt_tokens']:,} in, {counts['output_tokens']:,} out",
        ),
        ("seconds", f"{run.seconds:,.1f}" + _starts(run)),
        ("table", join(opened.job.output, "annotations")),
    ]
    print_summary(console, f"run {run.run_id} is complete", lines)
    if passing := sum(counts["errors"].get(kind, 0) for kind in PASSING):
        console.print(
            f"{passing:,} units failed by what may pass: `reelscribe retry`, with the same job, "
            "tries them again"
        )


def _earlier(counts: dict[str, Any]) -> str:
    earlier = counts["units_of_earlier_runs"]
    return f" ({earlier:,} by earlier runs)" if earlier else ""


def _starts(run: Run) -> str:
    return f", the last of {run.starts} starts" if run.starts > 1 else ""


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{n:,} {name}" for name, n in sorted(counts.items())) or "none"


def check_decoder(job: Job) -> None:
    """A job that insists on torchcodec must not find out item by item that it does not load.

    Raises:
        ResourceError: torchcodec does not load on this machine.
    """
    if job.sampling.decoder == "torchcodec" and (problem := torchcodec_problem()):
        raise ResourceError(
            f"sampling.decoder is torchcodec, which does not load here: {problem}; install "
            "FFmpeg's libraries (apt-get install ffmpeg), or set it to auto or pyav"
        )


if __name__ == "__main__":
    from jobs.cli import main

    main(prog_name="reelscribe", args=["annotate", *sys.argv[1:]])
