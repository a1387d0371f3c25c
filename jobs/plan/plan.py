"""``reelscribe plan``: manifest to units, with exact token counts, before a GPU is used."""

import pyarrow as pa
from rich.console import Console

from jobs.cluster.gpus import gpu_by_name
from jobs.cost.alternatives import print_alternatives
from jobs.cost.estimate import check_cost, estimate, print_estimate
from jobs.plan.gpu_memory import print_memory
from jobs.plan.listing import record_listing
from jobs.plan.open_job import JobContext, open_job
from jobs.plan.plan_file import draft_plan, write_plan
from jobs.plan.print_plan import print_left_out, print_plan
from jobs.plan.slices import cut_large, plan_slices
from pipeline.engines.vllm.prefix import planned_prefix
from schemas.job.job import Job
from schemas.tables.unit import UNIT


def run(job: Job, console: Console, *, dry_run: bool = False, gpu: str | None = None) -> pa.Table:
    """Plan a job; print its units, tokens, predicted cost, and what fits into a GPU.

    dry_run: write nothing. gpu: a name or gigabytes; None: this machine's, if it has one.

    Returns the plan: UNIT rows.

    Raises:
        UserError: the job is wrong, the storage or cluster does not work, or the predicted cost is
            over the job's limit; or the plan does not fit into the GPU that is named.
    """
    if gpu is not None:
        gpu_by_name(gpu)  # a mistake should not cost the time of a plan
    context, items = open_job(job, only_plan=True)
    print_left_out(context, console)
    record_listing(context.listing, context, console, dry_run=dry_run)
    if nothing_new(context, len(items), console):
        return UNIT.empty_table()
    if context.run.status != "complete" and not dry_run:
        # First, because it fails if the output cannot be written.
        context.run.save(context.job, context.storage)
    if slices := cut_large(context, items, dry_run=dry_run):
        plan = plan_slices(context, slices, console)
    else:
        draft = draft_plan(context, items, console)
        plan = write_plan(draft, context, dry_run=dry_run)
        record_listing(draft.listing, context, console, dry_run=dry_run)
        del draft
    del items, slices
    print_plan(plan, context, console, dry_run=dry_run)
    kept = planned_prefix(context.job.model)
    predicted = estimate(plan, context.job, context.run.cost, kept)
    print_estimate(predicted, context.job, console)
    max_model_len = context.checkpoint.max_model_len
    print_alternatives(plan, context.job, predicted, max_model_len, console)
    print_memory(plan, context.job, context.checkpoint.memory, gpu, console)
    check_cost(predicted, context.job)
    if dry_run:
        console.print("a dry run: nothing was written")
    return plan


def nothing_new(context: JobContext, num_items: int, console: Console) -> bool:
    """Print how many media ``only_new`` left out; True if there is nothing new for a new run."""
    if not context.job.input.only_new:
        return False
    console.print(
        f"{context.num_known:,} media are in the table already, {num_items:,} are taken as new"
    )
    return not num_items and context.run.starts == 0
