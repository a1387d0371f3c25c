"""The training job file. Keys are named as in the model's reference code and in ``Trainer``."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from schemas.job.job import Job
from schemas.job.load import check, read_spec
from schemas.job.model import SOURCE, Yarn
from schemas.job.resources import DecodeLimits
from schemas.job.sampling import Budget, SamplingSpec
from schemas.job.section import Section
from schemas.job.task_spec import TaskSpec, as_task, check_distinct
from schemas.task import EMBEDDING


class TrainedModel(Section):
    """The checkpoint to start from."""

    source: str = Field(description=SOURCE)
    revision: str | None = Field(None, description="Hub revision: branch, tag or commit.")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="Type of the weights in training; see `training.bf16`. auto: bfloat16 with "
        "lora, without fsdp, where training computes in bfloat16; else float32. bfloat16 only with "
        "lora or deepspeed: bfloat16 weights are too coarse for the steps of AdamW.",
    )
    max_model_len: int | None = Field(
        None,
        ge=64,
        description="Maximum length of a sample in tokens; a longer one is a failed sample. "
        "Default: the checkpoint's context, extended if `yarn` is set.",
    )
    yarn: Yarn | None = Field(None, description="A longer context; default: none.")


class DataSpec(Section):
    """One data set: conversations in the reference's format, or a Reelscribe table."""

    conversations: str | None = Field(
        None,
        min_length=1,
        description="JSON or JSONL with `image` or `video` and `conversations`.",
    )
    media_folder: str | None = Field(
        None, description="Folder of relative media paths; default: the file's folder."
    )
    annotations: str | None = Field(
        None,
        min_length=1,
        description="Parquet file or folder with `uri` and columns of tasks, such as the output "
        "of `reelscribe annotate`, corrected.",
    )
    where: str | None = Field(
        None, description="With `annotations`: an SQL condition that selects rows."
    )
    tasks: tuple[Annotated[TaskSpec, BeforeValidator(as_task)], ...] = Field(
        (), description="With `annotations`: tasks whose columns are the answers, as in a job file."
    )
    share: float = Field(
        100,
        gt=0,
        description="Percent of its samples used in each epoch; above 100 they are repeated. "
        "`name%50` in the reference's notation.",
    )

    @model_validator(mode="after")
    def _one_source(self) -> "DataSpec":
        if (self.conversations is None) == (self.annotations is None):
            raise ValueError("give exactly one of `conversations` and `annotations`")
        if self.annotations is not None and not self.tasks:
            raise ValueError("`annotations` needs `tasks`, whose columns are the answers")
        if self.conversations is not None and (self.tasks or self.where):
            raise ValueError("`tasks` and `where` belong to `annotations`")
        check_distinct(self.tasks)
        if any(task.task == EMBEDDING for task in self.tasks):
            raise ValueError("embedding cannot be trained: its answers are vectors, not text")
        if any(task.name == "tool_calls" for task in self.tasks):
            raise ValueError("tool_calls are trained with `conversations` that have a system turn")
        return self


def as_data(value: Any) -> Any:
    """Read a path, with the reference code's share, as a data set: ``captions.jsonl%50``."""
    if not isinstance(value, str):
        return value
    path, percent, share = value.rpartition("%")
    if percent and share.replace(".", "", 1).isdigit():
        return {"conversations": path, "share": float(share)}
    return {"conversations": value}


class Tune(Section):
    """Which parts of the model are trained. The names are the reference code's."""

    tune_mm_vision: bool = Field(False, description="The vision tower.")
    tune_mm_mlp: bool = Field(
        True,
        description="The projector: the merger and the DeepStack mergers (in the reference code "
        "these follow the vision tower's flag).",
    )
    tune_mm_llm: bool = Field(True, description="The language model.")


