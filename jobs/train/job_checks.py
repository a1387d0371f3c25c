"""Check a training job before it starts Ray: its model, its settings, its output folder."""

import hashlib
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs.console.output_path import absolute_uri
from jobs.plan.runs import redact_uris
from pipeline.model.checkpoint import check_engine, inspect_checkpoint
from pipeline.storage.parquet import read_json
from pipeline.storage.storage import Storage, join
from pipeline.training.groups import Group
from schemas.errors import JobFileError, ModelError
from schemas.job.finetune import DataSpec, FinetuneJob
from schemas.job.model import Model
from schemas.shown import redact_uri

UNTRAINABLE_TYPES = ("qwen4_exp",)
"""Its n-grams, and keys that it chooses, would reach from sample to sample of a row."""

_WITHOUT_EFFECT = frozenset(
    {"optim", "optim_args", "optim_target_modules", "adam_beta1", "adam_beta2", "adam_epsilon"}
    | {"adafactor", "weight_decay", "label_smoothing_factor"}
)
# These make the same training longer or shorter; only the decay of the learning rate changes.
_MAY_CHANGE = ("training.max_steps", "training.num_train_epochs", "trainer.lr_scheduler_kwargs")


def with_absolute_paths(job: FinetuneJob) -> FinetuneJob:
    """The job with absolute local paths, which are valid in its workers' folders too."""

    def absolute(path: str | None) -> str | None:
        return absolute_uri(path) if path else path

    def data(spec: DataSpec) -> DataSpec:
        names = ("conversations", "annotations", "media_folder")
        return spec.model_copy(update={name: absolute(getattr(spec, name)) for name in names})

    files = {key: job.trainer.get(key) for key in ("deepspeed", "fsdp_config")}
    configs = {key: absolute(file) for key, file in files.items() if isinstance(file, str)}
    source = Path(job.model.source).expanduser()
    model = job.model.model_copy(update={"source": str(source.resolve())})
    return job.model_copy(
        update={
            "output": absolute(job.output),
            "trainer": job.trainer | configs,
            "model": model if source.is_dir() else job.model,
            "data": tuple(data(spec) for spec in job.data),
            "validation": tuple(data(spec) for spec in job.validation),
        }
    )


def check_model(job: FinetuneJob) -> None:
    """Check that the job's model is a checkpoint that can be trained, with its tokenizer.

    Raises:
        ModelError: it is not, its weights are quantised, or ``max_model_len`` is over its context.
    """
    from pipeline.model.prompter import Prompter

    model, limit = job.model, job.model.max_model_len
    checked = Model(source=model.source, revision=model.revision, yarn=model.yarn)
    found = inspect_checkpoint(checked)
    check_engine(found, checked)
    if found.model_type in UNTRAINABLE_TYPES:
        raise ModelError(
            f"model.source {model.source!r} is a {found.model_type!r} model, which Reelscribe runs "
            "and does not train"
        )
    if limit is not None and limit > found.max_model_len:
        raise ModelError(
            f"model.max_model_len {limit} is over the checkpoint's context of "
            f"{found.max_model_len}" + ("" if model.yarn else "; model.yarn can extend it")
        )
    Prompter(job.model.source, job.model.revision)


