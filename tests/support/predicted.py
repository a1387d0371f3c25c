"""What the project predicts of a model's memory; the only place of the harness that asks for it."""

from collections.abc import Sequence
from typing import Any

import torch

from pipeline.model.frame_size import MERGE_SIZE
from pipeline.model.memory import BatchShape, ModelMemory
from pipeline.model.sizes import ModelSize
from schemas.tables.unit import PreparedUnit


def model_size(config: Any) -> ModelSize:
    """The size of a checkpoint, from transformers' configuration."""
    return ModelSize.of(config.to_dict())


def weight_bytes(config: Any, dtype: torch.dtype) -> int:
    """Bytes of a checkpoint's weights."""
    return _memory(config, dtype).weight_bytes


def token_bytes(config: Any, dtype: torch.dtype) -> int:
    """Bytes of the keys and values of a token."""
    return _memory(config, dtype).token_bytes


def batch_bytes(
    config: Any, dtype: torch.dtype, units: Sequence[PreparedUnit], new_tokens: int
) -> int:
    """Bytes that units need in one batch, beside the weights."""
    shape = BatchShape(
        num_roots=len(units),
        prefix_tokens=max(unit.num_shared_tokens for unit in units),
        num_branches=max(len(unit.prompts) for unit in units),
        suffix_tokens=max(prompt.num_own_tokens for unit in units for prompt in unit.prompts),
        answer_tokens=new_tokens,
        num_patches=MERGE_SIZE**2
        * sum(part.sampling.num_vision_tokens for unit in units for part in unit.seen),
    )
    return _memory(config, dtype).batch_bytes(shape)


def _memory(config: Any, dtype: torch.dtype) -> ModelMemory:
    return ModelMemory(size=model_size(config), value_bytes=dtype.itemsize)
