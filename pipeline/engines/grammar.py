"""Constrained decoding: only answers that a task's JSON Schema allows.

llguidance turns a schema into a grammar and computes after each token which tokens may come next.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from llguidance.hf import from_tokenizer

from pipeline.engines.answer_schema import grammar_of
from pipeline.engines.token_sampling import RowProcessor
from schemas.task import REASONING_BEGINS, REASONING_ENDS, Question


@dataclass(frozen=True, kw_only=True)
class ReasoningIds:
    """The token ids around the reasoning of an answer.

    is_opened: the prompt has ``begin`` already.
    """

    begin: int
    end: int
    is_opened: bool


class Grammars:
    """The grammars of a job's tasks, compiled for a tokenizer."""

    def __init__(
        self,
        questions: Sequence[Question],
        tokenizer: Any,
        vocab_size: int,
        *,
        has_reasoning: bool,
        is_opened: bool = True,
    ) -> None:
        """Compile; takes about a second with a vocabulary of 150,000 tokens.

        vocab_size: number of scores that the model gives for the next token.
        has_reasoning: answers begin with reasoning; the grammar applies after its end.
        is_opened: the prompt opened the reasoning; else an answer may open it, or begin at once.
        """
        self._reasoning: ReasoningIds | None = None
        if has_reasoning:
            begin, end = tokenizer.convert_tokens_to_ids([REASONING_BEGINS, REASONING_ENDS])
            self._reasoning = ReasoningIds(begin=begin, end=end, is_opened=is_opened)
        optional = {question.name: grammar_of(question) for question in questions}
        grammars = {task: grammar for task, grammar in optional.items() if grammar is not None}
        self._end_id = int(tokenizer.eos_token_id)
        self._matchers: dict[str, LLMatcher] = {}
        if grammars:
            tokens: LLTokenizer = from_tokenizer(tokenizer, n_vocab=vocab_size)
            self._matchers = {task: LLMatcher(tokens, text) for task, text in grammars.items()}

    def processors(self, tasks: Sequence[str], device: torch.device) -> list[RowProcessor]:
        """The processors that apply the grammars to a batch: one, or none if unneeded.

        tasks: of each row.
        device: of the scores.
        """
        if not any(task in self._matchers for task in tasks):
            return []
        rows = [self._matchers.get(task) for task in tasks]
        matchers = [matcher.deep_copy() if matcher else None for matcher in rows]
        return [RowGrammars(matchers, self._end_id, self._reasoning, device)]


class RowGrammars(RowProcessor):
    """Rules out, in each row, the tokens that the row's grammar does not allow next."""

    def __init__(
        self,
        matchers: Sequence[LLMatcher | None],
        end_id: int,
        reasoning: ReasoningIds | None,
        device: torch.device,
    ) -> None:
        """Take the grammars of a batch.

        matchers: of each row; None for a row without a grammar.
        end_id: token id that ends an answer.
        reasoning: after which the grammar applies; None: from the first token on.
        device: of the scores.
        """
        self._matchers, self._end_id = matchers, end_id
        self._reasoning = reasoning
        self._begun = [reasoning is None or not reasoning.is_opened] * len(matchers)
        # Before the first token, an answer may open its reasoning.
        self._openers = () if reasoning is None or reasoning.is_opened else (reasoning.begin,)
        self._bits_of_a_byte = torch.tensor([1 << bit for bit in range(8)], dtype=torch.uint8).to(
            device
        )

    def __call__(self, scores: torch.Tensor) -> torch.Tensor:
        """Set the scores of tokens that are not allowed to -inf, float [rows, vocabulary].

        A bit a token is sent to the device, from memory that it reads while the CPU goes on.
        """
        num_rows, vocab_size = scores.shape
        num_bytes = -(-vocab_size // 8)
        sent = torch.empty((num_rows, num_bytes), dtype=torch.uint8, pin_memory=scores.is_cuda)
        allowed = sent.numpy()
        for row, matcher in enumerate(self._matchers):
            if matcher is None or not self._begun[row]:
                allowed[row] = 255
            elif matcher.is_stopped():  # only the end may follow
                allowed[row] = 0
                allowed[row, self._end_id // 8] = 1 << self._end_id % 8
            else:
                allowed[row] = np.frombuffer(matcher.compute_bitmask(), np.uint8)[:num_bytes]
                for opener in self._openers:
                    allowed[row, opener // 8] |= 1 << opener % 8
        received = sent.to(scores.device, non_blocking=True)
        bits = (received[:, :, None] & self._bits_of_a_byte).flatten(1)[:, :vocab_size]
        return scores.masked_fill(bits == 0, float("-inf"))

    def accept(self, tokens: torch.Tensor, ids: Sequence[int]) -> None:
        """Follow the chosen tokens, by their ids on the CPU."""
        for row, (matcher, token) in enumerate(zip(self._matchers, ids, strict=True)):
            if matcher is None:
                continue
            if token in self._openers:
                self._begun[row] = False
            elif not self._begun[row]:
                self._begun[row] = self._reasoning is not None and token == self._reasoning.end
            elif not matcher.is_stopped():
                matcher.consume_token(token)
        self._openers = ()

    def keep(self, rows: Sequence[int]) -> None:
        """Keep only these rows."""
        self._matchers = [self._matchers[row] for row in rows]
        self._begun = [self._begun[row] for row in rows]
