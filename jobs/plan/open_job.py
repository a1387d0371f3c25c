"""Check a job, list its media, and find the run to continue."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from jobs.console.output_path import absolute_uri
from jobs.console.waiting import waiting_for
from jobs.plan.embedding import with_embedding
from jobs.plan.job_engine import job_with_engine, planned_again
from jobs.plan.runs import Run, all_runs, open_run
from pipeline.engines.answer_schema import check_grammars
from pipeline.manifest.existing import ExistingMedia
from pipeline.manifest.select import select
from pipeline.media.shots import check_shots
from pipeline.model.checkpoint import Checkpoint, inspect_checkpoint, with_generation_defaults
from pipeline.model.prompter import Prompter
from pipeline.model.reasoning import with_reasoning
from pipeline.output.rows import schema_of_questions
from pipeline.output.table import check_columns
from pipeline.plan.recipe import recipe, recipe_ids
from pipeline.storage.storage import Storage
from schemas.errors import ManifestError
from schemas.job.job import Job
from schemas.tables.listing import LISTING
from schemas.tables.manifest import MediaItem


@dataclass(frozen=True, kw_only=True)
class JobContext:
    """A checked job and its run: everything that a command needs before Ray starts.

    job: with its engine chosen.
    num_known: media that ``only_new`` left out, since the table has them.
    changes: how the run's recipe and manifest differ from the latest run of the same job name.
    expects_reasoning: answers begin with reasoning.
    left_out: what the listing of a folder left out, a line for each reason.
    listing: LISTING rows that say what the listing changed without a new answer.
    """

    job: Job
    storage: Storage
    checkpoint: Checkpoint
    num_known: int
    run: Run
    changes: list[str]
    expects_reasoning: bool = False
    left_out: tuple[str, ...] = ()
    listing: pa.Table = field(default_factory=LISTING.empty_table)


def open_job(job: Job, *, only_plan: bool = False) -> tuple[JobContext, list[MediaItem]]:
    """Check the job, its checkpoint, manifest and storage, and find the run to continue.

    only_plan: this machine need not be able to run the model.

    Returns the context, and the media items that the job selects. The items are not in the context,
    so that the caller can free them once they are planned: a million take 0.5 GB.

    Raises:
        UserError: the job, its checkpoint, manifest or storage is wrong.
    """
    job = _with_absolute_paths(job)
    storage = Storage(job.storage_options, job.input.allow_private_hosts)
    is_local = Path(job.model.source).is_dir()
    hub = job.model.source if is_local else f"hf://{job.model.source}"
    with waiting_for("the checkpoint", hub):
        checkpoint = inspect_checkpoint(job.model)
        # Raises too if the tokenizer or the chat template is missing.
        prompter = Prompter.of(job)
    job = with_reasoning(job, prompter.template_reasoning)
    job = with_generation_defaults(job, checkpoint, is_thinking=prompter.expects_reasoning)
    job = with_embedding(job, checkpoint)
    check_grammars(job)
    if job.sampling.segmentation.kind == "shots":
        check_shots()
    with waiting_for("the runs in the output", job.output):
        runs = all_runs(job.output, storage)
        job, engine = job_with_engine(job, checkpoint, runs, storage, only_plan=only_plan)
    # Before its engine was chosen, a setting of vLLM did not count.
    memory = checkpoint.memory.in_engine(job.model)
    checkpoint = dataclasses.replace(checkpoint, memory=memory)
    job_recipe = recipe(job, checkpoint.identity)
    with waiting_for("the list of media", str(job.input.manifest or job.input.scan)):
        selection = select(
            job.input, storage, lambda: ExistingMedia(job.output, recipe_ids(job_recipe), storage)
        )
    _check_tasks(job, selection.items)
    with waiting_for("the runs in the output", job.output):
        check_columns(schema_of_questions(job.questions()), job.output, storage)
        runs = planned_again(runs, job_recipe)
        run, changes = open_run(job, selection.digest, job_recipe, storage, runs)
    if not (run.starts and run.engine):  # a run that has begun keeps its reason too
        run = dataclasses.replace(run, engine=engine)
    context = JobContext(
        job=job,
        storage=storage,
        checkpoint=checkpoint,
        num_known=selection.num_known,
        left_out=selection.left_out,
        run=run,
        changes=changes,
        expects_reasoning=prompter.expects_reasoning,
        listing=selection.listing,
    )
    return context, selection.items


def _with_absolute_paths(job: Job) -> Job:
    """Make local paths absolute: actors may have another working directory than the driver."""
    folders = {
        name: absolute_uri(path)
        for name in ("source", "adapter")
        if (path := getattr(job.model, name)) is not None and Path(path).expanduser().is_dir()
    }
    model = job.model.model_copy(update=folders)
    return job.model_copy(update={"model": model, "output": absolute_uri(job.output)})


def _check_tasks(job: Job, items: Sequence[MediaItem]) -> None:
    requested = {task for item in items for task in item.tasks}
    unknown = sorted(requested - {task.name for task in job.tasks})
    if unknown:
        raise ManifestError(
            f"the manifest's column `tasks` asks for {unknown}, which the job file does not have: "
            f"add them to its tasks, {[task.name for task in job.tasks]}"
        )
