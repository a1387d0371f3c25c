"""What a training will learn, found from headers and token counts before it starts.

Every sample is prepared without decoding its media, so what is too long, missing or broken in its
header is known before a GPU waits for it.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from rich.console import Console

from jobs.console.progress import print_summary
from jobs.train.check_dataset import check_works
from jobs.train.placement import gpu_names
from pipeline.engines.speed import EngineTimes
from pipeline.model.checkpoint import load_config
from pipeline.model.sizes import ModelSize
from pipeline.training.check import Checked, Work
from pipeline.training.groups import Group
from pipeline.training.sample import Size, TrainingData, too_many_skipped
from schemas.conversation import DataProblem, ProblemType
from schemas.errors import ManifestError
from schemas.job.engines import Simulated, SimulatedGpu
from schemas.job.finetune import FinetuneJob

if TYPE_CHECKING:
    from pipeline.training.memory import StepMemory


@dataclass(frozen=True, kw_only=True)
class Survey:
    """The samples of a training.

    job: with numbers in place of ``auto``; see ``placed``.
    num_conversations: for training and validation, each once.
    samples: of one epoch, those that cannot be learnt included.
    validation: the samples that the job validates with.
    problems: one for each conversation that cannot be learnt.
    """

    job: FinetuneJob
    num_conversations: int
    samples: Sequence[Checked]
    problems: Sequence[DataProblem]
    validation: Sequence[Checked] = ()

    @property
    def good(self) -> list[Size]:
        """The samples that can be learnt, as training splits those that are too long."""
        return [part for sample in self.samples for part in sample.parts]

    @property
    def steps_per_epoch(self) -> int:
        """Updates in one pass over the data, as transformers' Trainer counts them."""
        training, num_workers = self.job.training, self.job.resources.num_workers
        assert num_workers != "auto"
        batches = math.ceil(
            len(self.samples) / (training.per_device_train_batch_size * num_workers)
        )
        return max(1, math.ceil(batches / training.gradient_accumulation_steps))

    @property
    def steps(self) -> int:
        """Updates of the whole training."""
        training = self.job.training
        return training.max_steps or math.ceil(training.num_train_epochs * self.steps_per_epoch)


def survey_samples(data: TrainingData, job: FinetuneJob, console: Console) -> Survey:
    """Prepare all samples on the cluster from headers, without decoding.

    job: with numbers in place of ``auto``.
    """
    numbers: dict[int, int] = {}  # a group that is repeated is prepared once
    unique: list[Group] = []
    for group in (*data.train, *data.validation):
        if numbers.setdefault(id(group), len(unique)) == len(unique):
            unique.append(group)
    works = [Work(sample=k, conversations=group) for k, group in enumerate(unique)]
    results = check_works(works, job, True, data.storage, console)
    problems = {
        problem.origin: problem
        for k in range(len(unique))
        for problem in results[k].problems
        if problem.type != ProblemType.BAD_BOX  # what is asked and answered can be learnt
    }
    return Survey(
        job=job,
        num_conversations=len({c.origin for group in unique for c in group}),
        samples=[results[numbers[id(group)]] for group in data.train],
        problems=list(problems.values()),
        validation=[results[numbers[id(group)]] for group in data.validation],
    )


def check_learnt(survey: Survey) -> None:
    """Refuse a training that would learn nothing, or skip more than it may.

    Raises:
        ManifestError: says how many samples, the first of them, and what to do.
    """
    skipped = {p.origin: f"{p.origin}: {p.type}: {p.message}" for p in survey.problems}
    limit = survey.job.training.max_skipped
    num_learnt = sum(sample.num_learnt for sample in survey.good)
    if len(skipped) * 100 > limit * survey.num_conversations or (skipped and not num_learnt):
        raise ManifestError(too_many_skipped(skipped, survey.num_conversations, limit))
    if not num_learnt:
        raise ManifestError("nothing can be learnt: no sample has a token of an answer")
    validated = [part.num_learnt for sample in survey.validation for part in sample.parts]
    if survey.validation and not any(validated):
        first = next(iter(skipped.values()), "no sample has a token of an answer")
        raise ManifestError(
            f"nothing can be validated: {first}; correct `validation`, or remove it"
        )


def predict_row_memory(survey: Survey) -> "StepMemory | str":
    """Predict what the longest batch takes on a GPU; or why that is not known."""
    from pipeline.training.memory import Row, predict_memory

    job = survey.job
    if job.trainer.get("deepspeed") or job.trainer.get("fsdp"):
        return "not predicted with trainer.deepspeed or trainer.fsdp"
    rows = [sample.parts for sample in survey.samples]  # the parts of a sample stay together
    longest = sorted(rows, key=lambda parts: -sum(part.num_tokens for part in parts))
    batch = [part for row in longest[: job.training.per_device_train_batch_size] for part in row]
    row = Row(
        tokens=sum(part.num_tokens for part in batch),
        branch_tokens=sum(part.num_branched for part in batch),
        learnt_tokens=sum(part.num_learnt for part in batch),
        vision_tokens=sum(part.num_vision for part in batch),
    )
    assert job.resources.num_workers != "auto"
    try:
        return predict_memory(
            job,
            row,
            is_bf16=job.training.bf16 is not False,
            num_workers=job.resources.num_workers,
        )
    except NotImplementedError as error:
        return f"not predicted for {error}"