class Lora(Section):
    """Low-rank adapters in the language model, trained instead of its weights."""

    r: int = Field(64, ge=1, description="Rank.")
    lora_alpha: int = Field(128, ge=1, description="Scale, divided by the rank.")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout before the adapter.")
    target_modules: tuple[str, ...] = Field(
        ("q_proj", "k_proj", "v_proj", "o_proj"),
        description="Modules of the language model's layers; by default also in_proj_qkv, "
        "in_proj_z and out_proj where a model has linear layers.",
    )
    merge: bool = Field(
        True,
        description="Export a whole checkpoint with merged adapters; false: only the adapters.",
    )


class Training(Section):
    """Training settings. Names and meanings are those of transformers' TrainingArguments."""

    num_train_epochs: float = Field(1.0, gt=0, description="Passes over the data.")
    max_steps: int | None = Field(None, ge=1, description="Steps, instead of epochs.")
    per_device_train_batch_size: int = Field(
        1,
        ge=1,
        description="Samples in one worker's batch, which are one row; with `share_media`, several "
        "questions about the same media are one sample. More for small images; a batch of a "
        "minute of video has 24,000 tokens.",
    )
    gradient_accumulation_steps: int = Field(4, ge=1, description="Batches per update.")
    learning_rate: float = Field(1e-5, gt=0, description="Learning rate of the language model.")
    mm_projector_lr: float | None = Field(
        None, gt=0, description="Learning rate of the projector; default: the same."
    )
    vision_tower_lr: float | None = Field(
        None, gt=0, description="Learning rate of the vision tower; default: the same."
    )
    optimizer: Literal["adamw", "muon"] = Field(
        "adamw",
        description="muon: torch's Muon for matrices inside the layers, AdamW with `adamw_lr` for "
        "the rest.",
    )
    adamw_lr: float | None = Field(
        None,
        gt=0,
        description="With muon: learning rate of embeddings, norms and the output; default: "
        "the same.",
    )
    weight_decay: float = Field(0.0, ge=0, description="Weight decay of matrices.")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradients are clipped to this norm.")
    warmup_steps: int = Field(0, ge=0, description="Steps of linear warm-up.")
    lr_scheduler_type: str = Field("cosine", description="One of transformers' schedules.")
    bf16: bool | Literal["auto"] = Field(
        "auto",
        description="Compute in bfloat16 (autocast); what is trained has float32 weights, and with "
        "lora the base weights are bfloat16 (`model.dtype`). auto: if the device has instructions "
        "for it.",
    )
    gradient_checkpointing: bool = Field(
        True, description="Recompute activations in the backward pass: less memory, slower."
    )
    share_media: bool = Field(
        True,
        description="Consecutive conversations about the same media share one vision encode and "
        "one prefix; each attends to the media and itself. Linear layers read the prefix again for "
        "each.",
    )
    logging_steps: int = Field(10, ge=1, description="Steps between log lines.")
    save_steps: int = Field(200, ge=1, description="Steps between checkpoints.")
    eval_steps: int | None = Field(
        None, ge=1, description="Steps between validations; default: as save_steps."
    )
    save_total_limit: int = Field(2, ge=1, description="Number of checkpoints to keep.")
    seed: int = Field(0, ge=0, lt=1 << 32, description="Seed of the data's order and of dropout.")
    dataloader_num_workers: Annotated[int, Field(ge=0)] | Literal["auto"] = Field(
        "auto",
        description="Processes per worker that decode ahead; auto: one for each of its CPUs but "
        "one.",
    )
    max_skipped: float = Field(
        1.0,
        ge=0,
        le=100,
        description="Percent of the samples that may fail; more end the training, before it "
        "starts if headers and token counts show it. Samples that fail only when they are decoded "
        "are counted by each worker for itself. A failed sample is left out, counted, and "
        "listed in failed_samples-*.jsonl; it is never replaced by another sample.",
    )


