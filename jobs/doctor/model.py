"""Check the job's checkpoint: found without a download, whole, and small enough for the engines."""

import importlib.util
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.console.output_path import absolute_uri
from jobs.doctor.finding import Finding, State, Warn, checked, finding
from jobs.doctor.judge import gib
from jobs.doctor.machine import Facts
from jobs.plan.embedding import with_embedding
from pipeline.model.checkpoint import Checkpoint, check_engine, inspect_checkpoint
from pipeline.model.memory import CPU_BATCH_TOKENS, gpu_share, usable_bytes
from pipeline.model.prompter import Prompter
from pipeline.model.reasoning import with_reasoning
from schemas.errors import ModelError
from schemas.extras import install_command
from schemas.job.job import Job
from schemas.job.model import Model

_SECONDS = 120.0
"""Deadline: each weight file is opened, maybe over a network."""

_HUB_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class Found:
    """A checkpoint on this machine.

    dtype: the configuration's, or None.
    """

    folder: Path
    checkpoint: Checkpoint
    prompter: Prompter
    dtype: str | None


def model_findings(job: Job) -> tuple[list[Finding], Found | None]:
    """Check the checkpoint, its tokenizer and the adapter; nothing is downloaded.

    Returns the findings, and the checkpoint if it is whole.
    """
    folders: list[Path] = []
    checkpoints: list[Checkpoint] = []
    prompters: list[Prompter] = []
    model = job.model

    def locate() -> str:
        folders.append(_local_folder(model.source, model.revision, "model.source"))
        return str(folders[0])

    def inspect() -> str:
        here = model.model_copy(
            update={"source": str(folders[0]), "revision": None, "adapter": None}
        )
        found = inspect_checkpoint(here)
        check_engine(found, model)
        with_embedding(job, found, folders[0])
        checkpoints.append(found)
        size = gib(found.memory.weight_bytes)
        return f"{found.model_type}, context of {found.max_model_len:,} tokens, {size} of weights"

    def tokenize() -> str:
        prompter = Prompter(str(folders[0]), None, job.generation.reasoning)
        with_reasoning(job, prompter.template_reasoning)
        prompters.append(prompter)
        return "tokenizer and chat template load"

    found = [checked("model", "found", locate)]
    if folders:
        found.append(checked("model", "whole", inspect, seconds=_SECONDS))
        found += [
            finding("model", "budget", State.WARNING, line)
            for checkpoint in checkpoints
            for line in checkpoint.processors.exceeded(job.budget)
        ]
        found.append(checked("model", "tokenizer", tokenize, seconds=_SECONDS))
    if model.adapter is not None:
        found.append(checked("model", "adapter", lambda: _check_adapter(model)))
    if not (checkpoints and prompters):
        return found, None
    return found, Found(
        folder=folders[0],
        checkpoint=checkpoints[0],
        prompter=prompters[0],
        dtype=_dtype(folders[0]),
    )