def predict_hours(survey: Survey, gpu: SimulatedGpu) -> float:
    """Predict the hours of the training on a kind of GPU: arithmetic, not a measurement.

    Operations over what the GPU's maker promises, times the share that ``pipeline.engines.speed``
    assumes. Passes over the language model: forward, again with gradient checkpointing, backward
    for the activations, and without LoRA for the weights. Linear layers read the tokens that
    conversations share again for each of them.
    """
    job = survey.job
    config = load_config(job.model.source, job.model.revision, job.model.yarn)
    text, size = config.text_config, ModelSize.of(config.to_dict())
    times = EngineTimes.of(Simulated(gpu=gpu), size)
    passes = 2 + job.training.gradient_checkpointing + (job.lora is None)
    # In causal attention a token sees half of its row: as many operations as parameters for each.
    seen = size.text.num_full * text.num_attention_heads * text.head_dim
    linear = size.text.linear.parameters if size.text.linear else 0
    share = size.text.num_linear * linear / size.text.active_parameters
    seconds = 0.0
    for sample in survey.good:
        tokens = sample.num_tokens
        seconds += sample.num_vision * times.per_vision_token
        attention = 1 + seen * tokens / size.text.active_parameters
        read = tokens * attention + sample.num_repeated * share
        seconds += passes * read * times.per_prompt_token
    assert job.resources.num_workers != "auto"
    epochs = survey.steps / survey.steps_per_epoch
    return seconds * epochs / job.resources.num_workers / 3600


def print_survey(
    survey: Survey, memory: "StepMemory | str | None", console: Console, *, dry_run: bool
) -> None:
    """Print samples by state, tokens and steps; of a dry run also memory and hours.

    memory: of one GPU; None if it was not predicted.
    """
    job, good = survey.job, survey.good
    states = Counter(problem.type.value for problem in survey.problems)
    skipped = ", ".join(f"{count:,} {state}" for state, count in states.most_common()) or "none"
    tokens = [sample.num_tokens for sample in good]
    num_workers, training = job.resources.num_workers, job.training
    rows = [
        ("conversations", f"{survey.num_conversations:,} in {len(survey.samples):,} samples"),
        ("skipped", skipped),
        (
            "tokens",
            f"{sum(tokens):,} an epoch, {sum(s.num_vision for s in good):,} of them vision and "
            f"{sum(s.num_learnt for s in good):,} learnt; the longest sample has "
            f"{max(tokens, default=0):,}",
        ),
        (
            "steps",
            f"{survey.steps:,}, {survey.steps_per_epoch:,} an epoch: {num_workers} workers x "
            f"{training.per_device_train_batch_size} samples x "
            f"{training.gradient_accumulation_steps} batches",
        ),
    ]
    if memory is not None:
        is_counted = job.lora is not None or not job.tune.tune_mm_vision
        text = memory if isinstance(memory, str) else _memory_text(memory)
        more = "" if is_counted else "; not counted: the activations of the trained vision tower"
        rows.append(("memory", text + more))
    if dry_run:
        rows.append(("hours", _hours_text(survey)))
    print_summary(console, f"training {job.name}", rows)


def _memory_text(memory: "StepMemory") -> str:
    return (
        f"{memory.total / 1e9:.1f} GB on each GPU: {memory.weights / 1e9:.1f} weights, "
        f"{memory.optimizer / 1e9:.1f} optimizer, {memory.working / 1e9:.1f} gradients and "
        f"activations, {memory.media / 1e9:.1f} media; counted on a step without data"
    )


def _hours_text(survey: Survey) -> str:
    known: tuple[SimulatedGpu, ...] = get_args(SimulatedGpu)
    # Ray's names are like "geforce-rtx-4090" and "NVIDIA H100 80GB HBM3".
    gpus = [re.sub(r"[^a-z0-9]", "", name.lower()) for name in gpu_names()]
    use_gpu = survey.job.resources.use_gpu
    here = [name for name in known if use_gpu and any(name in gpu for gpu in gpus)]
    reason = "whose GPUs are not known" if use_gpu else "where this training uses no GPU"
    there = "" if here else f"not known for this cluster, {reason}; "
    figures = ", ".join(f"{name} {predict_hours(survey, name):,.2f}" for name in here or known)
    return f"{there}{figures}: arithmetic on published speeds, never measured"
