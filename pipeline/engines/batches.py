"""Form batches of prompts: the tokens that a unit's prompts share are one row, once.

A root is the beginning that prompts of a unit have in common, up to the end of its images and
videos; each prompt goes on from it as a branch. Training packs its rows in the same words.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from schemas.unit import PreparedUnit, Prompt


@dataclass(frozen=True, kw_only=True)
class Branch:
    """One prompt, without its root's tokens: at least one token."""

    prompt: Prompt
    suffix: tuple[int, ...]
    max_new_tokens: int


@dataclass(frozen=True, kw_only=True)
class Root:
    """What prompts of a unit begin with, at least one token, and those prompts."""

    unit: PreparedUnit
    prefix: tuple[int, ...]
    branches: tuple[Branch, ...]


def roots_of(
    unit: PreparedUnit, max_new_tokens: Mapping[str, int], pad_ids: Collection[int]
) -> list[Root]:
    """The prompts of a unit by what they begin with: one root, where no task has tools of its own.

    max_new_tokens: of each task. pad_ids: the tokens that stand for images and videos.
    """
    found: dict[tuple[int, ...], list[Branch]] = {}
    for prompt in unit.prompts:
        ids = prompt.input_ids or ()
        shared = _end_of_media(ids, pad_ids) or len(ids) - 1
        branch = Branch(
            prompt=prompt, suffix=ids[shared:], max_new_tokens=max_new_tokens[prompt.task]
        )
        found.setdefault(ids[:shared], []).append(branch)
    return [Root(unit=unit, prefix=p, branches=tuple(some)) for p, some in found.items()]


def _end_of_media(ids: Sequence[int], pad_ids: Collection[int]) -> int:
    """How many tokens there are up to the last that stands for media; 0: there is none."""
    for k in range(len(ids) - 1, 0, -1):
        if ids[k - 1] in pad_ids:
            return k
    return 0


def num_tokens(roots: Sequence[Root]) -> int:
    """Tokens that a batch of roots holds at its end, padding included."""
    prefix = max(len(root.prefix) for root in roots)
    branches = max(len(root.branches) for root in roots)
    longest = max(_longest_branch(root) for root in roots)
    return len(roots) * (prefix + branches * longest)


def _longest_branch(root: Root) -> int:
    """Prompt and answer tokens of a branch, if all were padded to the longest."""
    suffix = max(len(branch.suffix) for branch in root.branches)
    return suffix + max(branch.max_new_tokens for branch in root.branches)


def unit_batches(units: Mapping[int, Sequence[Root]], max_tokens: int) -> Iterator[list[int]]:
    """Group units of similar length so that each batch is within the token budget.

    units: the roots of each. Yields their keys, each once, longest first; a unit that is over the
    budget by itself is alone.
    """
    batch: list[int] = []
    roots: list[Root] = []
    for k in sorted(units, key=lambda k: -num_tokens(units[k])):
        if batch and num_tokens([*roots, *units[k]]) > max_tokens:
            yield batch
            batch, roots = [], []
        batch.append(k)
        roots += units[k]
    if batch:
        yield batch


def split(root: Root, max_tokens: int) -> Iterator[tuple[Branch, ...]]:
    """Cut the branches of a root into pieces within the budget, of one branch at the least."""
    piece: tuple[Branch, ...] = ()
    for branch in root.branches:
        more = Root(unit=root.unit, prefix=root.prefix, branches=(*piece, branch))
        if piece and num_tokens([more]) > max_tokens:
            yield piece
            piece = ()
        piece = (*piece, branch)
    yield piece
