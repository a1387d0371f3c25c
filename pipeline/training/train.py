"""The training loop of one worker: transformers' Trainer on samples that the pipeline prepares."""

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

from pipeline.model.prompter import Prompter
from pipeline.training.batches import Batch, Collator, Samples, on_device
from pipeline.training.load import load_model, recompute_name
from pipeline.training.optimizer import cpu_has_bf16, make_optimizer
from pipeline.training.sample import IGNORED, TrainingData, too_many_skipped
from schemas.errors import ManifestError
from schemas.job.finetune import FinetuneJob


def token_loss(
    outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Mean next-token cross-entropy over the learnt tokens.

    outputs: the model's, with ``logits`` float [1, K, vocabulary], of the K tokens before those
        that are learnt.
    labels: int64 [1, L], -100 where nothing is learnt.
    num_items_in_batch: divide by this number instead: the learnt tokens of the whole update, so
        that each token has the same weight however samples are spread over batches and workers.
    """
    targets = labels[0, 1:]
    targets = targets[targets != IGNORED]
    total = nn.functional.cross_entropy(outputs.logits[0].float(), targets, reduction="sum")
    count = len(targets) if num_items_in_batch is None else num_items_in_batch
    return total / max(count, 1) if isinstance(count, int) else total / count.clamp(min=1)


class _Trainer(Trainer):  # type: ignore[misc]  # transformers is untyped
    """Trainer with our optimizer and loss; patches stay uint8 until they are on the device."""

    def __init__(self, job: FinetuneJob, num_samples: int, **options: Any) -> None:
        """Make a Trainer.

        num_samples: conversations that the job learns from and validates with.
        """
        super().__init__(compute_loss_func=token_loss, **options)
        self._training = job.training
        self._num_samples = num_samples
        self._skipped: dict[str, str] = {}

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        self.optimizer: torch.optim.Optimizer
        if self.optimizer is None:
            self.optimizer = make_optimizer(model or self.model, self._training)
        return self.optimizer

    def _prepare_inputs(self, inputs: Batch) -> Batch:
        """Move a batch to the device, and complete it there.

        Raises:
            ManifestError: more than ``max_skipped`` of the samples have failed.
        """
        self._skipped |= inputs.pop("problems", {})
        limit = self._training.max_skipped
        if len(self._skipped) * 100 > limit * self._num_samples:
            raise ManifestError(too_many_skipped(self._skipped, self._num_samples, limit))
        return on_device(super()._prepare_inputs(inputs))

    def prediction_step(
        self, model: nn.Module, inputs: Batch, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, None, None]:
        """Compute a validation batch's loss, and add it to the sums for ``evaluation_loop``."""
        inputs = self._prepare_inputs(inputs)
        labels = inputs.pop("labels")
        with torch.no_grad(), self.compute_loss_context_manager():
            total = token_loss(model(**inputs), labels, num_items_in_batch=1)
        self._evaluated += torch.stack([total, (labels != IGNORED).sum()])
        return total / (labels != IGNORED).sum().clamp(min=1), None, None

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """Validate; the loss is the mean over tokens, where the base class averages batches."""
        self._evaluated = torch.zeros(2, device=self.args.device)
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        total, learnt = self.accelerator.reduce(self._evaluated, "sum").tolist()
        output.metrics[f"{metric_key_prefix}_loss"] = total / max(learnt, 1)
        return output


class _Log(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
    """Appends each log to metrics.jsonl; a resumed run first drops lines after its checkpoint."""

    def __init__(self, path: Path, on_log: Callable[[dict[str, Any]], None]) -> None:
        self._path, self._on_log = path, on_log

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero or not self._path.exists():
            return
        lines = self._path.read_text().splitlines()
        kept = [line for line in lines if _step(line) <= state.global_step]
        self._path.write_text("".join(line + "\n" for line in kept if state.global_step))

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        if not state.is_world_process_zero or logs is None:
            return
        entry = {"step": state.global_step, "max_steps": state.max_steps, **logs}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        self._on_log(entry)


def _step(line: str) -> float:
    """The step of a line of the log; infinity for a truncated line, as a full disk leaves it."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


@dataclass(frozen=True, kw_only=True)
class WorkerFolders:
    """Local folders that a worker writes to.

    logs: metrics.jsonl, tensorboard/ and failed_samples-*.jsonl.
    checkpoints: the Trainer's checkpoints.
    """

    logs: Path
    checkpoints: Path


def make_trainer(
    job: FinetuneJob,
    data: TrainingData,
    folders: WorkerFolders,
    *,
    use_gpu: bool | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    on_log: Callable[[dict[str, Any]], None] = lambda entry: None,
) -> Trainer:
    """Make the Trainer of this worker.

    use_gpu: whether this worker has a GPU; default: whether torch sees one.
    on_log: called with each line of metrics.jsonl, on the first worker only.

    Raises:
        ModelError: the checkpoint cannot be loaded.
        ValueError: TrainingArguments refuses a setting.
    """
    train, validation = data.train, data.validation
    rank = int(os.environ.get("RANK", "0"))
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    use_gpu = torch.cuda.is_available() if use_gpu is None else use_gpu
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(folders.logs / "tensorboard")
    # Before the model: with ZeRO-3, transformers then loads each weight into its shard. It looks
    # for the settings behind a weak reference, so they must be kept.
    args = arguments(job, folders.checkpoints, has_validation=bool(validation), use_gpu=use_gpu)
    set_seed(job.training.seed)  # before loading: adapters start from random weights
    model = load_model(job, is_bf16=args.bf16)
    multiple = job.training.per_device_train_batch_size * world_size if world_size > 1 else 1
    prompter = Prompter(job.model.source, job.model.revision)
    return _Trainer(
        job,
        len({c.origin for group in (*train, *validation) for c in group}),
        model=model,
        args=args,
        data_collator=Collator(prompter, folders.logs / f"failed_samples-{rank}.jsonl"),
        train_dataset=Samples(train, job, data.storage, multiple),
        eval_dataset=Samples(validation, job, data.storage, multiple) if validation else None,
        callbacks=[_Log(folders.logs / "metrics.jsonl", on_log), *callbacks],
    )


def uses_bf16(job: FinetuneJob, use_gpu: bool) -> bool:
    """Whether training computes in bfloat16: as the job says; auto: if the device supports it."""
    if job.training.bf16 == "auto":
        return torch.cuda.is_bf16_supported() if use_gpu else cpu_has_bf16()
    return job.training.bf16


def arguments(
    job: FinetuneJob, folder: Path, *, has_validation: bool, use_gpu: bool
) -> TrainingArguments:
    """Make the Trainer's settings from those of the job, and from its ``trainer`` section.

    folder: the Trainer's output: its checkpoints.

    Raises:
        ValueError, TypeError, ImportError: TrainingArguments refuses a setting.
    """
    spec = job.training
    recompute = recompute_name(TrainingArguments)
    num_loaders = 1 if spec.dataloader_num_workers == "auto" else spec.dataloader_num_workers
    return TrainingArguments(
        **{
            "output_dir": str(folder),
            "num_train_epochs": spec.num_train_epochs,
            "max_steps": spec.max_steps or -1,
            "per_device_train_batch_size": spec.per_device_train_batch_size,
            "per_device_eval_batch_size": spec.per_device_train_batch_size,
            "gradient_accumulation_steps": spec.gradient_accumulation_steps,
            "learning_rate": spec.learning_rate,
            "max_grad_norm": spec.max_grad_norm,
            "warmup_steps": spec.warmup_steps,
            "lr_scheduler_type": spec.lr_scheduler_type,
            "bf16": uses_bf16(job, use_gpu),
            recompute: spec.gradient_checkpointing,
            "logging_steps": spec.logging_steps,
            "save_strategy": "steps",
            "save_steps": spec.save_steps,
            "save_total_limit": spec.save_total_limit,
            "eval_strategy": "steps" if has_validation else "no",
            "eval_steps": spec.eval_steps or spec.save_steps,
            "prediction_loss_only": True,
            "seed": spec.seed,
            "dataloader_num_workers": num_loaders,
            "dataloader_persistent_workers": num_loaders > 0,
            "remove_unused_columns": False,
            "label_names": ["labels"],
            "report_to": ["tensorboard"],
            "disable_tqdm": True,
            "use_cpu": not use_gpu,
            **job.trainer,
        }
    )
