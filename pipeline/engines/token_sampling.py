"""Choose tokens and stop answers row by row: no row's choices depend on the other rows.

All is computed on the device of the scores, and nothing is read from it.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

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


class RowProcessor:
    """Changes the scores of next tokens. May have a state for each row of its batch."""

    def __call__(self, scores: torch.Tensor) -> torch.Tensor:
        """Return new scores, float [rows, vocabulary]."""
        raise NotImplementedError

    def accept(self, tokens: torch.Tensor, ids: Sequence[int]) -> None:
        """Learn which token was chosen in each row.

        tokens: int64 [rows], on the device of the scores.
        ids: the same on the CPU.
        """

    def keep(self, rows: Sequence[int]) -> None:
        """Keep only these rows; the answers of the others have ended."""


class RowProcessors(RowProcessor):
    """All processors of a batch; the token with the highest resulting score is chosen."""

    def __init__(self, processors: Sequence[RowProcessor]) -> None:
        """Take the processors in the order in which they change scores."""
        self._processors = processors

    def __call__(self, scores: torch.Tensor) -> torch.Tensor:
        """Return new scores, float [rows, vocabulary]."""
        for processor in self._processors:
            scores = processor(scores)
        return scores

    def accept(self, tokens: torch.Tensor, ids: Sequence[int]) -> None:
        """Tell all processors which tokens were chosen."""
        for processor in self._processors:
            processor.accept(tokens, ids)

    def keep(self, rows: Sequence[int]) -> None:
        """Keep only these rows."""
        for processor in self._processors:
            processor.keep(rows)


class Warper(RowProcessor):
    """A warper of transformers, which looks at nothing but scores."""

    def __init__(self, warper: Any) -> None:
        """Take a ``LogitsProcessor``."""
        self._warper = warper

    def __call__(self, scores: torch.Tensor) -> torch.Tensor:
        """Return warped scores, float [rows, vocabulary]."""
        warped: torch.Tensor = self._warper(None, scores)
        return warped


class RowSampler(RowProcessor):
    """Samples each row with its own random stream, which no other row of the batch draws from.

    Source: the Gumbel-max trick (arXiv 1411.0030, section 2): the highest score after adding
    Gumbel noise is a sample from the softmax of the scores.
    """

    def __init__(self, seeds: list[int], device: torch.device) -> None:
        """Seed a random stream for each row."""
        self._streams = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, scores: torch.Tensor) -> torch.Tensor:
        """Add each row's Gumbel noise to its scores, float [rows, vocabulary]."""
        noise = torch.empty_like(scores, dtype=torch.float32)
        for row, stream in zip(noise, self._streams, strict=True):
            row.exponential_(generator=stream)
        return scores - noise.log()

    def keep(self, rows: Sequence[int]) -> None:
        """Keep only these rows."""
        self._streams = [self._streams[row] for row in rows]


class Penalty(RowProcessor):
    """Lowers the scores of tokens that a row contains, however often."""

    def __init__(self, penalty: float, tokens: torch.Tensor, vocab_size: int) -> None:
        """Begin with the tokens that each row contains, int64 [rows, L]; L may be 0."""
        self._penalty = penalty
        shape = (len(tokens), vocab_size)
        contained = torch.zeros(shape, dtype=torch.bool, device=tokens.device)
        self._contained = contained.scatter_(1, tokens, True)

    def __call__(self, scores: torch.Tensor) -> torch.Tensor:
        """Return new scores, float [rows, vocabulary]."""
        return torch.where(self._contained, self._lowered(scores), scores)

    def accept(self, tokens: torch.Tensor, ids: Sequence[int]) -> None:
        """Each row contains one token more, int64 [rows]."""
        self._contained.scatter_(1, tokens[:, None], True)

    def keep(self, rows: Sequence[int]) -> None:
        """Keep only these rows."""
        index = torch.tensor(rows, device=self._contained.device)
        self._contained = self._contained.index_select(0, index)

    def _lowered(self, scores: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


class RepetitionPenalty(Penalty):
    """Divides positive scores, and multiplies negative ones; tokens of the prompt count.

    Source: CTRL (arXiv 1909.05858, section 4.1), as in transformers; tests compare with it.
    """

    def _lowered(self, scores: torch.Tensor) -> torch.Tensor:
        return torch.where(scores < 0, scores * self._penalty, scores / self._penalty)


class PresencePenalty(Penalty):
    """Subtracts the penalty. Source: ``presence_penalty`` of the OpenAI API and of vLLM.

    Tokens of the prompt do not count.
    """

    def _lowered(self, scores: torch.Tensor) -> torch.Tensor:
        return scores - self._penalty


def row_seed(seed: int, row: str) -> int:
    """The seed of a row's random stream: a hash of the job's seed and the row's name, 56 bits."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{row}".encode()).digest()[:7])


def row_processors(
    generation: Generation,
    rows: Sequence[str],
    prompts: torch.Tensor,
    vocab_size: int,
    grammars: Sequence[RowProcessor] = (),
) -> RowProcessors:
    """Make the processors of a batch from the job's generation settings.

    rows: a name for each row of the batch; name and job's seed give its random stream.
    prompts: token ids before the answers, int64 [rows, L], read by a repetition penalty.
    vocab_size: number of scores that the model gives for the next token.
    grammars: rule out tokens before one is sampled.
    """
    processors: list[RowProcessor] = []
    if generation.repetition_penalty != 1:
        penalty = generation.repetition_penalty
        processors.append(RepetitionPenalty(penalty, prompts, vocab_size))
    if generation.presence_penalty:
        penalty = generation.presence_penalty
        processors.append(PresencePenalty(penalty, prompts[:, :0], vocab_size))
    processors += grammars
    if generation.temperature == 0:
        return RowProcessors(processors)
    processors.append(Warper(TemperatureLogitsWarper(generation.temperature)))
    if generation.top_k:
        processors.append(Warper(TopKLogitsWarper(generation.top_k)))
    if generation.top_p < 1:
        processors.append(Warper(TopPLogitsWarper(generation.top_p)))
    seeds = [row_seed(generation.seed, row) for row in rows]
    return RowProcessors([*processors, RowSampler(seeds, prompts.device)])
