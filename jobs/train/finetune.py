"""``reelscribe finetune``: train a checkpoint on corrected annotations, with Ray Train.

The output folder:

    model/                   the trained checkpoint, which every engine loads
    checkpoints/             what an interrupted run resumes from
    metrics.jsonl            a line for each log; tensorboard/ has the same
    failed_samples-*.jsonl   samples that could not be read, with the reason, by worker
    job.json                 the job's settings
"""

import random
from collections.abc import Sequence

from rich.console import Console

from jobs.cluster.session import actor_errors, ray_session
from jobs.train.job_checks import (
    check_arguments,
    check_model,
    check_same_job,
    data_digest,
    with_absolute_paths,
    workers_before,
)
from jobs.train.launch import train_on_ray
from jobs.train.placement import placed
from jobs.train.survey import check_learnt, predict_row_memory, print_survey, survey_samples
from pipeline.model.prompter import Prompter
from pipeline.storage.storage import Storage, join
from pipeline.training.data.read import read_data
from pipeline.training.groups import Group, group_by_media, one_answer_each
from pipeline.training.sample import TrainingData
from schemas.conversation import Conversation, DataProblem
from schemas.errors import ManifestError
from schemas.job.finetune import DataSpec, FinetuneJob


def mix(
    specs: Sequence[DataSpec],
    storage: Storage,
    *,
    share_media: bool,
    seed: int,
    prompter: Prompter | None = None,
) -> list[Group]:
    """Read data sets, and take each by its share: 50 is a random half, 250 is all of it 2.5 times.

    prompter: divides conversations whose earlier turns its template rewrites; None: there are none.

    Raises:
        ManifestError: a data set is missing or empty, or has wrong rows; names the first.
    """
    mixed: list[Group] = []
    for number, spec in enumerate(specs):
        examples = read_data(spec, storage)
        problems = [e for e in examples if isinstance(e, DataProblem)]
        if problems:
            first = problems[0]
            raise ManifestError(
                f"{len(problems):,} of {len(examples):,} examples are wrong, first "
                f"{first.origin}: {first.type}: {first.message}; `reelscribe check-dataset` shows "
                "all of them"
            )
        conversations = [e for e in examples if isinstance(e, Conversation)]
        if prompter is not None:
            conversations = one_answer_each(conversations, prompter)
        groups = group_by_media(conversations, share_media=share_media)
        whole, part = divmod(spec.share, 100)
        rng = random.Random(f"{seed}/{number}")
        chosen = groups * int(whole) + rng.sample(groups, round(len(groups) * part / 100))
        if not chosen:
            raise ManifestError(
                f"{spec.conversations or spec.annotations}: a share of {spec.share:g}% of "
                f"{len(groups):,} samples is less than one sample: raise it"
            )
        mixed += chosen
    return mixed


def run(job: FinetuneJob, console: Console, *, dry_run: bool = False) -> None:
    """Train, or resume an interrupted training, and export the trained checkpoint.

    dry_run: only print what would be trained, and what it takes.

    Raises:
        UserError: with one clear message.
    """
    job = with_absolute_paths(job)
    storage = Storage(job.storage_options)
    check_model(job)
    check_arguments(job)
    share_media, seed = job.training.share_media, job.training.seed
    prompter = Prompter(job.model.source, job.model.revision)
    train, validation = (
        mix(specs, storage, share_media=share_media, seed=seed, prompter=prompter)
        for specs in (job.data, job.validation)
    )
    data = TrainingData(train=train, validation=validation, storage=storage)
    with ray_session(console), actor_errors():
        job = placed(job, workers_before(job, storage))
        if not dry_run:
            check_same_job(job, data_digest(train), storage)
        survey = survey_samples(data, job, console)
        memory = None
        if survey.good and (dry_run or job.resources.use_gpu):
            memory = predict_row_memory(survey)
        print_survey(survey, memory, console, dry_run=dry_run)
        check_learnt(survey)
        if dry_run:
            return
        needed = None if isinstance(memory, str) else memory
        train_on_ray(job, data, needed, console)
    num_failed = sum(
        len(storage.read_bytes(file["uri"]).splitlines())
        for file in storage.list_files(job.output, "failed_samples-*.jsonl")
    )
    if num_failed:
        console.print(f"{num_failed:,} times a sample could not be read: failed_samples-*.jsonl")
    console.print(f"The trained model: {join(job.output, 'model')}", soft_wrap=True)
