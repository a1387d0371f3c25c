"""Form batches of prompts in which the tokens that a unit's prompts share occur once.

A root is the prefix that prompts of a unit share, up to the end of its images and videos. Each
prompt continues it as a branch. Training uses the same two words for its packed rows.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
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


def num_tokens(roots: Sequence[Root]) -> int:
    """Tokens in the cache when a batch of roots is finished, including padding."""
    prefix = max(len(root.prefix) for root in roots)
    branches = max(len(root.branches) for root in roots)
    longest = max(_longest_branch(root) for root in roots)
    return len(roots) * (prefix + branches * longest)


def _longest_branch(root: Root) -> int:
    """Suffix and answer tokens of a root's branches, padded to the longest."""
    suffix = max(len(branch.suffix) for branch in root.branches)
    return suffix + max(branch.max_new_tokens for branch in root.branches)


def unit_batches(units: Mapping[int, Sequence[Root]], max_tokens: int) -> Iterator[list[int]]:
    """Group units of similar length into batches within the token budget.

    units: the roots of each unit.

    Yields the keys of each batch, longest units first. A unit that exceeds the budget is alone.
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
    """Split the branches of a root into pieces within the token budget, of one branch or more."""
    piece: tuple[Branch, ...] = ()
    for branch in root.branches:
        more = Root(unit=root.unit, prefix=root.prefix, branches=(*piece, branch))
        if piece and num_tokens([more]) > max_tokens:
            yield piece
            piece = ()
        piece = (*piece, branch)
    yield piece
