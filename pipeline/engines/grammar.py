"""Constrained decoding: only answers that a task's JSON Schema allows.

llguidance turns a schema into a grammar and computes after each token which tokens may come next.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from llguidance.hf import from_tokenizer
from transformers import LogitsProcessor

from pipeline.engines.answer_schema import grammar_of
from pipeline.engines.token_sampling import RowProcessor
from schemas.task import Question

END_OF_REASONING = "</think>"


class Grammars:
    """The grammars of a job's tasks, compiled for a tokenizer."""

    def __init__(
        self, questions: Sequence[Question], tokenizer: Any, vocab_size: int, *, has_reasoning: bool
    ) -> None:
        """Compile; takes about a second with a vocabulary of 150,000 tokens.

        vocab_size: number of scores that the model gives for the next token.
        has_reasoning: answers begin inside ``<think>``; the grammar applies after its end.
        """
        end_of_reasoning = tokenizer.convert_tokens_to_ids(END_OF_REASONING)
        self._end_of_reasoning = int(end_of_reasoning) if has_reasoning else None
        optional = {question.name: grammar_of(question) for question in questions}
        grammars = {task: grammar for task, grammar in optional.items() if grammar is not None}
        self._end_id = int(tokenizer.eos_token_id)
        self._matchers: dict[str, LLMatcher] = {}
        if grammars:
            tokens: LLTokenizer = from_tokenizer(tokenizer, n_vocab=vocab_size)
            self._matchers = {task: LLMatcher(tokens, text) for task, text in grammars.items()}

    def processors(self, tasks: Sequence[str], prompt_length: int) -> list[LogitsProcessor]:
        """The logits processors that apply the grammars to a batch: one, or none if unneeded.

        tasks: of each row.
        prompt_length: of the padded prompts.
        """
        if not any(task in self._matchers for task in tasks):
            return []
        rows = [self._matchers.get(task) for task in tasks]
        matchers = [matcher.deep_copy() if matcher else None for matcher in rows]
        return [RowGrammars(matchers, prompt_length, self._end_id, self._end_of_reasoning)]


class RowGrammars(RowProcessor):
    """Rules out, in each row, the tokens that the row's grammar does not allow next."""

    def __init__(
        self,
        matchers: Sequence[LLMatcher | None],
        prompt_length: int,
        end_id: int,
        end_of_reasoning: int | None,
    ) -> None:
        """Take the grammars of a batch.

        matchers: of each row; None for a row without a grammar.
        end_id: token id that ends an answer.
        end_of_reasoning: token id after which the grammar applies; None: from the first token on.
        """
        self._matchers, self._prompt_length, self._end_id = matchers, prompt_length, end_id
        self._end_of_reasoning = end_of_reasoning
        self._begun = [end_of_reasoning is None] * len(matchers)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Set the scores of tokens that are not allowed to -inf, float [rows, vocabulary]."""
        last = input_ids[:, -1].tolist() if input_ids.shape[1] > self._prompt_length else None
        allowed = np.ones(scores.shape, dtype=bool)
        for row, matcher in enumerate(self._matchers):
            if matcher is None:
                continue
            if last is not None and not self._begun[row]:
                self._begun[row] = last[row] == self._end_of_reasoning
            elif last is not None and not matcher.is_stopped():
                matcher.consume_token(last[row])
            if matcher.is_stopped():  # only the end may follow
                allowed[row] = False
                allowed[row, self._end_id] = True
            elif self._begun[row]:
                bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)
                allowed[row] = np.unpackbits(bits, bitorder="little")[: allowed.shape[1]]
        ruled_out = torch.from_numpy(~allowed).to(scores.device)
        return scores.masked_fill(ruled_out, float("-inf"))

    def keep(self, rows: Sequence[int]) -> None:
        """Keep only these rows."""
        self._matchers = [self._matchers[row] for row in rows]
        self._begun = [self._begun[row] for row in rows]
