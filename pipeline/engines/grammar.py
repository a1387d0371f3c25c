"""Constrained decoding: answers that a JSON Schema allows, and nothing else.

The work is llguidance's: it turns a schema into a grammar, and tells after each token which tokens
may come next.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from llguidance.hf import from_tokenizer
from transformers import LogitsProcessor

from pipeline.engines.sampling import RowProcessor
from pipeline.parse import TASKS
from schemas.errors import JobFileError
from schemas.job import Job
from schemas.task import Question

END_OF_REASONING = "</think>"


def grammar_of(question: Question) -> str | None:
    """The grammar of a task's answers, in llguidance's form of Lark; None if it has no schema.

    The JSON may stand in a code fence, as models are used to write it.
    """
    schema = TASKS[question.task].json_schema
    found = schema(question) if schema else None
    if found is None:
        return None
    # A line break and indentation at most: white space without end is how weak models get lost.
    found = found | {"x-guidance": {"whitespace_pattern": "\\n? {0,16}"}}
    return f'start: json | "```json\\n" json "\\n```"\njson: %json {json.dumps(found)}\n'


def check_grammars(job: Job) -> None:
    """Find out before any work whether schemas can be decoded by.

    Raises:
        JobFileError: one has a keyword that cannot be.
    """
    for question in job.questions():
        grammar = grammar_of(question) if job.generation.constrained else None
        if grammar is not None and (problem := LLMatcher.validate_grammar(grammar)):
            raise JobFileError(
                f"tasks.{question.task}: answers cannot be constrained to its json_schema: "
                f"{problem.strip().splitlines()[0]}; change it, or set generation.constrained to "
                "false: answers are then only checked against it"
            )


class Grammars:
    """The grammars of a job's tasks, compiled for a tokenizer."""

    def __init__(
        self, questions: Sequence[Question], tokenizer: Any, vocab_size: int, *, reasons: bool
    ) -> None:
        """Compile; takes about a second with a vocabulary of 150,000.

        vocab_size: of the model's scores. reasons: answers begin inside ``<think>``, and the
        grammar holds from its end on.
        """
        self._reasons = int(tokenizer.convert_tokens_to_ids(END_OF_REASONING)) if reasons else None
        found = {question.task: grammar_of(question) for question in questions}
        grammars = {task: grammar for task, grammar in found.items() if grammar is not None}
        self._end_id = int(tokenizer.eos_token_id)
        self._matchers: dict[str, LLMatcher] = {}
        if grammars:
            tokens: LLTokenizer = from_tokenizer(tokenizer, n_vocab=vocab_size)
            self._matchers = {task: LLMatcher(tokens, text) for task, text in grammars.items()}

    def processors(self, tasks: Sequence[str], padded: int) -> list[LogitsProcessor]:
        """What holds the rows of a batch to their tasks' grammars: none, or one for all rows.

        tasks: of each row. padded: length of the prompts.
        """
        if not any(task in self._matchers for task in tasks):
            return []
        rows = [self._matchers.get(task) for task in tasks]
        matchers = [matcher.deep_copy() if matcher else None for matcher in rows]
        return [RowGrammars(matchers, padded, self._end_id, self._reasons)]


class RowGrammars(RowProcessor):
    """Rules out, row by row, the tokens that a grammar does not allow next."""

    def __init__(
        self,
        matchers: Sequence[LLMatcher | None],
        padded: int,
        end_id: int,
        end_of_reasoning: int | None,
    ) -> None:
        """Take a matcher for each row that has a grammar.

        end_id: the token that ends an answer. end_of_reasoning: the one after which the grammar
        begins; None: it begins at once.
        """
        self._matchers, self._padded, self._end_id = matchers, padded, end_id
        self._end_of_reasoning = end_of_reasoning
        self._begun = [end_of_reasoning is None] * len(matchers)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Set the scores of ruled out tokens to -inf: float [rows, vocabulary]."""
        last = input_ids[:, -1].tolist() if input_ids.shape[1] > self._padded else None
        allowed = np.ones(scores.shape, dtype=bool)
        for row, matcher in enumerate(self._matchers):
            if matcher is None:
                continue
            if last is not None and not self._begun[row]:
                self._begun[row] = last[row] == self._end_of_reasoning
            elif last is not None and not matcher.is_stopped():
                matcher.consume_token(last[row])
            if matcher.is_stopped():  # nothing may follow but the end
                allowed[row] = False
                allowed[row, self._end_id] = True
            elif self._begun[row]:
                bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)
                allowed[row] = np.unpackbits(bits, bitorder="little")[: allowed.shape[1]]
        ruled_out = torch.from_numpy(~allowed).to(scores.device)
        return scores.masked_fill(ruled_out, float("-inf"))

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows alone."""
        self._matchers = [self._matchers[row] for row in rows]
        self._begun = [self._begun[row] for row in rows]