class TrainingResources(DecodeLimits):
    """Ray Train workers."""

    num_workers: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto",
        description="Training processes, one for each GPU; auto: the cluster's GPUs, or one "
        "without.",
    )
    use_gpu: bool | Literal["auto"] = Field("auto", description="auto: if the cluster has GPUs.")
    cpus_per_worker: Annotated[float, Field(gt=0)] | Literal["auto"] = Field(
        "auto",
        description="Ray CPUs of each worker, for its data loaders and, without a GPU, its "
        "threads; auto: its share of the cluster's, at most 9 with a GPU.",
    )


class FinetuneJob(Section):
    """A training job file."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")] = Field(
        "finetune", description="Lower-case letters, digits and dashes."
    )
    output: str = Field(
        min_length=1,
        description="Folder or s3:// prefix: model/, checkpoints/, metrics.jsonl, tensorboard/.",
    )
    model: TrainedModel = Field(description="The checkpoint to start from.")
    data: tuple[Annotated[DataSpec, BeforeValidator(as_data)], ...] = Field(
        min_length=1, description="Data sets to learn from, mixed by their shares."
    )
    validation: tuple[Annotated[DataSpec, BeforeValidator(as_data)], ...] = Field(
        (), description="Data sets whose loss is logged."
    )
    sampling: SamplingSpec = Field(
        default_factory=SamplingSpec, description="Frames of videos, as in a job file."
    )
    budget: Budget = Field(
        default_factory=Budget, description="Sizes of what the model sees, as in a job file."
    )
    tune: Tune = Field(default_factory=Tune, description="Which parts are trained, without lora.")
    lora: Lora | None = Field(None, description="Adapters; default: none, the weights are trained.")
    training: Training = Field(default_factory=Training, description="Training settings.")
    trainer: dict[str, Any] = Field(
        default_factory=dict,
        description="Further TrainingArguments of transformers, such as deepspeed or fsdp.",
    )
    resources: TrainingResources = Field(
        default_factory=TrainingResources, description="Ray Train workers."
    )
    storage_options: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="As in a job file; never stored or logged.",
        repr=False,
    )

    @model_validator(mode="after")
    def _check_trained(self) -> "FinetuneJob":
        tune = self.tune
        if self.lora is not None and "tune" in self.model_fields_set:
            raise ValueError("with lora, only the adapters are trained: leave out `tune`")
        if self.model.dtype == "bfloat16" and not (self.lora or "deepspeed" in self.trainer):
            raise ValueError(
                "model.dtype bfloat16 needs lora or trainer.deepspeed: bfloat16 weights are too "
                "coarse for the steps of AdamW; leave it float32 (training.bf16 computes in "
                "bfloat16)"
            )
        if not (self.lora or tune.tune_mm_vision or tune.tune_mm_mlp or tune.tune_mm_llm):
            raise ValueError("nothing is trained: set one of the flags of `tune`, or `lora`")
        if self.sampling.clock == "unit":
            raise ValueError("sampling.clock must be media: the answers in training data have PTS")
        return self

    def annotate_job(self) -> Job:
        """Return the annotation job that shows the model the same media in the same way."""
        sampling = self.sampling.model_copy(
            update={"segmentation": self.sampling.segmentation.model_copy(update={"kind": "none"})}
        )
        return Job.model_validate(
            {
                "input": {"scan": "."},
                "output": self.output,
                "model": {
                    "source": self.model.source,
                    "revision": self.model.revision,
                },
                "sampling": sampling.model_dump(),
                "budget": self.budget.model_dump(),
                "resources": self.resources.model_dump(include=set(DecodeLimits.model_fields)),
                "storage_options": self.storage_options,
            }
        )

    def public_dict(self) -> dict[str, Any]:
        """Return the job without secrets."""
        return self.model_dump(mode="json", exclude={"storage_options"})


def load_finetune_job(path: Path | None, overrides: dict[str, Any] | None = None) -> FinetuneJob:
    """Read and check a training job file; see ``load_job``.

    Raises:
        JobFileError: lists every mistake, one a line.
    """
    spec = read_spec(path, overrides)
    return check(FinetuneJob, spec, f"the job file {path}" if path else "the job")
