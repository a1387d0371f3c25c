"""Choose tokens and stop answers row by row, so that an answer does not depend on its batch."""

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

from schemas.job.generation import Generation

MIN_LOOP_TOKENS = 64
MAX_LOOP_PERIOD = 128
MIN_LOOP_COPIES = 4
LOOP_CHECK_TOKENS = 16
"""An answer is checked for a loop each time its length is a multiple of this."""


def loop_end(ids: Sequence[int]) -> int | None:
    """Find where to cut an answer that only repeats itself, such as one line of text.

    ids: token ids of the answer so far.

    Returns the number of tokens to keep, up to the end of the first copy of the loop. None if there
    is no loop, or if this length is not checked.
    """
    length = len(ids)
    if length < MIN_LOOP_TOKENS or length % LOOP_CHECK_TOKENS:
        return None
    return loop_start(ids[-MAX_LOOP_PERIOD * MIN_LOOP_COPIES :], length)


def loop_start(tail: Sequence[int], length: int) -> int | None:
    """Find the end of the first whole copy of a loop at the end of ``tail``; None without a loop.

    tail: the last of ``length`` token ids. A loop is a sequence of up to MAX_LOOP_PERIOD tokens
    that is repeated at least MIN_LOOP_COPIES times and over at least MIN_LOOP_TOKENS tokens.
    """
    for period in range(1, min(MAX_LOOP_PERIOD, len(tail) // MIN_LOOP_COPIES) + 1):
        min_length = max(period * MIN_LOOP_COPIES, MIN_LOOP_TOKENS)
        if len(tail) < min_length or tail[-min_length:-period] != tail[period - min_length :]:
            continue
        start = len(tail) - min_length
        while start > 0 and tail[start - 1] == tail[start - 1 + period]:
            start -= 1
        return length - len(tail) + start + period
    return None


class RowProcessor(LogitsProcessor):  # type: ignore[misc]  # transformers is untyped
    """A logits processor that has a state for each row of its batch."""

    def keep(self, rows: Sequence[int]) -> None:
        """Keep only these rows; the answers of the others have ended."""
        raise NotImplementedError


class RowProcessors(LogitsProcessorList):  # type: ignore[misc]  # transformers is untyped
    """All processors of a batch; the token with the highest resulting score is chosen.

    Takes token ids, int64 [rows, L], and scores, float [rows, vocabulary]; returns new scores.
    """

    def keep(self, rows: Sequence[int]) -> None:
        """Keep only these rows."""
        for processor in self:
            if isinstance(processor, RowProcessor):
                processor.keep(rows)


class RowSampler(RowProcessor):
    """Samples each row with its own random stream, so that an answer does not depend on its batch.

    Source: the Gumbel-max trick (arXiv 1411.0030, section 2): the highest score after adding
    Gumbel noise is a sample from the softmax of the scores.
    """

    def __init__(self, seeds: list[int], device: torch.device) -> None:
        """Seed a random stream for each row."""
        self._streams = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Add each row's Gumbel noise to its scores, float [rows, vocabulary]."""
        noise = torch.empty_like(scores, dtype=torch.float32)
        for row, stream in zip(noise, self._streams, strict=True):
            row.exponential_(generator=stream)
        return scores - noise.log()

    def keep(self, rows: Sequence[int]) -> None:
        """Keep only these rows."""
        self._streams = [self._streams[row] for row in rows]


class PresencePenalty(LogitsProcessor):  # type: ignore[misc]  # transformers is untyped
    """Subtracts the same penalty from each token that the answer contains once or more.

    Tokens of the prompt do not count. Source: ``presence_penalty`` of the OpenAI API and of vLLM.
    """

    def __init__(self, penalty: float, prompt_length: int) -> None:
        """Take the penalty, and the length of the padded prompts."""
        self._penalty, self._prompt_length = penalty, prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Subtract the penalty from scores, float [rows, vocabulary]."""
        answer = input_ids[:, self._prompt_length :]
        return scores - torch.zeros_like(scores).scatter_(1, answer, self._penalty)


def row_seed(seed: int, row: str) -> int:
    """The seed of a row's random stream: a hash of the job's seed and the row's name, 56 bits."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{row}".encode()).digest()[:7])


def row_processors(
    generation: Generation,
    rows: Sequence[str],
    prompt_length: int,
    device: torch.device,
    grammars: Sequence[LogitsProcessor] = (),
) -> RowProcessors:
    """Make the processors of a batch from the job's generation settings.

    rows: a name for each row of the batch; name and job's seed give its random stream.
    prompt_length: of the padded prompts.
    grammars: rule out tokens before one is sampled.
    """
    processors: list[Any] = []
    if generation.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(generation.repetition_penalty))
    if generation.presence_penalty:
        processors.append(PresencePenalty(generation.presence_penalty, prompt_length))
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
