"""``reelscribe retry``: annotate the failed units of a run again, in the same run and table."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.text import Text

from jobs.cluster.small import early_engine
from jobs.plan.open_job import JobContext, open_job
from jobs.plan.plan_file import draft_again, draft_plan, read_rows, write_plan
from jobs.plan.runs import Run, all_runs, find_run
from jobs.plan.slices import check_planned
from jobs.run.driver import annotate_and_finish, drive
from pipeline.output.seal import settle
from pipeline.output.table import ids_in, read_committed
from pipeline.plan.recipe import recipe
from pipeline.plan.to_do import with_attempts
from pipeline.workers.engine_process import EngineProcess
from schemas.errors import TRANSIENT, ErrorType, JobFileError
from schemas.job.job import Job


def run(
    job: Job,
    console: Console,
    *,
    run_id: str | None = None,
    error_types: Sequence[str] = (),
) -> Run:
    """Plan the media of failed units again, annotate those units again, and print a summary.

    run_id: a run of this job; default: the latest run with the job's recipe, whatever its manifest.
    error_types: which failed units to do again; default: those with a transient error.

    Units without a row, as an interrupted run has, are done too.

    Raises:
        UserError: the job is wrong, there is no such run, or the storage or cluster does not work.
    """
    kinds = _kinds(error_types)
    with early_engine(job) as engine:
        return _run(job, engine, console, run_id, kinds)


def _run(
    job: Job,
    engine: EngineProcess | None,
    console: Console,
    run_id: str | None,
    kinds: frozenset[ErrorType],
) -> Run:
    context, items = open_job(job)
    found = find_run(
        context.job, recipe(context.job, context.checkpoint.identity), context.storage, run_id
    )
    context = dataclasses.replace(context, run=found, changes=[])
    check_planned(context)
    with drive(context, len(items), engine, console) as driver:
        plan = write_plan(draft_plan(context, items, console), context)
        rows = settle(lambda: read_rows(context, plan), job.output, context.storage, plan)
        rows = rows.filter(pc.is_in(rows["unit_id"], plan["unit_id"]))
        errors = pc.struct_field(rows["error"], "type")
        is_failed = pc.is_in(errors, pa.array(sorted(kinds), pa.string()))
        failed_rows = rows.filter(is_failed).select(["unit_id", "media_id", "error", "file"])
        failed = failed_rows.to_pylist()
        if not failed and rows.num_rows == plan.num_rows:
            earlier = _earlier_run(context, kinds)
            console.print(Text(_nothing_to_do(found, errors, kinds) + earlier), soft_wrap=True)
            return found
        listed = ", ".join(sorted({row["error"]["type"] for row in failed}))
        console.print(Text(f"{found.run_id}: {len(failed):,} failed units again: {listed}"))
        draft = draft_again(plan, {row["media_id"] for row in failed}, context, items, console)
        # Before the plan changes: after a kill, the run must not count as complete.
        dataclasses.replace(found, status="running").save(context.job, context.storage)
        plan = write_plan(draft, context)
        done = rows["unit_id"].filter(pc.invert(pc.fill_null(is_failed, False)))
        units = plan.filter(pc.invert(pc.is_in(plan["unit_id"], done)))
        units = with_attempts(units, failed_rows)
        del items, draft, rows  # large, and not needed while units are annotated
        return annotate_and_finish(driver, plan, units, failed_rows)


def _kinds(names: Sequence[str]) -> frozenset[ErrorType]:
    known = {kind.value for kind in ErrorType}
    if unknown := sorted(set(names) - known):
        raise JobFileError(
            f"there is no error type {', '.join(unknown)}; there are {', '.join(sorted(known))}"
        )
    return frozenset(kind for kind in ErrorType if kind.value in names) or TRANSIENT


def _nothing_to_do(run: Run, errors: "pa.ChunkedArray[Any]", kinds: frozenset[ErrorType]) -> str:
    others = Counter(errors.drop_null().to_pylist())
    listed = ", ".join(f"{count:,} {kind}" for kind, count in sorted(others.items()))
    hint = f"; there are {listed}: choose them with --error-type" if others else ""
    return f"{run.run_id} has no rows that failed by {', '.join(sorted(kinds))}{hint}"


def _earlier_run(context: JobContext, kinds: frozenset[ErrorType]) -> str:
    """Name the newest earlier run of this job and recipe with units that failed by ``kinds``."""
    job, run, storage = context.job, context.run, context.storage
    rows = read_committed(job.output, run.recipe_ids, storage)
    errors = pc.struct_field(rows["error"], "type")
    done = rows["unit_id"].filter(pc.is_null(errors))
    is_failed = pc.is_in(errors, pa.array(sorted(kinds), pa.string()))
    failed = rows.filter(pc.and_not(is_failed, pc.is_in(rows["unit_id"], done)))
    counts = Counter(ids_in(failed, "run_id"))
    earlier = [
        other
        for other in all_runs(job.output, storage)
        if other.name == run.name and other.run_id != run.run_id and counts[other.run_id]
    ]
    if not earlier:
        return ""
    newest = max(earlier, key=lambda other: other.created_at).run_id
    return f"; the earlier run {newest} has {counts[newest]:,}: retry it with --run {newest}"
