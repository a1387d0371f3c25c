"""Generate the answers of a batch, token by token, until each has ended."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch

from pipeline.engines.token_sampling import RowProcessors, loop_end
from pipeline.engines.transformers.branches import Branches


@dataclass(frozen=True, kw_only=True)
class Generated:
    """A finished answer.

    ids: token ids, with the one that ends the turn.
    finish_reason: ``stop``, ``length`` or ``loop``, see ``RawAnswer``.
    """

    ids: list[int]
    finish_reason: str


class AnswersTooLong(Exception):
    """Answers are longer than was expected, and the cache has no room for more.

    expected: tokens to expect of each row: of a finished answer its own, of others twice those that
        it has.
    """

    def __init__(self, lengths: Sequence[int], finished: Collection[int]) -> None:
        super().__init__(f"the answers have {sum(lengths)} tokens, and are not finished")
        self.expected = [n if row in finished else 2 * n for row, n in enumerate(lengths)]


def generate_answers(
    branches: Branches,
    processors: RowProcessors,
    max_new_tokens: Sequence[int],
    end_ids: Collection[int],
    *,
    stop_loops: bool,
) -> list[Generated]:
    """Generate the answer of each row until it ends.

    Rows do not influence each other but by rounding: a sum over a batch of another size may be
    added up in another order.

    processors: turn logits into scores; the token with the highest score is taken.
    max_new_tokens: of each row.
    end_ids: token ids that end an answer.
    stop_loops: end an answer that repeats itself.

    Raises:
        AnswersTooLong: the cache of ``branches`` is full.
    """
    answers: list[list[int]] = [[] for _ in max_new_tokens]
    ended: dict[int, Generated] = {}
    rows = list(range(len(answers)))
    while True:
        tokens = processors(branches.logits).argmax(dim=-1)
        # The only time in a step that the CPU waits for the device.
        ids: list[int] = tokens.tolist()
        for row, token in zip(rows, ids, strict=True):
            answer = answers[row]
            answer.append(token)
            if token in end_ids:
                ended[row] = Generated(ids=answer, finish_reason="stop")
            elif stop_loops and (end := loop_end(answer)) is not None:
                ended[row] = Generated(ids=answer[:end], finish_reason="loop")
            elif len(answer) == max_new_tokens[row]:
                ended[row] = Generated(ids=answer, finish_reason="length")
        going = [k for k, row in enumerate(rows) if row not in ended]
        if not going:
            return [ended[row] for row in range(len(answers))]
        if len(going) < len(rows):
            branches.keep(going)
            processors.keep(going)
            rows, ids = [rows[k] for k in going], [ids[k] for k in going]
            tokens = tokens.index_select(0, torch.tensor(going, device=tokens.device))
        if branches.is_full:
            raise AnswersTooLong(list(map(len, answers)), ended)
        branches.feed(tokens)  # the device works, while grammars follow on the CPU
        processors.accept(tokens, ids)
