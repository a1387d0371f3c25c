"""Attention and its cache for steps that are much shorter than what they look back at.

transformers' own attention repeats keys and values for each query head where a mask is given, and
its cache copies all it has with every token; with a long prefix these are most of a step.
"""

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

GROUPED = "grouped_sdpa"
_ROOM_STEPS = 64


def grouped_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Scaled dot product attention in which the query heads of a key head are more queries of it.

    query: [B, heads, L, D]. key, value: [B, key heads, keys, D]. attention_mask: bool
    [B, 1, L, keys]. Returns [B, L, heads, D]. Where there is nothing to gain it is transformers'.
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


class RoomyLayer(DynamicLayer):
    """A layer's keys and values, with room ahead: a token is written, nothing is copied."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Begin with keys and values of other tokens: [B, key heads, L, D]; they stay as they are.

        They are read until the first update copies them.
        """
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values
        self._buffers: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append tokens, and return all there are."""
        begin, new = self.keys.shape[2], key_states.shape[2]
        if self._buffers is None or self._buffers[0].shape[2] < begin + new:
            self._buffers = (self._roomy(self.keys, new), self._roomy(self.values, new))
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, begin : begin + new] = states
        self.keys, self.values = (buffer[:, :, : begin + new] for buffer in self._buffers)
        return self.keys, self.values

    def select(self, rows: torch.Tensor, columns: torch.Tensor) -> None:
        """Go on with these rows and tokens alone."""
        self.keys = self.keys[rows].index_select(2, columns)
        self.values = self.values[rows].index_select(2, columns)
        self._buffers = None

    @staticmethod
    def _roomy(states: torch.Tensor, new: int) -> torch.Tensor:
        batch, heads, length, size = states.shape
        # What comes with a prompt is long, and many steps of it would be room for nothing.
        buffer = states.new_empty(batch, heads, length + new + _ROOM_STEPS * min(new, 8), size)
        buffer[:, :, :length] = states
        return buffer
