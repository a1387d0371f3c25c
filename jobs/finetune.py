"""``reelscribe finetune``: Qwen3-VL learns from corrected annotations, by Ray Train.

The output folder:

    model/               the trained checkpoint, which every engine loads
    checkpoints/         what a run that was interrupted goes on from
    metrics.jsonl        a line for each log; tensorboard/ has the same
    failed_samples-*.jsonl   samples that could not be read, with the reason, by worker
    job.json             the job
"""

import hashlib
import json
import os
import random
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from jobs.cluster import actor_errors, start_ray
from jobs.finetune_worker import is_plain, train_worker
from jobs.printable import printable
from jobs.runs import without_secrets
from pipeline.checkpoint import inspect_checkpoint
from pipeline.same_code import code_digest
from pipeline.storage import Storage, join, shown
from pipeline.training.read import read_data
from pipeline.training.sample import group_by_media
from schemas.conversation import Conversation, DataProblem
from schemas.errors import JobFileError, ManifestError, ResourceError, UserError
from schemas.finetune import DataSpec, FinetuneJob

Group = tuple[Conversation, ...]
_MAX_FAILURES = 3
"""Of workers, in one run: a machine lost, memory short."""
_MAX_STARTS = 10
"""Times that Ray Train waits a minute for the workers' places; it would go on for ever."""
# A longer or shorter training is the same one, up to the place where its learning rate falls.
_WITHOUT_EFFECT = frozenset(
    {"optim", "optim_args", "optim_target_modules", "adam_beta1", "adam_beta2", "adam_epsilon"}
    | {"adafactor", "weight_decay", "label_smoothing_factor"}
)
_MAY_CHANGE = ("training.max_steps", "training.num_train_epochs", "trainer.lr_scheduler_kwargs")


def mix(
    specs: Sequence[DataSpec], storage: Storage, *, share_media: bool, seed: int
) -> list[Group]:
    """Read data sets and take each by its share: 50 is a random half, 250 all twice and a half.

    Raises:
        ManifestError: a data set is missing or empty, or rows of it are wrong; says which.
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
                "them all"
            )
        good = [e for e in examples if isinstance(e, Conversation)]
        groups = group_by_media(good, share_media=share_media)
        if not groups:
            name = shown(spec.conversations or spec.annotations or "")
            where = f", or `where` ({spec.where}) selects none" if spec.where else ""
            raise ManifestError(f"{name} has no answers to learn: no rows, all null{where}")
        whole, part = divmod(spec.share, 100)
        rng = random.Random(f"{seed}/{number}")
        chosen = groups * int(whole) + rng.sample(groups, round(len(groups) * part / 100))
        if not chosen:
            raise ManifestError(
                f"{spec.conversations or spec.annotations}: a share of {spec.share:g}% of "
                f"{len(groups):,} samples is none"
            )
        mixed += chosen
    return mixed


def run(job: FinetuneJob, console: Console) -> None:
    """Train, or go on where it was interrupted, and write the trained checkpoint.

    Raises:
        UserError: with one clear message.
    """
    job = with_absolute_paths(job)
    storage = Storage(job.storage_options)
    check_model(job)
    _check_arguments(job)
    train, validation = (
        mix(specs, storage, share_media=job.training.share_media, seed=job.training.seed)
        for specs in (job.data, job.validation)
    )
    _check_same_job(job, _digest(train), storage)
    console.print(
        f"{sum(map(len, train)):,} conversations in {len(train):,} samples to learn from, "
        f"{len(validation):,} samples to validate with",
        highlight=False,
    )
    own = _join_ray(console)
    try:
        with actor_errors():
            _train(job, train, validation, storage, console)
    finally:
        if own:
            import ray

            ray.shutdown()
    failed = sum(
        len(storage.read_bytes(file["uri"]).splitlines())
        for file in storage.list_files(job.output, "failed_samples-*.jsonl")
    )
    if failed:
        console.print(f"{failed:,} times a sample could not be read: failed_samples-*.jsonl")
    console.print(f"The trained model: {join(job.output, 'model')}", soft_wrap=True)


def with_absolute_paths(job: FinetuneJob) -> FinetuneJob:
    """The job with local paths that hold in the folders of its workers too."""

    def absolute(path: str | None) -> str | None:
        is_local = path is not None and "://" not in path
        return os.path.abspath(os.path.expanduser(path)) if path and is_local else path

    def data(spec: DataSpec) -> DataSpec:
        names = ("conversations", "annotations", "media_folder")
        return spec.model_copy(update={name: absolute(getattr(spec, name)) for name in names})

    files = {key: job.trainer.get(key) for key in ("deepspeed", "fsdp_config")}
    passed = {key: absolute(file) for key, file in files.items() if isinstance(file, str)}
    source = Path(job.model.source).expanduser()
    model = job.model.model_copy(update={"source": str(source.resolve())})
    return job.model_copy(
        update={
            "output": absolute(job.output),
            "trainer": job.trainer | passed,
            "model": model if source.is_dir() else job.model,
            "data": tuple(data(spec) for spec in job.data),
            "validation": tuple(data(spec) for spec in job.validation),
        }
    )


def check_model(job: FinetuneJob) -> None:
    """Raise ModelError unless the job's model is a checkpoint of Qwen3-VL with its tokenizer."""
    from pipeline.prompt import Prompter
    from schemas.job import Model

    attn = job.model.attn_implementation
    model = {"source": job.model.source, "revision": job.model.revision}
    if attn != "auto":
        model["attn_implementation"] = attn
    inspect_checkpoint(Model.model_validate(model))
    Prompter(job.model.source, job.model.revision)


