"""Attention of the language model behind a long prefix, and of the vision tower over equal frames.

transformers' own functions repeat keys and values for each query head where there is a mask, and
call attention once for each frame pair of a video.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

GROUPED = "grouped_sdpa"
"""``attn_implementation`` of the language model: ``grouped_attention``."""
FRAMES = "frames_sdpa"
"""``attn_implementation`` of the vision tower: ``frames_attention``."""
MAX_BIAS = 2**28
"""Elements of the bias of a pass of several tokens: 512 MB in bfloat16."""


def grouped_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Grouped-query attention without copies: the query heads of a key head become more queries.

    query: float [B, heads, L, D].
    key, value: float [B, key heads, K, D].
    attention_mask: ``bias`` of the same dtype, float [B, 1, heads / key heads * L, K]. None is
        causal, where the last query sees the last key: L < K is a later chunk of a prompt.

    Returns float [B, L, heads, D].

    Source: grouped-query attention, arXiv 2305.13245.
    """
    batch, heads, length, size = query.shape
    groups = heads // key.shape[1]
    if attention_mask is not None:
        output = scaled_dot_product_attention(
            query.reshape(batch, heads // groups, groups * length, size),
            key,
            value,
            attn_mask=attention_mask,
            scale=scaling,
        )
        return output.reshape(batch, heads, length, size).transpose(1, 2), None
    is_later_chunk = 1 < length < key.shape[2]
    output = scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=causal_lower_right(length, key.shape[2]) if is_later_chunk else None,
        is_causal=length == key.shape[2],
        scale=scaling,
        enable_gqa=groups > 1,
    )
    return output.transpose(1, 2), None


def frames_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None = None,
    frames: Sequence[tuple[int, int]] | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention within each frame; frames of equal size that follow each other are one batch.

    query, key, value: float [1, heads, N, D].
    frames: (number of frames, patches of each), of each run of equal frames. None is one frame.

    Returns float [1, N, heads, D].
    """
    outputs = []
    begin = 0
    for run in frames or [(1, query.shape[2])]:
        end = begin + run[0] * run[1]
        of_run = (each[0, :, begin:end] for each in (query, key, value))
        q, k, v = (each.view(len(each), *run, -1).transpose(0, 1) for each in of_run)
        output = scaled_dot_product_attention(q, k, v, scale=scaling)
        outputs.append(output.transpose(1, 2).flatten(0, 1))
        begin = end
    return torch.cat(outputs)[None], None


def takes_causal_flag(attn_implementation: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a later chunk of a prompt needs no mask: the kernel takes a flag in place of it.

    Elsewhere, torch would make the mask in each layer, and keep the scores of all heads in memory.
    """
    if attn_implementation == "sdpa":
        return device.type == "cuda" and dtype != torch.float32
    return attn_implementation == "flash_attention_2"


def _no_mask(*args: Any, attention_mask: torch.Tensor | None = None, **kwargs: Any) -> None:
    """transformers asks for this mask where it was given none of four dimensions."""
    assert attention_mask is None, f"{GROUPED} takes the mask that `bias` makes"


AttentionInterface.register(GROUPED, grouped_attention)
AttentionMaskInterface.register(GROUPED, _no_mask)
AttentionInterface.register(FRAMES, frames_attention)


def bias(mask: torch.Tensor, dtype: torch.dtype, groups: int) -> torch.Tensor:
    """What attention adds to its scores: 0 where ``mask`` is true, else the dtype's minimum.

    Made once for all layers. -inf would give NaN where padding sees nothing.

    mask: bool [B, L, K].
    groups: query heads of a key head for ``grouped_attention``; 1 for transformers' own functions.

    Returns float [B, 1, groups * L, K].
    """
    found = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    found.masked_fill_(~mask, torch.finfo(dtype).min)
    return found.repeat(1, groups, 1)[:, None]
