"""Sampling and stopping row by row, so that an answer does not depend on the batch it is in."""

import hashlib
from collections.abc import Collection, Sequence
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


MIN_LOOP_TOKENS = 64
MAX_LOOP_PERIOD = 128
MIN_LOOP_COPIES = 4
_LOOKS_EVERY = 16


class RowLoops(StoppingCriteria):
    """Ends each row that only repeats itself, such as the same line of text without end.

    at: for each row, how many generated tokens are kept: up to the end of the first copy of what is
        repeated, and None for rows that do not loop.
    """

    def __init__(self, padded: int, num_rows: int, over: Collection[int]) -> None:
        """padded: length of the prompts. over: tokens after which a row has ended."""
        self._padded, self._over = padded, frozenset(over)
        self.at: list[int | None] = [None] * num_rows

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Tell for each row whether it has ended: bool [rows]."""
        length = input_ids.shape[1] - self._padded
        if length >= MIN_LOOP_TOKENS and length % _LOOKS_EVERY == 0:
            longest = MAX_LOOP_PERIOD * MIN_LOOP_COPIES
            tails = input_ids[:, self._padded :][:, -longest:].tolist()
            for row, tail in enumerate(tails):
                if self.at[row] is None and tail[-1] not in self._over:
                    self.at[row] = loop_start(tail, length)
        return torch.tensor([at is not None for at in self.at], device=input_ids.device)


def loop_start(tail: Sequence[int], length: int) -> int | None:
    """Where the first whole copy of a loop at the end of ``tail`` ends; None if there is no loop.

    tail: the last of ``length`` tokens. A loop is what is there MIN_LOOP_COPIES times or more in
    a row, and MIN_LOOP_TOKENS long or longer with all its copies.
    """
    for period in range(1, min(MAX_LOOP_PERIOD, len(tail) // MIN_LOOP_COPIES) + 1):
        long = max(period * MIN_LOOP_COPIES, MIN_LOOP_TOKENS)
        if len(tail) < long or tail[-long:-period] != tail[period - long :]:
            continue
        start = len(tail) - long
        while start > 0 and tail[start - 1] == tail[start - 1 + period]:
            start -= 1
        return length - len(tail) + start + period
    return None


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


class PresencePenalty(LogitsProcessor):
    """Lowers the score of every token that the answer has already, however often, by the same.

    As vLLM and the OpenAI interface have it: the prompt does not count.
    """

    def __init__(self, penalty: float, padded: int) -> None:
        self._penalty, self._padded = penalty, padded

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Take the penalty off: float [rows, vocabulary]."""
        said = input_ids[:, self._padded :]
        return scores - torch.zeros_like(scores).scatter_(1, said, self._penalty)


def row_processors(
    generation: Generation,
    rows: Sequence[str],
    padded: int,
    device: torch.device,
    grammars: Sequence[LogitsProcessor] = (),
) -> LogitsProcessorList:
    """What turns a batch's scores into those whose best token is the next.

    rows: what names each row of the batch; with the job's seed it seeds the row's stream.
    padded: length of the prompts. grammars: what rules tokens out, before any is drawn.
    """
    processors: list[Any] = []
    if generation.presence_penalty:
        processors.append(PresencePenalty(generation.presence_penalty, padded))
    processors += grammars
    if generation.temperature == 0:
        return LogitsProcessorList(processors)
    processors.append(TemperatureLogitsWarper(generation.temperature))
    if generation.top_k:
        processors.append(TopKLogitsWarper(generation.top_k))
    if generation.top_p < 1:
        processors.append(TopPLogitsWarper(generation.top_p))
    seeds = [
        int.from_bytes(hashlib.sha256(f"{generation.seed}/{row}".encode()).digest()[:7])
        for row in rows
    ]
    return LogitsProcessorList([*processors, RowSampler(seeds, device)])
