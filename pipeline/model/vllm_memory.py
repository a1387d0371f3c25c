"""Predict what vLLM's cache holds, and the sizes that vLLM starts with. By arithmetic alone."""

import math
from dataclasses import dataclass

from pipeline.model.frame_size import MERGE_SIZE
from pipeline.model.memory import ModelMemory
from pipeline.model.sizes import Gpu
from schemas.job.engines import Vllm

_VIDEO_SEQS = 256
"""Answers at a time if a run has videos: the cache holds some dozens of them, and vLLM reserves
memory for the logits of each answer."""

_LARGE_CARD = 70 << 30


@dataclass(frozen=True, kw_only=True)
class VllmSizes:
    """What vLLM has at a time on a card.

    step_tokens: that a step reads or generates at most. num_seqs: answers at a time at most.
    """

    step_tokens: int
    num_seqs: int

    @classmethod
    def on(cls, gpu_name: str, gpu: Gpu, settings: Vllm, *, has_videos: bool) -> "VllmSizes":
        """The job's own sizes, or vLLM's for offline work: larger from 70 GiB, but on no A100."""
        is_large = gpu.memory_bytes >= _LARGE_CARD and "a100" not in gpu_name.lower()
        step_tokens = settings.max_num_batched_tokens or (16_384 if is_large else 8192)
        num_seqs = given_num_seqs(settings, has_videos=has_videos) or (1024 if is_large else 256)
        return cls(step_tokens=step_tokens, num_seqs=min(num_seqs, step_tokens))


def given_num_seqs(settings: Vllm, *, has_videos: bool) -> int | None:
    """Answers at a time that vLLM gets as its argument; None: its own number, by the card."""
    return settings.max_num_seqs or (_VIDEO_SEQS if has_videos else None)


def vllm_pass_bytes(memory: ModelMemory, step_tokens: int, item_tokens: int) -> int:
    """Bytes that vLLM keeps free on each GPU, beside weights and cache.

    item_tokens: vision tokens of the run's largest image or video. vLLM encodes it in one pass
        while it starts, however large it is.
    """
    num_patches = item_tokens * MERGE_SIZE**2
    passes = max(memory.activation_bytes(step_tokens), memory.vision_bytes(num_patches, None))
    return passes + memory.feature_bytes(num_patches)


def vllm_cache_tokens(memory: ModelMemory, gpu: Gpu, settings: Vllm, pass_bytes: int) -> int:
    """Tokens of the cache that vLLM has room for, on all GPUs of a replica; negative: none.

    The states of linear layers lie in the same memory: an answer's takes as much as some tokens.

    pass_bytes: of ``vllm_pass_bytes``.

    Each GPU holds its part of the language model and of its cache; the vision tower counts whole.
    """
    text, gpus = memory.size.text, settings.gpus
    vision = memory.size.vision.parameters * memory.value_bytes
    weights = (memory.weight_bytes - vision) / gpus + vision
    left = gpu.memory_bytes * settings.gpu_memory_utilization - weights - pass_bytes
    # A key head is on one GPU at least; more GPUs than key heads hold copies.
    heads = max(1, text.key_heads // settings.tensor_parallel_size) / text.key_heads
    of_token = memory.token_bytes * heads / settings.pipeline_parallel_size
    if str(settings.engine_args.get("kv_cache_dtype", "")).startswith("fp8"):
        of_token /= memory.value_bytes
    return math.floor(left / of_token)
