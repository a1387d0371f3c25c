"""Which engine a job has whose ``model.engine`` is auto: that of its rows, else by the machines.

Rows of another engine have another recipe, so a job that is continued on another machine would
answer all its units again.
"""

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

from jobs.cluster.engine_choice import (
    Choice,
    Engine,
    choose,
    replace_engine,
    runs_here,
    with_engine,
)
from jobs.plan.runs import Run
from pipeline.engines.vllm.limits import check_sampling
from pipeline.model.checkpoint import Checkpoint, check_engine
from pipeline.output.file_names import FILE_NAME, table_files
from pipeline.plan.recipe import recipe, recipe_id, recipe_ids
from pipeline.storage.storage import Storage, join
from schemas.errors import JobFileError, ModelError
from schemas.job.job import Job
from schemas.tables.annotation import ANNOTATIONS

logger = logging.getLogger(__name__)


def job_with_engine(
    job: Job, checkpoint: Checkpoint, runs: Sequence[Run], storage: Storage, *, only_plan: bool
) -> tuple[Job, str]:
    """The job with its engine, and a line that says which, and why.

    runs: of the job's output. only_plan: nothing is annotated, so that weights which the engine of
        this machine cannot run are only a warning: another machine may have another engine.

    Raises:
        ModelError: the engine cannot run the checkpoint's kind of weights.
        JobFileError: the engine cannot run with the job's resources or sampling settings.
        ResourceError: the cluster does not answer.
        StorageError: the output cannot be read.
    """
    of_this_machine = False
    if job.model.engine != "auto":
        chosen, line = job, f"{job.model.engine}: set by model.engine"
    else:
        choice = _of_rows(job, checkpoint.identity, runs, storage)
        if choice is None:
            choice, of_this_machine = choose(job), runs_here()
        chosen, line = with_engine(job, choice)
    try:
        check_engine(checkpoint, chosen.model)
        check_sampling(chosen)
    except (ModelError, JobFileError) as error:
        problem = f"{error}; the engine is {line}"
        if not (only_plan and of_this_machine):
            raise type(error)(problem) from None
        logger.warning("%s", problem)
    return chosen, line


def _of_rows(job: Job, model_identity: str, runs: Sequence[Run], storage: Storage) -> Choice | None:
    """The engine of the newest rows that the job would use, but for its engine.

    Rows are used by runs of any name, and by kind: what no kind of row shares does not count, nor
    do the rows of unread media, which have no answers.
    """
    engines: tuple[Engine, ...] = ("transformers", "vllm")
    ids_of = {
        engine: _answer_ids(replace_engine(job, engine), model_identity) for engine in engines
    }
    begun = [run for run in runs if run.starts]
    alike = [
        (run, engine, shared)
        for run in sorted(begun, key=lambda run: run.created_at, reverse=True)
        for engine, ids in ids_of.items()
        if (shared := ids.intersection(run.recipe_ids))
    ]
    if not alike:
        return None
    # The counts of a run that was killed are not written, but its files are.
    files = table_files(join(job.output, ANNOTATIONS), storage)
    written = {found[3] for file in files if (found := FILE_NAME.fullmatch(file["uri"]))}
    for run, engine, shared in alike:
        if shared & written:
            reason = f"as in the run {run.run_id}; another one would answer its units again"
            return Choice(engine, reason)
    return None


def _answer_ids(job: Job, model_identity: str) -> set[str]:
    """The recipe ids of the job's rows with answers."""
    found = recipe_ids(recipe(job, model_identity))
    return {found.image, found.video, found.messages}


def planned_again(runs: Sequence[Run], job_recipe: dict[str, Any]) -> list[Run]:
    """Runs, with the job's recipe where a run was only planned, and for another engine.

    A plan does not depend on the engine: what was planned on a machine without a GPU is annotated
    on one that has it.
    """
    same = _without_engine(job_recipe)
    return [
        dataclasses.replace(
            run,
            recipe=job_recipe,
            fingerprint=run.fingerprint | {"recipe": recipe_id(job_recipe)},
        )
        if not run.starts and _without_engine(run.recipe) == same
        else run
        for run in runs
    ]


def _without_engine(settings: dict[str, Any]) -> dict[str, Any]:
    model = settings.get("model")
    if not isinstance(model, dict):  # a file that someone else wrote
        return settings
    engine = model.get("engine")
    return settings | {"model": {k: v for k, v in model.items() if k not in ("engine", engine)}}