def _check_arguments(job: FinetuneJob) -> None:
    """Let TrainingArguments check the settings that are passed on to it."""
    from transformers import TrainingArguments

    from pipeline.training.train import arguments

    known = TrainingArguments.__dataclass_fields__
    if unknown := sorted(set(job.trainer) - set(known)):
        raise JobFileError(f"trainer: TrainingArguments has no {unknown}")
    if twice := sorted(set(job.trainer) & set(type(job.training).model_fields)):
        raise JobFileError(f"trainer: {twice} are training's own settings: set them there")
    if idle := sorted(set(job.trainer) & _WITHOUT_EFFECT):
        raise JobFileError(f"trainer: {idle} have no effect here: the optimizer is training's")
    if tokens := sorted(key for key in job.trainer if key.endswith("_token")):
        raise JobFileError(f"trainer: {tokens}: no secrets in a job file; set HF_TOKEN")
    for key in ("deepspeed", "fsdp_config"):
        file = job.trainer.get(key)
        if isinstance(file, str) and not Path(file).is_file():
            raise JobFileError(f"trainer: there is no {key} file {file}")
    is_sharded = bool(job.trainer.get("deepspeed") or job.trainer.get("fsdp"))
    if is_sharded and job.lora is not None and job.lora.merge:
        raise JobFileError("lora.merge: adapters of a sharded model stay apart; set it to false")
    # What the workers' machines have is theirs to judge.
    theirs = ("deepspeed", "fsdp", "fsdp_config", "bf16", "fp16", "tf32", "use_cpu")
    passed = {key: value for key, value in job.trainer.items() if key not in theirs}
    try:
        arguments(
            job.model_copy(update={"trainer": passed}),
            Path(tempfile.gettempdir()),
            has_validation=bool(job.validation),
            use_gpu=False,
        )
    except (ValueError, TypeError, ImportError) as error:
        raise JobFileError(f"trainer or training: {error}") from None


def _check_same_job(job: FinetuneJob, digest: str, storage: Storage) -> None:
    """A folder holds one training: going on with other data or settings would be neither.

    Until its first checkpoint there is nothing to go on with, and the job may change.
    """
    uri = join(job.output, "job.json")
    spec = _fingerprint(job) | {"rows of data": digest}
    before = None
    if storage.list_files(join(job.output, "checkpoints"), "*/*"):
        with suppress(FileNotFoundError):
            before = json.loads(storage.read_bytes(uri))
    if before is None:
        storage.write_bytes(uri, json.dumps(spec, indent=2).encode())
        return
    changed = sorted(key for key in spec | before if spec.get(key) != before.get(key))
    if serious := [key for key in changed if key not in _MAY_CHANGE]:
        raise JobFileError(
            f"{job.output} holds a training with other settings ({', '.join(serious)}): give "
            "another output, or the same job to go on with it"
        )


def _digest(groups: Sequence[Group]) -> str:
    """Hash of what is learnt, in its order."""
    digest = hashlib.sha256()
    for group in groups:
        digest.update(repr(group).encode("utf-8", "backslashreplace"))
    return digest.hexdigest()[:16]


def _fingerprint(job: FinetuneJob) -> dict[str, Any]:
    """What a training depends on, by dotted name."""
    spec = without_secrets(job.public_dict())
    # The data's order depends on the number of workers, not on what each of them has.
    free = {"logging_steps", "save_steps", "eval_steps", "save_total_limit"}
    free |= {"use_gpu", "cpus_per_worker"}
    flat = {f"{a}.{b}": v for a, s in spec.items() if isinstance(s, dict) for b, v in s.items()}
    flat |= {key: value for key, value in spec.items() if not isinstance(value, dict)}
    return {key: value for key, value in flat.items() if key.rpartition(".")[2] not in free}


