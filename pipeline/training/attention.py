"""Attention of a packed row in training: no mask of the row's length squared.

A row of 24,000 tokens would have a mask of 576 MB, and each layer would compute all of it. Here
each sample attends by itself: what its branches share is plain causal attention, for which torch
has kernels without a mask, and only the branches, some hundred tokens, have a mask.

A linear layer has a state and no mask. It reads each conversation by itself: what branches share
again for each of them.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

BRANCHED = "branched_sdpa"
"""The implementation's name in transformers."""

IMPLEMENTATION = {"": "sdpa", "text_config": BRANCHED, "vision_config": "sdpa"}
"""``attn_implementation`` of a model in training, for each part of its configuration."""

Span = tuple[int, ...]
"""A sample's place in the row: where it begins, where its root ends, where each branch ends."""


def branched_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attend in each sample of a row by itself.

    query: float [1, heads, L, D].
    key, value: float [1, key heads, L, D].
    attention_mask: none; transformers makes none for this implementation.
    options: spans (a Span for each sample, which together cover the row), branch_masks (bool
        [branches, sample] for each sample, see ``branch_mask``), scaling, dropout.

    Returns float [1, L, heads, D].

    Source: the tree mask of packed branches with a shared prefix, as in tree attention (SpecInfer,
    arXiv 2305.09781); grouped-query attention, arXiv 2305.13245.
    """
    common = {"scale": options.get("scaling"), "dropout_p": options.get("dropout", 0.0)}
    parts = []
    for span, mask in zip(options["spans"], options["branch_masks"], strict=True):
        begin, root_end, end = span[0], span[1], span[-1]
        q, k, v = (states[:, :, begin:root_end] for states in (query, key, value))
        is_cast = torch.is_autocast_enabled(query.device.type)
        if query.dtype == torch.float32 and not is_cast:
            # CUDA's kernel with fewer key heads takes no float32: all scores would be in memory.
            parts.append(_grouped(q, k, v, common | {"is_causal": True}))
        else:
            gqa = query.shape[1] != key.shape[1]
            parts.append(
                scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=gqa, **common)
            )
        if root_end < end:
            keys, values = key[:, :, begin:end], value[:, :, begin:end]
            masked = common | {"attn_mask": mask}
            parts.append(_grouped(query[:, :, root_end:end], keys, values, masked))
    return torch.cat(parts, dim=2).transpose(1, 2), None


def _grouped(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: dict[str, Any]
) -> torch.Tensor:
    """Attention in which the query heads of a key head become a batch, so no key is copied."""
    _, heads, length, size = query.shape
    key_heads = key.shape[1]
    groups = heads // key_heads
    output = scaled_dot_product_attention(
        query.view(key_heads, groups, length, size).transpose(0, 1),
        key.expand(groups, -1, -1, -1),
        value.expand(groups, -1, -1, -1),
        **options,
    )
    return output.transpose(0, 1).reshape(1, heads, length, size)


def branch_mask(branches: torch.Tensor, span: Span) -> torch.Tensor:
    """Which tokens of a sample each token of its branches sees: bool [branches, sample].

    branches: integers [L], the row's branch numbers, on the device where the mask is wanted.
    """
    begin, root_end, end = span[0], span[1], span[-1]
    place = torch.arange(begin, end, device=branches.device)
    query, key = branches[root_end:end, None], branches[None, begin:end]
    is_earlier = place[None] <= place[root_end - begin :, None]
    return is_earlier & ((query == key) | (place < root_end)[None])


def branch_masks(branches: torch.Tensor, spans: Sequence[Span]) -> tuple[torch.Tensor, ...]:
    """The mask of each sample of a row, once for all layers."""
    return tuple(branch_mask(branches, span) for span in spans)


def separate_conversations(model: torch.nn.Module) -> None:
    """Let a model's linear layers read each conversation of a row by itself, from ``spans``."""
    for module in model.modules():
        layer = getattr(module, "linear_attn", None)
        if layer is not None:
            layer.forward = partial(_each_alone, layer.forward)


def _each_alone(
    forward: Callable[..., torch.Tensor],
    hidden_states: torch.Tensor,
    *,
    spans: Sequence[Span] = (),
    branch_masks: Any = None,
    **options: Any,
) -> torch.Tensor:
    """Run a linear layer on a row, float [1, L, width]: on each root with each of its branches."""
    if not spans:
        return forward(hidden_states, **options)
    assert options.get("attention_mask") is None, "a row has no padding"
    options["cache_params"] = None  # it would carry the state from one conversation to the next
    parts = []
    for begin, *ends in spans:
        root = hidden_states[:, begin : ends[0]]
        branches = [hidden_states[:, a:b] for a, b in pairwise(ends) if a < b]
        if not branches:
            parts.append(forward(root, **options))
        for k, branch in enumerate(branches):
            found = forward(torch.cat([root, branch], dim=1), **options)
            parts.append(found[:, root.shape[1] :] if k else found)
    return torch.cat(parts, dim=1)


AttentionInterface.register(BRANCHED, branched_attention)
