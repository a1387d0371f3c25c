"""Form batches of prompts in which the tokens that a unit's prompts share occur once.

A root is the prefix that prompts of a unit share, up to the end of its images and videos. Each
prompt continues it as a branch. Training uses the same two words for its packed rows.
"""

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from schemas.tables.unit import PreparedUnit, Prompt


@dataclass(frozen=True, kw_only=True)
class Branch:
    """One prompt without its root's tokens.

    suffix: at least one token id.
    """

    prompt: Prompt
    suffix: tuple[int, ...]
    max_new_tokens: int


@dataclass(frozen=True, kw_only=True)
class Root:
    """A prefix that prompts of a unit share, and these prompts.

    prefix: at least one token id.
    """

    unit: PreparedUnit
    prefix: tuple[int, ...]
    branches: tuple[Branch, ...]


def roots_of(
    unit: PreparedUnit, max_new_tokens: Mapping[str, int], pad_ids: Collection[int]
) -> list[Root]:
    """Group the prompts of a unit by their prefix.

    max_new_tokens: by task.
    pad_ids: token ids that stand for images and videos.

    Returns one root, or several if tasks have tools, which the template writes before the media.
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
    """Number of tokens up to the last that stands for media; 0 without media."""
    for k in range(len(ids) - 1, 0, -1):
        if ids[k - 1] in pad_ids:
            return k
    return 0


def unit_batches(
    units: Mapping[int, Sequence[Root]], fits: Callable[[Sequence[Root]], bool]
) -> Iterator[list[int]]:
    """Group units of similar length into batches.

    units: the roots of each unit. fits: whether roots fit into one batch.

    Yields the keys of each batch, longest units first. A unit that does not fit is alone.
    """
    batch: list[int] = []
    roots: list[Root] = []
    for k in sorted(units, key=lambda k: -_num_prompt_tokens(units[k])):
        if batch and not fits([*roots, *units[k]]):
            yield batch
            batch, roots = [], []
        batch.append(k)
        roots += units[k]
    if batch:
        yield batch


def _num_prompt_tokens(roots: Sequence[Root]) -> int:
    """Tokens of the prompts; what they share counts once."""
    return sum(
        len(root.prefix) + sum(len(branch.suffix) for branch in root.branches) for root in roots
    )


def split(root: Root, fits: Callable[[Sequence[Root]], bool]) -> Iterator[Root]:
    """Divide the branches of a root, so that each part fits into a batch or has one branch."""
    piece: tuple[Branch, ...] = ()
    for branch in root.branches:
        if piece and not fits([dataclasses.replace(root, branches=(*piece, branch))]):
            yield dataclasses.replace(root, branches=piece)
            piece = ()
        piece = (*piece, branch)
    yield dataclasses.replace(root, branches=piece)


def halves(roots: Sequence[Root]) -> tuple[list[Root], list[Root]] | None:
    """Divide the roots of a unit, or the branches of its only one; None if it has one branch."""
    if len(roots) > 1:
        middle = len(roots) // 2
        return list(roots[:middle]), list(roots[middle:])
    (root,) = roots
    if (middle := len(root.branches) // 2) == 0:
        return None
    first, second = root.branches[:middle], root.branches[middle:]
    return [dataclasses.replace(root, branches=first)], [dataclasses.replace(root, branches=second)]
