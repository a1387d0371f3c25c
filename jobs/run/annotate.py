"""``reelscribe annotate``: run a job to its end, or continue it where it was interrupted."""

import dataclasses
from contextlib import nullcontext

import pyarrow.compute as pc
from rich.console import Console
from rich.text import Text

from jobs.cluster.small import early_engine
from jobs.plan.listing import existing_media, record_done_media, record_listing
from jobs.plan.open_job import open_job
from jobs.plan.plan import nothing_new
from jobs.plan.plan_file import draft_again, draft_plan, read_plan, read_rows, write_plan
from jobs.plan.print_plan import print_left_out, print_plan
from jobs.plan.runs import Run
from jobs.plan.slices import cut_large
from jobs.run.driver import annotate_and_finish, drive
from jobs.run.finish import print_run, write_items_table
from jobs.run.slices import annotate_slices
from pipeline.output.seal import settle
from pipeline.plan.plan_file import media_without_storage
from pipeline.plan.to_do import units_to_do
from pipeline.workers.engine_process import EngineProcess
from schemas.job.job import Job


def run(job: Job, console: Console, engine: EngineProcess | None = None) -> Run:
    """Plan if needed, annotate every unit that has no row yet, and print a summary.

    engine: of ``early_engine``, if the caller has started it.

    Raises:
        UserError: the job is wrong, or the storage or cluster does not work.
    """
    with nullcontext(engine) if engine else early_engine(job) as started:
        return _run(job, started, console)


def _run(job: Job, engine: EngineProcess | None, console: Console) -> Run:
    context, items = open_job(job)
    print_left_out(context, console)
    record_listing(context.listing, context, console)
    if nothing_new(context, len(items), console):
        return dataclasses.replace(context.run, status="complete")
    for change in context.changes:
        console.print(Text(f"new run: {change}"))
    if context.run.status == "complete":
        if job.input.scan is not None:  # the media may have had other content since
            with existing_media(context) as existing:
                record_listing(existing.new_items(items)[1], context, console)
        print_run(context.run, context, console)
        try:
            plan = read_plan(context, items)
        except FileNotFoundError:
            return context.run  # compacted: the media of a complete run are not probed again
        write_items_table(context, plan, console)
        return context.run
    with drive(context, len(items), engine, console) as driver:
        context.run.save(context.job, context.storage)
        if slices := cut_large(context, items):
            del items
            return annotate_slices(driver, slices)
        draft = draft_plan(context, items, console)
        if draft.is_written and (media_ids := media_without_storage(draft.units)):
            draft = draft_again(draft.units, media_ids, context, items, console)
        del items  # a million take 0.5 GB, and sorting holds the plan twice
        plan = write_plan(draft, context)
        record_listing(draft.listing, context, console)
        del draft
        print_plan(plan, context, console)
        rows = settle(lambda: read_rows(context, plan), job.output, context.storage, plan)
        units = units_to_do(plan, rows, context.run.run_id)
        record_done_media(plan, rows, units, context, console)
        earlier = rows.select(["unit_id", "file"])
        earlier = earlier.filter(pc.is_in(earlier["unit_id"], units["unit_id"]))
        del rows
        if units.num_rows < plan.num_rows:
            num_done = plan.num_rows - units.num_rows
            console.print(f"{num_done:,} units are done already, {units.num_rows:,} to do")
        return annotate_and_finish(driver, plan, units, earlier)