def _join_ray(console: Console) -> bool:
    """Start or join Ray; whether it was not there before."""
    import ray

    if ray.is_initialized():
        return False
    console.print("starting Ray", style="dim")
    start_ray()
    return True


def _train(
    job: FinetuneJob,
    train: list[Group],
    validation: list[Group],
    storage: Storage,
    console: Console,
) -> None:
    """Launch the workers, and show what they report."""
    import ray
    from ray.train import (
        CheckpointConfig,
        ControllerError,
        FailureConfig,
        RunConfig,
        ScalingConfig,
        TrainingFailedError,
    )
    from ray.train.torch import TorchTrainer
    from ray.util.queue import Queue

    have = ray.cluster_resources()
    wanted = job.resources.use_gpu
    use_gpu = have.get("GPU", 0) >= 1 if wanted == "auto" else wanted
    workers, cpus = job.resources.num_workers, job.resources.cpus_per_worker
    if workers * cpus > have.get("CPU", 0) or (use_gpu and workers > have.get("GPU", 0)):
        raise ResourceError(
            f"{workers} workers of {cpus:g} CPUs{' and a GPU' if use_gpu else ''} do not fit into "
            f"{have.get('CPU', 0):g} CPUs and {have.get('GPU', 0):g} GPUs: lower resources"
        )
    fs, path = storage.filesystem(job.output)
    inputs = ray.put((job, train, validation, storage))
    queue = Queue(actor_options={"num_cpus": 0})
    trainer = partial(
        TorchTrainer,
        train_worker,
        train_loop_config={
            "inputs": [inputs],
            "code": code_digest(),
            "queue": queue,
            "num_threads": max(1, int(cpus)),
            "use_gpu": use_gpu,
        },
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": cpus, **({"GPU": 1} if use_gpu else {})},
        ),
        run_config=RunConfig(
            name="checkpoints",
            storage_path=path,
            storage_filesystem=None if is_plain(job.output) else _arrow(fs),
            checkpoint_config=CheckpointConfig(num_to_keep=job.training.save_total_limit),
            failure_config=FailureConfig(controller_failure_limit=_MAX_STARTS - 1),
        ),
    )
    shower = threading.Thread(target=_show, args=(queue, console), daemon=True)
    shower.start()
    try:
        # Not Ray's own retries: they would try again what only the user can mend.
        for left in reversed(range(_MAX_FAILURES + 1)):
            try:
                trainer().fit()
                break
            except ControllerError as error:
                raise ResourceError(
                    f"{workers} workers of {cpus:g} CPUs{' and a GPU' if use_gpu else ''} could "
                    "not be started. If something else has their places, let it end; run this "
                    "again, and it goes on from its last checkpoint. "
                    f"Ray says: {printable(str(error))}"
                ) from None
            except TrainingFailedError as error:
                cause = _cause(error)
                if isinstance(cause, UserError) or not left:
                    raise cause from None
                reason = printable((str(cause).strip() or repr(cause)).splitlines()[-1])
                message = f"a worker failed, going on from the last checkpoint: {reason}"
                console.print(message, markup=False)
    finally:
        queue.put(None)
        shower.join(timeout=10)


def _cause(error: Exception) -> Exception:
    """The worker's own error, where it is one that a user can mend."""
    failures = getattr(error, "worker_failures", {}) or {}
    causes = [getattr(failure, "cause", failure) for failure in failures.values()]
    return next((cause for cause in causes if isinstance(cause, UserError)), error)


def _arrow(fs: Any) -> Any:
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    return PyFileSystem(FSSpecHandler(fs))


def _show(queue: Any, console: Console) -> None:
    """Print what the first worker logs, until None comes."""
    lately: deque[tuple[float, int]] = deque(maxlen=20)  # when which step was reached
    while (entry := queue.get()) is not None:
        step, last = entry["step"], entry["max_steps"]
        lately.append((time.monotonic(), step))
        (began, first), left = lately[0], ""
        if step > first:
            pace = (lately[-1][0] - began) / (step - first)
            left = f", {_clock(pace * (last - step))} left"
        shown = {k: v for k, v in entry.items() if k in ("loss", "eval_loss", "learning_rate")}
        values = ", ".join(f"{key.replace('_', ' ')} {value:.4g}" for key, value in shown.items())
        if values:
            console.print(printable(f"step {step:,} of {last:,}: {values}{left}"))


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


if __name__ == "__main__":
    from jobs.cli import main

    main(prog_name="reelscribe", args=["finetune", *sys.argv[1:]])
