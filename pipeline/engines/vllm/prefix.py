"""How much of the beginning that a unit's prompts share vLLM computes only once.

vLLM keeps keys and values of a prompt in blocks, and a later prompt that begins with the same
blocks does not read them again: its prefix cache. With attention alone a block has 16 tokens. A
linear layer has one state for all tokens before, so it can only be continued where that state was
kept: vLLM keeps it at the end of the last whole block of a prompt, and makes the blocks so long
that one holds as many bytes as a state, 500 to 2,000 tokens. What is shorter is read for each
task. Where the first prompt has its last whole block behind the shared beginning, the second one
reads all; vLLM sees that both begin alike, and keeps the second one's state there for the others.
Importing this module does not import vLLM.

Source: ``_align_hybrid_block_size``, ``MambaManager`` and ``_mamba_block_aligned_split`` of vLLM
0.32.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from pipeline.model.checkpoint import load_config
from pipeline.model.family import Family, family_of
from schemas.job.engines import Vllm
from schemas.job.model import Model

TokensT = TypeVar("TokensT", int, np.ndarray[Any, np.dtype[Any]])
"""A number of tokens, or an array of them."""

_KERNEL_TOKENS = 16
"""Blocks are a multiple of this on a GPU: what vLLM's attention kernels take there."""


@dataclass(frozen=True, kw_only=True)
class KeptPrefix:
    """What an engine keeps of the beginning that the prompts of a unit share.

    block_tokens: whole blocks of this length are kept, in tokens; 1: all of it; None: nothing.
    has_states: linear layers are continued only from the end of a prompt's last whole block.
    """

    block_tokens: int | None = 1
    has_states: bool = False

    def num_read_again(
        self, prefix_tokens: TokensT, shortest_tokens: TokensT, num_prompts: TokensT
    ) -> TokensT:
        """Tokens of a shared beginning that the prompts after the first one read again, together.

        prefix_tokens: of the beginning; the text that prompts may share after the media is not
            known to the plan, and not counted.
        shortest_tokens: of the whole prompt that is read first, the shortest one. With states, one
            that vLLM reads in several parts may leave more of them than are counted here.
        """
        further: TokensT = num_prompts - 1
        again: TokensT = further * prefix_tokens
        if self.block_tokens is None:
            return again
        kept = prefix_tokens // self.block_tokens * self.block_tokens
        again = again - further * kept
        if not self.has_states:
            return again
        # One token at least is read, so a prompt of whole blocks has its state a block earlier.
        state_at = (shortest_tokens - 1) // self.block_tokens * self.block_tokens
        is_missed = (state_at > prefix_tokens) & (further > 0)
        again = again + is_missed * kept
        return again

    def __str__(self) -> str:
        if self.block_tokens is None:
            return "no prefix cache"
        return f"prefix cache in blocks of {self.block_tokens:,} tokens"


def kept_by(cache_config: Any) -> KeptPrefix:
    """What an engine that runs keeps, by its own configuration.

    cache_config: vLLM's ``CacheConfig`` after the start, when its blocks have their final size.
    """
    if not cache_config.enable_prefix_caching:
        return KeptPrefix(block_tokens=None)
    return KeptPrefix(
        block_tokens=int(cache_config.block_size),
        has_states=cache_config.mamba_cache_mode == "align",
    )


def prefix_caching(own: Vllm, family: Family) -> bool | None:
    """Whether vLLM is started with its prefix cache; None: as vLLM decides for the model.

    With attention alone it is on. With linear layers vLLM's own default counts: it was off in
    versions where it had faults. With speculative decoding it is off for them, because the states
    that were kept were wrong (vllm#53912). The job's ``engine_args`` come first.
    """
    args = own.engine_args
    if args.get("enable_prefix_caching") is not None:
        return bool(args["enable_prefix_caching"])
    if not family.is_hybrid:
        return True
    return False if args.get("speculative_config") else None


def planned_prefix(model: Model) -> KeptPrefix:
    """What the job's engine will keep, before it runs.

    For vLLM with linear layers, by the arithmetic with which vLLM sizes its blocks, and if its
    default is that of 0.32, where the cache is on. What runs may differ: its ``engine`` says it.

    Raises:
        OSError, ValueError: there is no such checkpoint.
    """
    if model.engine != "vllm":
        return KeptPrefix()
    config = load_config(model.source, model.revision, model.yarn).to_dict()
    family = family_of(config)
    if prefix_caching(model.vllm, family) is False:
        return KeptPrefix(block_tokens=None)
    if not family.is_hybrid:
        return KeptPrefix()  # all but 15 tokens
    return KeptPrefix(block_tokens=block_tokens(model, config["text_config"]), has_states=True)


def block_tokens(model: Model, text: Mapping[str, Any]) -> int:
    """Tokens of a block of vLLM's cache on a GPU, for a model with linear layers.

    text: the configuration of its language model.

    The bytes of a full layer's keys and values for these tokens are at least those of a linear
    layer's state: the last inputs of its convolution, and a matrix for each value head.
    """
    own, args = model.vllm, model.vllm.engine_args
    speculated = (args.get("speculative_config") or {}).get("num_speculative_tokens") or 0
    value_bytes = 4 if model.dtype == "float32" else 2
    state_type = args.get("mamba_ssm_cache_dtype") or text.get("mamba_ssm_dtype")
    state_bytes = 4 if state_type == "float32" else value_bytes
    cache_bytes = 1 if str(args.get("kv_cache_dtype", "")).startswith("fp8") else value_bytes
    keys = text["linear_num_key_heads"] * text["linear_key_head_dim"]
    values = text["linear_num_value_heads"] * text["linear_value_head_dim"]
    num_inputs = text["linear_conv_kernel_dim"] - 1 + speculated
    inputs = num_inputs * (2 * keys + values) * value_bytes
    state = values * text["linear_key_head_dim"] * state_bytes
    heads = max(1, text["num_key_value_heads"] // own.tensor_parallel_size)
    of_token = int(2 * heads * text["head_dim"]) * cache_bytes
    step = max(_KERNEL_TOKENS, int(args.get("block_size") or 0))
    of_state = int(inputs + state) // own.tensor_parallel_size
    return step * math.ceil(of_state / (step * of_token))
