"""Sampling and stopping row by row, so that an answer does not depend on the batch it is in."""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from schemas.job import Generation

MIN_LOOP_TOKENS = 64
MAX_LOOP_PERIOD = 128
MIN_LOOP_COPIES = 4
_LOOKS_EVERY = 16


def loop_end(said: Sequence[int]) -> int | None:
    """How many tokens of an answer to keep if it only repeats itself, such as one line of text.

    Those up to the end of the first copy of what is repeated. None: it does not, or it is not yet
    time to look again.
    """
    length = len(said)
    if length < MIN_LOOP_TOKENS or length % _LOOKS_EVERY:
        return None
    return loop_start(said[-MAX_LOOP_PERIOD * MIN_LOOP_COPIES :], length)


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


class RowProcessor(LogitsProcessor):
    """One that has a state for each row of its batch."""

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows alone: the others have ended."""
        raise NotImplementedError


class RowProcessors(LogitsProcessorList):
    """All that turns a batch's scores into those whose best token is the next."""

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows alone."""
        for processor in self:
            if isinstance(processor, RowProcessor):
                processor.keep(rows)


class RowSampler(RowProcessor):
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

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows alone."""
        self._streams = [self._streams[row] for row in rows]


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


def row_seed(seed: int, row: str) -> int:
    """Seed of a row's own random stream, from the job's."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{row}".encode()).digest()[:7])


def row_processors(
    generation: Generation,
    rows: Sequence[str],
    padded: int,
    device: torch.device,
    grammars: Sequence[LogitsProcessor] = (),
) -> RowProcessors:
    """What turns a batch's scores into those whose best token is the next.

    rows: what names each row of the batch; with the job's seed it seeds the row's stream.
    padded: length of the prompts. grammars: what rules tokens out, before any is drawn.
    """
    processors: list[Any] = []
    if generation.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(generation.repetition_penalty))
    if generation.presence_penalty:
        processors.append(PresencePenalty(generation.presence_penalty, padded))
    processors += grammars
    if generation.temperature == 0:
        return RowProcessors(processors)
    processors.append(TemperatureLogitsWarper(generation.temperature))
    if generation.top_k:
        processors.append(TopKLogitsWarper(generation.top_k))
    if generation.top_p < 1:
        processors.append(TopPLogitsWarper(generation.top_p))
    seeds = [row_seed(generation.seed, row) for row in rows]
    return RowProcessors([*processors, RowSampler(seeds, device)])