def check_arguments(job: FinetuneJob) -> None:
    """Check ``training`` and ``trainer``, by constructing TrainingArguments.

    Raises:
        JobFileError: a setting is unknown, has no effect here, or is not valid.
    """
    from transformers import TrainingArguments

    from pipeline.training.train import arguments

    known = TrainingArguments.__dataclass_fields__
    if unknown := sorted(set(job.trainer) - set(known)):
        raise JobFileError(f"trainer: TrainingArguments has no {unknown}")
    settings = {*type(job.training).model_fields, "activation_checkpointing"}  # another name of one
    if twice := sorted(set(job.trainer) & settings):
        raise JobFileError(f"trainer: {twice} are settings of `training`: set them there")
    if idle := sorted(set(job.trainer) & _WITHOUT_EFFECT):
        raise JobFileError(f"trainer: {idle} have no effect here: set the optimizer in `training`")
    if secrets := sorted(key for key in job.trainer if key.endswith("_token")):
        raise JobFileError(f"trainer: {secrets}: no secrets in a job file; set HF_TOKEN")
    for key in ("deepspeed", "fsdp_config"):
        file = job.trainer.get(key)
        if isinstance(file, str) and not Path(file).is_file():
            raise JobFileError(f"trainer.{key}: there is no file {file}")
    is_sharded = bool(job.trainer.get("deepspeed") or job.trainer.get("fsdp"))
    if is_sharded and job.lora is not None and job.lora.merge:
        raise JobFileError(
            "lora.merge: adapters of a sharded model cannot be merged; set it to false"
        )
    # Whether the device supports these shows on the workers' machines only.
    on_workers = ("deepspeed", "fsdp", "fsdp_config", "bf16", "fp16", "tf32", "use_cpu")
    checked = {key: value for key, value in job.trainer.items() if key not in on_workers}
    try:
        arguments(
            job.model_copy(update={"trainer": checked}),
            Path(tempfile.gettempdir()),
            has_validation=bool(job.validation),
            use_gpu=False,
        )
    except (ValueError, TypeError, ImportError) as error:
        raise JobFileError(f"trainer or training: {error}") from None


def check_same_job(job: FinetuneJob, digest: str, storage: Storage) -> None:
    """Check that the output folder has no training with other data or settings; write job.json.

    Before its first checkpoint, a training may change its data and settings.

    digest: of the data, see ``data_digest``.

    Raises:
        JobFileError: the folder has another training.
    """
    spec = _fingerprint(job) | {"rows of data": digest}
    before = _read_before(job, storage)
    if before is None:
        storage.write_bytes(join(job.output, "job.json"), json.dumps(spec, indent=2).encode())
        return
    changed = sorted(key for key in spec | before if spec.get(key) != before.get(key))
    if serious := [key for key in changed if key not in _MAY_CHANGE]:
        raise JobFileError(
            f"{job.output} holds a training with other settings ({', '.join(serious)}): set "
            "another output, or resume it with the same job"
        )


def workers_before(job: FinetuneJob, storage: Storage) -> int | None:
    """Workers of the training that the output folder holds; None if it holds none.

    Raises:
        JobFileError: the folder has something else.
    """
    before = _read_before(job, storage) or {}
    number = before.get("resources.num_workers")
    return number if isinstance(number, int) else None


def _read_before(job: FinetuneJob, storage: Storage) -> dict[str, Any] | None:
    """The job.json of a training that has a checkpoint."""
    if not storage.list_files(join(job.output, "checkpoints"), "*/*"):
        return None
    uri = join(job.output, "job.json")
    try:
        before: dict[str, Any] = read_json(uri, storage)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise JobFileError(
            f"{redact_uri(uri)} is not what a training wrote ({error}): set another output"
        ) from None
    return before


def data_digest(groups: Sequence[Group]) -> str:
    """Hash of the training data, in order: 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for group in groups:
        digest.update(repr(group).encode("utf-8", "backslashreplace"))
    return digest.hexdigest()[:16]


def _fingerprint(job: FinetuneJob) -> dict[str, Any]:
    """The settings that a training depends on, by dotted name."""
    spec = redact_uris(job.public_dict())
    # The order of the data depends on the number of workers, not on their resources.
    free = {"logging_steps", "save_steps", "eval_steps", "save_total_limit"}
    free |= {"use_gpu", "cpus_per_worker", "decode_timeout_seconds", "decode_memory_gib"}
    free |= {"dataloader_num_workers", "max_skipped"}
    flat = {f"{a}.{b}": v for a, s in spec.items() if isinstance(s, dict) for b, v in s.items()}
    flat |= {key: value for key, value in spec.items() if not isinstance(value, dict)}
    return {key: value for key, value in flat.items() if key.rpartition(".")[2] not in free}
