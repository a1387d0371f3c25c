"""Sampling and stopping row by row, so that an answer does not depend on the batch it is in."""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from schemas.job import Generation


class RowLimits(StoppingCriteria):
    """Ends each row at its own max_new_tokens; tasks of one batch differ in it."""

    def __init__(self, padded: int, limits: torch.Tensor) -> None:
        self._padded = padded
        self._limits = limits

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Tell for each row whether it has ended: bool [rows]."""
        return input_ids.shape[1] - self._padded >= self._limits


class RowSampler(LogitsProcessor):
    """Samples each row with its own random stream, so that an answer does not depend on its batch.

    Adding Gumbel noise and taking the best token is sampling from the softmax (Gumbel-max trick).
    """

    def __init__(self, seeds: list[int], device: torch.device) -> None:
        self._streams = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Add each row's noise to its scores: float [rows, vocabulary]."""
        noise = torch.empty_like(scores, dtype=torch.float32)
        for row, stream in zip(noise, self._streams, strict=True):
            row.exponential_(generator=stream)
        return scores - noise.log()


def row_processors(
    generation: Generation, rows: Sequence[str], device: torch.device
) -> LogitsProcessorList:
    """What turns a batch's scores into those whose best token is the next: none if greedy.

    rows: what names each row of the batch; with the job's seed it seeds the row's stream.
    """
    if generation.temperature == 0:
        return LogitsProcessorList()
    processors: list[Any] = [TemperatureLogitsWarper(generation.temperature)]
    if generation.top_k:
        processors.append(TopKLogitsWarper(generation.top_k))
    if generation.top_p < 1:
        processors.append(TopPLogitsWarper(generation.top_p))
    seeds = [
        int.from_bytes(hashlib.sha256(f"{generation.seed}/{row}".encode()).digest()[:7])
        for row in rows
    ]
    return LogitsProcessorList([*processors, RowSampler(seeds, device)])
