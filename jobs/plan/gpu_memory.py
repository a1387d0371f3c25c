"""How many units of a plan fit into a GPU's memory at a time, before there is a GPU."""

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jobs.cluster.gpus import gpu_by_name, local_gpu
from jobs.cost.rates import features
from pipeline.engines.largest import LargestMedia, largest_media
from pipeline.model.frame_size import MERGE_SIZE
from pipeline.model.memory import (
    START_ANSWER_TOKENS,
    BatchShape,
    ModelMemory,
    copies_prefix,
    gpu_share,
    num_fitting,
    usable_bytes,
)
from pipeline.model.sizes import Gpu
from pipeline.model.vllm_memory import VllmSizes, vllm_cache_tokens, vllm_pass_bytes
from schemas.errors import ResourceError
from schemas.job.engines import Vllm
from schemas.job.job import Job
from schemas.shown import one_line
from schemas.tables.unit import UnitStatus

_GB = 1e9


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Units of a plan of one kind: images, videos or conversations.

    num_units: of the kind. largest: the one that needs the most memory.
    num_bytes: that it needs beside the weights, on all GPUs of a replica.
    num_fitting: how many like it a replica works on at a time.
    """

    name: str
    num_units: int
    largest: BatchShape
    num_bytes: int
    num_fitting: int


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What of a plan fits into the GPUs of a replica.

    num_gpus: below 1: the share of one.
    usable: bytes for weights and batches, on all of them. weights: of the whole model, in bytes.
    """

    gpu_name: str
    gpu: Gpu
    num_gpus: float
    usable: int
    weights: int
    kinds: tuple[Kind, ...]


def print_memory(
    plan: pa.Table, job: Job, memory: ModelMemory, gpu: str | None, console: Console
) -> None:
    """Print how many units fit into a GPU at a time: the one that is named, or this machine's.

    gpu: a name, or gigabytes; None: this machine's, or nothing without one.

    Raises:
        JobFileError: there is no such GPU.
        ResourceError: the model, or a unit, does not fit into the GPU that is named; only a
            warning if it is not known what the weights take.
    """
    is_on_cpu = job.model.device == "cpu" or job.resources.gpus_per_replica == 0
    local = local_gpu() if gpu is None and not is_on_cpu else None
    if job.model.engine == "simulated" or (gpu is None and local is None):
        return
    name, found = local if local else (str(gpu), gpu_by_name(str(gpu)))
    fit = fit_plan(plan, job, memory, name, found)
    _print(fit, job, memory, console)
    if problem := _problem(fit, job):
        if memory.unknown_method is not None:
            problem += (
                f"; this counts the weights as if they were not quantised, since what "
                f"{memory.unknown_method} makes of them is not known"
            )
        elif gpu is not None:
            raise ResourceError(problem)
        console.print(Text(one_line(problem)), style="yellow", soft_wrap=True)


def fit_plan(plan: pa.Table, job: Job, memory: ModelMemory, name: str, gpu: Gpu) -> Fit:
    """Find how many units of each kind of a plan fit into a GPU.

    plan: UNIT rows. name: of the GPU, for messages.
    """
    longest = max((question.max_new_tokens for question in job.questions()), default=0)
    answer_tokens = min(START_ANSWER_TOKENS, longest)
    done = plan.filter(pc.not_equal(plan["status"], pa.scalar(UnitStatus.FAILED.value)))
    media = pc.struct_field(done["media"], "media_type")
    of_run, kinds = largest_media([done]), []
    for kind in ("image", "video", "conversation"):
        is_kind = pc.is_null(media) if kind == "conversation" else pc.equal(media, pa.scalar(kind))
        units = done.filter(is_kind)
        if units.num_rows:
            largest = _largest(units, answer_tokens)
            if job.model.engine == "vllm":
                num_bytes, count = _in_vllm(largest, of_run, job.model.vllm, memory, (name, gpu))
            else:
                num_bytes, count = _in_transformers(largest, job, memory, gpu)
            kinds.append(
                Kind(
                    name=kind,
                    num_units=units.num_rows,
                    largest=largest,
                    num_bytes=num_bytes,
                    num_fitting=count,
                )
            )
    num_gpus, vllm = gpu_share(job.resources.gpus_per_replica), job.model.vllm
    usable = usable_bytes(gpu.memory_bytes, num_gpus)
    if job.model.engine == "vllm":
        num_gpus = vllm.gpus
        usable = int(num_gpus * gpu.memory_bytes * vllm.gpu_memory_utilization)
    return Fit(
        gpu_name=name,
        gpu=gpu,
        num_gpus=num_gpus,
        usable=usable,
        weights=memory.weight_bytes,
        kinds=tuple(kinds),
    )


def _largest(units: pa.Table, answer_tokens: int) -> BatchShape:
    """The unit with the most tokens, its branches padded to the longest."""
    prompts = units["prompts"]
    counts = pc.list_value_length(prompts).to_numpy()
    own = np.zeros(units.num_rows, np.int64)
    values = pc.struct_field(pc.list_flatten(prompts), "num_own_tokens").to_numpy()
    np.maximum.at(own, pc.list_parent_indices(prompts).to_numpy(), values)
    shared = units["num_shared_tokens"].to_numpy()
    k = int(np.argmax(shared + counts * (own + answer_tokens)))
    vision = features(units.slice(k, 1), {})[0, 0]
    return BatchShape(
        num_roots=1,
        prefix_tokens=int(shared[k]),
        num_branches=int(counts[k]),
        suffix_tokens=int(own[k]),
        answer_tokens=answer_tokens,
        num_patches=int(vision) * MERGE_SIZE**2,
    )


