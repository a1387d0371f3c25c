"""Attention and a key-value cache for short decoding steps behind a long prefix.

With a mask, transformers' own attention repeats keys and values for each query head, and its cache
copies everything for each new token. Behind a long prefix these copies take most of a step.
"""

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

GROUPED = "grouped_sdpa"
_SPARE_STEPS = 64


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
    attention_mask: bool [B, 1, L, K]; None is causal.

    Returns float [B, L, heads, D]. Falls back to transformers' function for a prefill, without a
    mask, or where each query head has its own key head.

    Source: grouped-query attention, arXiv 2305.13245.
    """
    batch, heads, length, size = query.shape
    groups = heads // key.shape[1]
    if attention_mask is None or groups == 1 or length == key.shape[2]:
        found: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return found
    output = torch.nn.functional.scaled_dot_product_attention(
        query.reshape(batch, heads // groups, groups * length, size),
        key,
        value,
        attn_mask=attention_mask.repeat(1, 1, groups, 1),
        scale=scaling,
    )
    return output.reshape(batch, heads, length, size).transpose(1, 2), None


AttentionInterface.register(GROUPED, grouped_attention)
AttentionMaskInterface.register(GROUPED, sdpa_mask)


class PreallocatedLayer(DynamicLayer):  # type: ignore[misc]  # transformers is untyped
    """A layer's cached keys and values, with spare space: a new token is written in place."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Begin with keys and values, float [B, key heads, L, D]; they are never written to.

        The first update copies them.
        """
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values
        self._buffers: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append keys and values of new tokens; return those of all tokens."""
        begin, new = self.keys.shape[2], key_states.shape[2]
        if self._buffers is None or self._buffers[0].shape[2] < begin + new:
            self._buffers = (self._with_space(self.keys, new), self._with_space(self.values, new))
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, begin : begin + new] = states
        self.keys, self.values = (buffer[:, :, : begin + new] for buffer in self._buffers)
        return self.keys, self.values

    def select(self, rows: torch.Tensor, columns: torch.Tensor) -> None:
        """Keep only these rows and these tokens."""
        self.keys = self.keys[rows].index_select(2, columns)
        self.values = self.values[rows].index_select(2, columns)
        self._buffers = None

    @staticmethod
    def _with_space(states: torch.Tensor, new: int) -> torch.Tensor:
        batch, heads, length, size = states.shape
        # At most 8 tokens a step: the first update may append a whole prompt.
        buffer = states.new_empty(batch, heads, length + new + _SPARE_STEPS * min(new, 8), size)
        buffer[:, :, :length] = states
        return buffer