def _local_folder(source: str, revision: str | None, key: str) -> Path:
    """Return the folder of a checkpoint or adapter: its own, or that in the hub's cache.

    Raises:
        ModelError: there is none, and none can be downloaded.
        Warn: there is none, and the run will download it.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return Path(absolute_uri(source))
    if source.startswith(("/", ".", "~")):
        raise ModelError(f"{key}: there is no folder {source}")
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(source, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        pass
    except ValueError as error:
        raise ModelError(f"{key} {source!r} is no folder and no hub id: {error}") from None
    missing = f"{source} is not in this machine's cache ({constants.HF_HUB_CACHE})"
    if constants.HF_HUB_OFFLINE:
        raise ModelError(
            f"{missing}, and HF_HUB_OFFLINE is set: download it where there is a network, copy it "
            f"here, and set {key} to its folder"
        )
    raise Warn(f"{missing}: each machine will download it{_on_the_hub(source, revision, key)}")


def _on_the_hub(source: str, revision: str | None, key: str) -> str:
    """How much is to be downloaded, by the hub's own list; no file is fetched.

    Raises:
        ModelError: the hub does not have it, refuses it, or does not answer; or the disk is too
            small for it.
    """
    from huggingface_hub import HfApi, constants

    try:
        info = HfApi().model_info(
            source, revision=revision, files_metadata=True, timeout=_HUB_SECONDS
        )
    except Exception as error:  # of the hub, or of its HTTP library, which is not always the same
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"{key}: {source} is not in this machine's cache, and the hub does not give it "
            f"({reason}): correct {key}, set HF_TOKEN if it is gated, or set a folder"
        ) from None
    size = sum(file.size or 0 for file in info.siblings or ())
    free = _free_bytes(Path(constants.HF_HUB_CACHE))
    if size > free:
        raise ModelError(
            f"{key}: {source} is to be downloaded, {gib(size)}, and {gib(free)} are free in "
            f"{constants.HF_HUB_CACHE}: remove files there, or set HF_HOME to a larger disk"
        )
    return f", {gib(size)}" if size else ""


def _free_bytes(folder: Path) -> int:
    """Free bytes of the disk that a folder is on, or will be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _check_adapter(model: Model) -> str:
    assert model.adapter is not None
    folder = _local_folder(model.adapter, None, "model.adapter")
    config = folder / "adapter_config.json"
    if not config.exists():
        raise ModelError(
            f"model.adapter: {folder} is not an adapter: it has no adapter_config.json"
        )
    rank = json.loads(config.read_text(encoding="utf-8")).get("r")
    from safetensors import SafetensorError, safe_open

    weights = folder / "adapter_model.safetensors"
    try:
        with safe_open(weights, framework="np") as opened:
            num_tensors = len(opened.keys())
    except (SafetensorError, OSError) as error:
        raise ModelError(f"model.adapter: {weights} cannot be read: {error}") from None
    if model.engine == "transformers" and importlib.util.find_spec("peft") is None:
        raise ModelError(f"model.adapter needs the package peft: {install_command('finetune')}")
    return f"{folder}, rank {rank}, {num_tensors} tensors"


def _dtype(folder: Path) -> str | None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for part in (config, config.get("text_config") or {}):
        if name := part.get("dtype") or part.get("torch_dtype"):
            return str(name)
    return None


def memory_findings(job: Job, found: Found, machines: Sequence[Facts]) -> Iterator[Finding]:
    """Compare the weights with the memory of one engine's devices: the smallest that there are."""
    if job.model.engine == "simulated":
        return
    memory = found.checkpoint.memory
    need, gpus_each = memory.weight_bytes, job.resources.gpus_per_replica
    gpus = [gpu for facts in machines for gpu in facts.gpus if gpu.memory_bytes]
    if gpus and job.model.device != "cpu" and gpus_each != 0:
        smallest = min(gpus, key=lambda gpu: gpu.memory_bytes)
        count, vllm = gpu_share(gpus_each), job.model.vllm
        have = usable_bytes(smallest.memory_bytes, count)
        if job.model.engine == "vllm":
            count = vllm.gpus
            have = int(count * smallest.memory_bytes * vllm.gpu_memory_utilization)
        tokens = (have - need) // memory.token_bytes
        where = f"{count:g} x {smallest.name}, of which {gib(have)} may be used"
        advice = "take a smaller or quantised model, a larger GPU, or split it with "
        advice += "`model: {engine: vllm, vllm: {tensor_parallel_size: 2}}`"
    else:
        known = [facts.memory_bytes for facts in machines if facts.memory_bytes]
        if not known:
            return
        have = min(known)
        tokens = usable_bytes(have - need, device="cpu") // memory.token_bytes
        if job.model.engine != "vllm":
            tokens = min(tokens, CPU_BATCH_TOKENS)
        where = f"{gib(have)} of the machine's memory"
        advice = "take a smaller model, or a machine with more memory"
    text = f"weights of {gib(need)} in {where}"
    if need >= have:
        yield finding("model", "fits", State.TO_DO, f"{text} leave no room to answer: {advice}")
    else:
        more = f"the rest is for media and answers, at most {tokens:,} tokens of cache"
        yield finding("model", "fits", State.OK, f"{text}; {more}; `plan --gpu` counts units")


def assumed_of_model(job: Job, found: Found) -> Iterator[tuple[str, Any]]:
    """Values that the checkpoint gives to settings which the job leaves open."""
    if job.model.dtype == "auto" and found.dtype:
        yield "model.dtype", found.dtype
    if job.model.max_model_len is None:
        yield "model.max_model_len", found.checkpoint.max_model_len