def _in_vllm(
    unit: BatchShape,
    of_run: LargestMedia,
    settings: Vllm,
    memory: ModelMemory,
    card: tuple[str, Gpu],
) -> tuple[int, int]:
    """Bytes that a unit needs beside the weights, and how many vLLM works on at a time.

    of_run: what vLLM reserves memory for. card: name and size.
    """
    sizes = VllmSizes.on(*card, settings, has_videos=of_run.video_tokens > 0)
    item_tokens = max(of_run.image_tokens, of_run.video_tokens)
    reserved = vllm_pass_bytes(memory, sizes.step_tokens, item_tokens)
    tokens = vllm_cache_tokens(memory, card[1], settings, reserved)
    of_answers = max(1, sizes.num_seqs // unit.num_branches)
    # Whether it keeps a prefix for the next prompt depends on the engine: counted as if it did not.
    shape = _each_alone(unit) if memory.is_hybrid else unit
    states = shape.num_roots * shape.num_branches * memory.state_bytes
    of_unit = shape.cached_tokens + math.ceil(states / memory.token_bytes)
    num_bytes = settings.gpus * reserved + shape.cached_tokens * memory.token_bytes + states
    return num_bytes, max(0, min(tokens // of_unit, of_answers))


def _each_alone(unit: BatchShape) -> BatchShape:
    """A unit whose branches have copies of its prefix."""
    return dataclasses.replace(unit, num_roots=unit.num_branches, num_branches=1)


def _in_transformers(unit: BatchShape, job: Job, memory: ModelMemory, gpu: Gpu) -> tuple[int, int]:
    """Bytes that a unit needs beside the weights, and how many are in a batch.

    A number of ``resources.max_batch_tokens`` limits a batch, but no unit is too large for it: the
    engine divides its branches. A unit with copies of its prefix is divided, too, as of models with
    linear layers.
    """
    usable = usable_bytes(gpu.memory_bytes, gpu_share(job.resources.gpus_per_replica))
    left = usable - memory.weight_bytes
    limit = job.resources.max_batch_tokens
    shape, smallest = unit, unit
    if copies_prefix(job.model) or memory.is_hybrid:
        shape = _each_alone(unit)
        smallest = dataclasses.replace(shape, num_roots=1)
    count = num_fitting(memory, shape, left)
    if not count:
        shape, count = smallest, min(1, num_fitting(memory, smallest, left))
    if limit != "auto":
        count = min(count, max(1, limit // shape.cached_tokens))
    return memory.batch_bytes(shape), count


def _problem(fit: Fit, job: Job) -> str | None:
    """Why the plan cannot be done on the GPU, with what to do; None if it can."""
    gpu = f"{fit.gpu_name} ({fit.gpu.memory_bytes / _GB:.0f} GB)"
    if fit.num_gpus != 1:
        gpu = f"{fit.num_gpus:g} x {gpu}"
    more = f"`model.vllm.tensor_parallel_size: {2 * job.model.vllm.gpus}`"
    if fit.num_gpus < 1:
        more = "`resources.gpus_per_replica: 1`"
    elif job.model.engine != "vllm":
        more = f"`model.engine: vllm` with {more}"
    if fit.weights >= fit.usable:
        return (
            f"the model does not fit into {gpu}: its weights take {fit.weights / _GB:.1f} GB, "
            f"and {fit.usable / _GB:.1f} GB can be used; take a smaller or FP8 checkpoint, "
            f"a GPU with more memory, or {more}"
        )
    over = next((kind for kind in fit.kinds if not kind.num_fitting), None)
    if over is None:
        return None
    return (
        f"the largest {over.name} of the plan, of {over.largest.cached_tokens:,} tokens, does not "
        f"fit into {gpu}: it needs {over.num_bytes / _GB:.1f} GB, and beside "
        f"{fit.weights / _GB:.1f} GB of weights {(fit.usable - fit.weights) / _GB:.1f} GB "
        "are left; lower `budget` or `sampling.segmentation.seconds`, take a smaller checkpoint, "
        f"a GPU with more memory, or {more}"
    )


def _print(fit: Fit, job: Job, memory: ModelMemory, console: Console) -> None:
    engine = "vllm" if job.model.engine == "vllm" else "transformers"
    of_each = f"{fit.num_gpus:g} x " if fit.num_gpus != 1 else ""
    title = f"memory of {of_each}{fit.gpu_name}, {fit.gpu.memory_bytes / _GB:.0f} GB, {engine}"
    grid = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for name in ("", "units", "tokens of the largest", "GB for it", "such units at a time"):
        grid.add_column(name, justify="left" if not name else "right")
    for kind in fit.kinds:
        tokens = kind.largest.cached_tokens
        needed = f"{kind.num_bytes / _GB:.2f}"
        cells = (f"{kind.num_units:,}", f"{tokens:,}", needed, f"{kind.num_fitting:,}")
        grid.add_row(kind.name, *cells)
    console.print(grid)
    lines = _remarks(fit, memory)
    if engine == "transformers":
        lines += ("Batches are formed within blocks, which have at most 512 MB of frames.",)
    for line in lines:
        console.print(Text(f"  {line}"), soft_wrap=True)


def _remarks(fit: Fit, memory: ModelMemory) -> tuple[str, ...]:
    usable, weights = fit.usable / _GB, fit.weights / _GB
    of_answer = ""
    if memory.is_hybrid:
        of_answer = f", and an answer {memory.state_bytes / 1e6:.1f} MB of state"
    return (
        f"Weights take {weights:.1f} GB; {max(0.0, usable - weights):.1f} of {usable:.1f} GB are "
        f"left for batches. A token takes {memory.token_bytes / 1000:.1f} KB of cache{of_answer}.",
        f"Answers count with {START_ANSWER_TOKENS} tokens, or their maximum if that is less; the "
        "engine learns their length. By arithmetic, not measured on a GPU.",
    )
