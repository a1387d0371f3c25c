"""``reelscribe retry``: do a run's failed units again, in the same run and the same table."""

import dataclasses
import sys
import time
from collections import Counter
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.text import Text

from jobs.annotate import annotate_units, check_decoder, finish
from jobs.cluster import check_fits, connected, pools
from jobs.estimate import check_cost, estimate
from jobs.lease import leased
from jobs.plan import make_plan, open_job, plan_again
from jobs.runs import Run, find_run
from pipeline.recipe import recipe
from pipeline.write import committed, settle
from schemas.errors import PASSING, ErrorType, JobFileError
from schemas.job import Job
from schemas.unit import UNIT, Unit, UnitStatus, from_table, to_table


def run(
    job: Job,
    console: Console,
    *,
    run_id: str | None = None,
    error_types: Sequence[str] = (),
) -> Run:
    """Plan the media of failed units anew, do those units again, and print a summary.

    run_id: of this job; else the latest run with the job's recipe, whatever its manifest was.
    error_types: which failed rows; else those that failed by what may have passed.

    Units without a row, as an interrupted run has, are done too.

    Raises:
        UserError: with one clear message.
    """
    kinds = _kinds(error_types)
    started = time.monotonic()
    opened = open_job(job)
    job, storage = opened.job, opened.storage
    found = find_run(job, recipe(job, opened.checkpoint.identity), storage, run_id)
    opened = dataclasses.replace(opened, run=found, changes=[])
    check_decoder(job)
    with leased(found.folder(job.output), storage, console) as lease, connected(console):
        check_fits(job)
        plan = make_plan(opened, console)
        rows = committed(job.output, found.key.recipe_id, storage)
        rows = settle(rows, storage, plan)
        rows = rows.filter(pc.is_in(rows["unit_id"], plan["unit_id"]))
        errors = pc.struct_field(rows["error"], "type")
        wanted = rows.filter(pc.is_in(errors, pa.array(sorted(kinds), pa.string())))
        failed = wanted.select(["unit_id", "media_id", "error"]).to_pylist()
        if not failed and rows.num_rows == plan.num_rows:
            console.print(Text(_nothing_to_do(found, errors, kinds)), soft_wrap=True)
            return found
        kinds_found = ", ".join(sorted({row["error"]["type"] for row in failed}))
        console.print(Text(f"{found.run_id}: {len(failed):,} failed units again: {kinds_found}"))
        current = dataclasses.replace(found, status="running", starts=found.starts + 1)
        current.save(job, storage)
        plan = plan_again(opened, plan, {row["media_id"] for row in failed}, console)
        done = set(rows["unit_id"].to_pylist()) - {row["unit_id"] for row in failed}
        todo = _todo(plan, done, {row["unit_id"]: row["error"]["attempts"] for row in failed})
        check_cost(estimate(todo, job, found.cost), job)
        with pools(job) as fitted:
            current = annotate_units(opened, current, plan, todo, fitted, lease, console)
        return finish(opened, current, plan, time.monotonic() - started, console)


def _kinds(names: Sequence[str]) -> frozenset[ErrorType]:
    known = {kind.value for kind in ErrorType}
    if unknown := sorted(set(names) - known):
        raise JobFileError(
            f"there is no error type {', '.join(unknown)}; there are {', '.join(sorted(known))}"
        )
    return frozenset(kind for kind in ErrorType if kind.value in names) or PASSING


def _nothing_to_do(run: Run, errors: pa.ChunkedArray, kinds: frozenset[ErrorType]) -> str:
    others = Counter(errors.drop_null().to_pylist())
    listed = ", ".join(f"{count:,} {kind}" for kind, count in sorted(others.items()))
    left = f"; there are {listed}: choose by --error-type" if others else ""
    return f"{run.run_id} has no rows that failed by {', '.join(sorted(kinds))}{left}"


def _todo(plan: pa.Table, done: set[str], attempts: dict[str, int]) -> pa.Table:
    """Units that are not done, in the plan's order, with how often each was tried before."""
    units: list[Unit] = [unit for unit in from_table(plan) if unit.unit_id not in done]
    return to_table([_again(unit, attempts.get(unit.unit_id, 0)) for unit in units], UNIT)


def _again(unit: Unit, attempts: int) -> Unit:
    if unit.status == UnitStatus.FAILED and unit.error is not None:
        return dataclasses.replace(unit, attempts=attempts).failed(unit.error)
    return dataclasses.replace(unit, attempts=attempts)


if __name__ == "__main__":
    from jobs.cli import main

    main(prog_name="reelscribe", args=["retry", *sys.argv[1:]])
