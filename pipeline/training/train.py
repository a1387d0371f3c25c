"""The training loop of one worker: transformers' Trainer on samples that the pipeline prepares."""

import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

from pipeline.engines.patches import normalise
from pipeline.prompt import Prompter
from pipeline.storage import Storage
from pipeline.training.load import attention, load_model
from pipeline.training.optimizer import cpu_has_bf16, make_optimizer
from pipeline.training.pack import Batch, blank, collate, pack
from pipeline.training.sample import IGNORED, Preparer, Sample
from schemas.conversation import Conversation, DataProblem, ProblemType
from schemas.errors import ManifestError
from schemas.finetune import FinetuneJob

Group = tuple[Conversation, ...]


Prepared = list[Sample | DataProblem]


class Samples(Dataset[Prepared]):
    """Groups of conversations, prepared when they are asked for, in whichever process asks.

    A group is one sample, or several where its conversations together are too long. Behind the
    last come empty ones, up to a multiple of what all workers take at a time: Trainer would repeat
    samples there.
    """

    def __init__(
        self, groups: Sequence[Group], job: FinetuneJob, storage: Storage, multiple: int = 1
    ) -> None:
        self._groups, self._job, self._storage = groups, job, storage
        self._num = -(-len(groups) // multiple) * multiple
        self._preparer: Preparer | None = None

    def __len__(self) -> int:
        return self._num

    def __getitem__(self, k: int) -> Prepared:
        if k >= len(self._groups):
            return []
        if self._preparer is None:
            self._preparer = Preparer(self._job, self._storage)
        return self._prepare(self._preparer, self._groups[k])

    def _prepare(self, preparer: Preparer, group: Group) -> Prepared:
        made = preparer.prepare(group)
        is_long = isinstance(made, DataProblem) and made.type == ProblemType.OVER_LONG
        if not is_long or len(group) == 1:
            return [made]
        half = len(group) // 2
        return [*self._prepare(preparer, group[:half]), *self._prepare(preparer, group[half:])]


class Collator:
    """Packs samples into a batch, and writes down those that failed."""

    def __init__(
        self, job: FinetuneJob, prompter: Prompter, *, attn_implementation: str, failed: Path
    ) -> None:
        self._training = job.training
        self._pad_id = int(prompter.tokenizer.pad_token_id or 0)
        self._blank = blank(prompter.pad_ids["image"])
        most = job.training.packed_tokens or job.model.max_model_len
        self._max_tokens = most if job.training.packing else 0
        self._attn, self._failed = attn_implementation, failed

    def __call__(self, prepared: Sequence[Prepared]) -> Batch:
        """Make a batch of those that could be prepared.

        Where the job says to stop at a failed sample, the batch says it under ``problem``: an error
        in a process that loads data would reach the user wrapped in its traceback.
        """
        samples = [sample for group in prepared for sample in group]
        problems = [sample for sample in samples if isinstance(sample, DataProblem)]
        for problem in problems:
            self._note(problem)
        good = [sample for sample in samples if isinstance(sample, Sample)]
        rows = pack(good, self._max_tokens)
        if not any(sample.pictures for sample in good):
            rows = [*rows[:-1], [*(rows[-1] if rows else ()), self._blank]]
        if self._attn == "flash_attention_2":
            rows = [[sample for row in rows for sample in row]]
        batch = collate(rows, pad_id=self._pad_id, attn_implementation=self._attn)
        if problems and self._training.on_bad_sample == "stop":
            first = problems[0]
            batch["problem"] = f"{first.origin}: {first.type}: {first.message}"
        return batch

    def _note(self, problem: DataProblem) -> None:
        line = json.dumps(
            {"sample": problem.origin, "type": problem.type, "message": problem.message}
        )
        with self._failed.open("a", encoding="utf-8") as file:  # one write: lines stay whole
            file.write(line + "\n")


def token_loss(
    outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Next-token cross-entropy, summed over what is learnt and divided by its number.

    num_items_in_batch: learnt tokens of the whole update, over all its batches and workers: so
        that a token counts alike however samples are spread over rows, batches and workers.
    """
    targets = labels[:, 1:]
    learnt = targets != IGNORED
    logits = outputs.logits[:, :-1][learnt].float()
    total = nn.functional.cross_entropy(logits, targets[learnt], reduction="sum")
    count = learnt.sum() if num_items_in_batch is None else num_items_in_batch
    return total / max(count, 1) if isinstance(count, int) else total / count.clamp(min=1)


class _Trainer(Trainer):
    """Trainer with our parameter groups, and with frames that stay uint8 up to the device."""

    def __init__(self, job: FinetuneJob, **options: Any) -> None:
        super().__init__(compute_loss_func=token_loss, **options)
        self._training = job.training

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        self.optimizer: torch.optim.Optimizer
        if self.optimizer is None:
            self.optimizer = make_optimizer(model or self.model, self._training)
        return self.optimizer

    def _prepare_inputs(self, inputs: Batch) -> Batch:
        """Put a batch on the device, and take its frames to floating point there.

        Raises:
            ManifestError: a sample failed, and the job says to stop then.
        """
        if "problem" in inputs:
            raise ManifestError(inputs["problem"])
        inputs = super()._prepare_inputs(inputs)
        pixels = ("pixel_values", "pixel_values_videos")
        return inputs | {name: normalise(inputs[name]) for name in pixels if name in inputs}

    def prediction_step(
        self, model: nn.Module, inputs: Batch, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, None, None]:
        """Validation: the batch's loss, and the sums from which that of all batches is made."""
        inputs = self._prepare_inputs(inputs)
        labels = inputs.pop("labels")
        with torch.no_grad(), self.compute_loss_context_manager():
            total = token_loss(model(**inputs), labels, num_items_in_batch=1)
        self._evaluated += torch.stack([total, (labels != IGNORED).sum()])
        return total / (labels != IGNORED).sum().clamp(min=1), None, None

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """Mean over tokens, as in training: the base class takes the mean over batches."""
        self._evaluated = torch.zeros(2, device=self.args.device)
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        total, learnt = self.accelerator.reduce(self._evaluated, "sum").tolist()
        output.metrics[f"{metric_key_prefix}_loss"] = total / max(learnt, 1)
        return output


class _Log(TrainerCallback):
    """Writes metrics.jsonl, a line for each log; a resumed run goes on behind its checkpoint."""

    def __init__(self, path: Path, tell: Callable[[dict[str, Any]], None]) -> None:
        self._path, self._tell = path, tell

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
        self._tell(entry)


def _step(line: str) -> float:
    """The step of a line of the log; a line that was cut off when the disk was full has none."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def make_trainer(
    job: FinetuneJob,
    *,
    train: Sequence[Group],
    validation: Sequence[Group],
    storage: Storage,
    folder: Path,
    checkpoints: Path,
    use_gpu: bool | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    tell: Callable[[dict[str, Any]], None] = lambda entry: None,
) -> Trainer:
    """Make the Trainer of this worker.

    folder: where metrics.jsonl, tensorboard/ and failed_samples-*.jsonl are written.
    checkpoints: where the Trainer keeps its checkpoints.
    use_gpu: whether this worker was given one; default: if there is one.

    Raises:
        ModelError: the checkpoint cannot be loaded.
        JobFileError: TrainingArguments refuse a setting.
    """
    rank = int(os.environ.get("RANK", "0"))
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    use_gpu = torch.cuda.is_available() if use_gpu is None else use_gpu
    is_bf16 = uses_bf16(job, use_gpu)
    attn = attention(job.model, has_gpu=use_gpu, is_bf16=is_bf16 or job.model.dtype == "bfloat16")
    if attn == "flash_attention_2":
        train = [(conversation,) for group in train for conversation in group]
        validation = [(conversation,) for group in validation for conversation in group]
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder / "tensorboard")
    set_seed(job.training.seed)  # adapters begin with random weights
    model = load_model(job, attn)
    multiple = job.training.per_device_train_batch_size * world_size if world_size > 1 else 1
    samples = Samples(train, job, storage, multiple)
    collator = Collator(
        job,
        Prompter(job.model.source, job.model.revision),
        attn_implementation=attn,
        failed=folder / f"failed_samples-{rank}.jsonl",
    )
    return _Trainer(
        job,
        model=model,
        args=arguments(job, checkpoints, has_validation=bool(validation), use_gpu=use_gpu),
        data_collator=collator,
        train_dataset=samples,
        eval_dataset=Samples(validation, job, storage, multiple) if validation else None,
        callbacks=[_Log(folder / "metrics.jsonl", tell), *callbacks],
    )


def uses_bf16(job: FinetuneJob, use_gpu: bool) -> bool:
    """Whether it computes in bfloat16: as the job says, else where the device can."""
    if job.training.bf16 == "auto":
        return torch.cuda.is_bf16_supported() if use_gpu else cpu_has_bf16()
    return job.training.bf16


def arguments(
    job: FinetuneJob, folder: Path, *, has_validation: bool, use_gpu: bool
) -> TrainingArguments:
    """The Trainer's own settings: the job's, and what it passes on."""
    spec = job.training
    names = TrainingArguments.__dataclass_fields__
    new = "activation_checkpointing"  # its name in later versions, which warn of the older one
    recompute = new if new in names else "gradient_checkpointing"
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
            "dataloader_num_workers": spec.dataloader_num_workers,
            "dataloader_persistent_workers": spec.dataloader_num_workers > 0,
            "remove_unused_columns": False,
            "label_names": ["labels"],
            "report_to": ["tensorboard"],
            "disable_tqdm": True,
            "use_cpu": not use_gpu,
            **job.trainer,
        }
    )
