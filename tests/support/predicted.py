"""What the project predicts of a model's memory; the only place that asks for it."""

from collections.abc import Sequence
from typing import Any

import torch

from pipeline.engines.speed import ModelSize
from schemas.tables.unit import PreparedUnit


def model_size(config: Any) -> ModelSize:
    """The size of a checkpoint, from transformers' configuration."""
    return ModelSize.of(config)


def weight_bytes(config: Any, dtype: torch.dtype) -> float:
    """Bytes of a checkpoint's weights."""
    size = model_size(config)
    return dtype.itemsize * (size.parameters + size.vision_parameters)


def token_bytes(config: Any, dtype: torch.dtype) -> float:
    """Bytes of the keys and values of a token."""
    return model_size(config).cache_bytes * dtype.itemsize / torch.bfloat16.itemsize


def batch_bytes(
    config: Any, dtype: torch.dtype, units: Sequence[PreparedUnit], new_tokens: int
) -> float:
    """Bytes that units need in one batch, beside the weights: the cache, without activations."""
    tokens = sum(unit.num_fed_tokens + len(unit.prompts) * new_tokens for unit in units)
    return tokens * token_bytes(config, dtype)
