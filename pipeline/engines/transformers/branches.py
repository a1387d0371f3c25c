"""Generate the answers to several prompts about the same media, whose tokens are cached once.

Each sequence in the model's batch is a root, followed by its branches; a mask lets a token see the
root and its own branch. Keys and values of an image or video are computed and stored once for all
prompts about it, and a decoding step reads them once. Finished answers leave the batch.

A step asks the device for nothing but the tokens: what is counted or indexed is known on the CPU,
or stays on the device. So the CPU can prepare a step while the device still works on the last.

Linear layers have one state for all that came before, which no mask divides. There, and with
FlashAttention, which takes no mask, each branch gets a copy of its root; branches whose suffixes
are equally long are read together, because padding would change their states.

Source: tree attention with a shared prefix, as in Hydragen (arXiv 2402.05099) and SpecInfer (arXiv
2305.09781).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch

from pipeline.engines.transformers.attention import MAX_BIAS, bias
from pipeline.engines.transformers.prefix import Prefix
from pipeline.model.memory import CACHE_STEPS, PREFILL_CHUNK_TOKENS


def spare_tokens(
    suffixes: Sequence[Sequence[Sequence[int]]], *, copies_prefix: bool = False
) -> int:
    """Tokens that the first steps of ``Branches`` append to each root.

    suffixes: for each root, the token ids of each branch.
    copies_prefix: each branch gets a copy of its root.
    """
    width = 1 if copies_prefix else max(len(some) for some in suffixes)
    longest = max(len(ids) for some in suffixes for ids in some)
    return width * (longest + CACHE_STEPS)


@dataclass(frozen=True, kw_only=True)
class _Pass:
    """Suffixes that go through the model together: of these rows of the cache, these branches.

    num_tokens: of each branch, the last.
    """

    rows: slice
    branches: slice
    num_tokens: int


class Branches:
    """The branches of a batch of roots while their answers are generated.

    A row is a branch, in the order of roots and of their branches; a slot is a place for a branch
    in the model's batch: roots with fewer branches than others have empty slots.

    logits: of each row's next token, float32 [rows, vocabulary].
    next_positions: position id of each slot's next token, int64 [roots, width].
    bias: what each slot's next tokens see, float [roots, groups * width, room]. The columns of
        tokens to come are filled in ahead: each slot will see its own.
    """

    def __init__(
        self,
        model: Any,
        prefix: Prefix,
        suffixes: Sequence[Sequence[Sequence[int]]],
        attn_implementation: str,
        max_cached_tokens: int | None,
    ) -> None:
        """Run the branches' suffixes through the model. The prefix's cache is used up.

        suffixes: for each root, the token ids of each branch.
        max_cached_tokens: of all rows together; None: any number.
        """
        self._model, self._attn, self._cache = model, attn_implementation, prefix.cache
        self._max_cached_tokens = max_cached_tokens
        self._masks = prefix.masks
        seen, nexts = prefix.mask, prefix.next_positions
        device = seen.device
        width = max(len(some) for some in suffixes)
        slots = [k * width + b for k, some in enumerate(suffixes) for b in range(len(some))]
        if attn_implementation == "flash_attention_2" or self._cache.is_hybrid:
            rows = [(k, ids) for k, some in enumerate(suffixes) for ids in some]
            order = sorted(range(len(rows)), key=lambda row: len(rows[row][1]))
            index = torch.tensor([rows[row][0] for row in order]).to(device)
            self._cache.resize(self._cache.room, rows=index)
            seen, nexts = seen[index], nexts[index]
            suffixes = [[rows[row][1]] for row in order]
            width, slots = 1, sorted(range(len(rows)), key=order.__getitem__)
        self._set_slots(slots, device)
        tokens, real = (each.to(device) for each in _padded(suffixes, width))
        num_suffix = real.sum(dim=-1)
        self._num_suffix_tokens = num_suffix.flatten()[self._slots]
        self.next_positions = nexts[:, None] + num_suffix
        self._num_keys = seen.shape[1] + width * tokens.shape[2]
        self._make_room(width)
        positions = nexts[:, None, None] + (real.cumsum(dim=-1) - 1).clamp(min=0)
        passes = self._passes(suffixes, width)
        self._run_suffixes(passes, (tokens, real, positions), seen)
        last = torch.eye(width, dtype=torch.bool, device=device)[:, :, None] & real[:, None]
        root = seen[:, None].expand(-1, width, -1)
        self._set_bias(torch.cat([root, last.flatten(2)], dim=-1))

    @property
    def num_suffix_tokens(self) -> list[int]:
        """Suffix tokens of each row that were fed, counted on the tensor."""
        counts: list[int] = self._num_suffix_tokens.tolist()
        return counts

    @property
    def is_full(self) -> bool:
        """Whether the cache has as many tokens as it may have, padding included."""
        num_tokens = self._cache.num_rows * self._num_keys
        return self._max_cached_tokens is not None and num_tokens >= self._max_cached_tokens

    def feed(self, tokens: torch.Tensor) -> None:
        """Append one token to each row and compute the next logits.

        tokens: int64 [rows].
        """
        roots, width = self.next_positions.shape
        if self._num_keys + width > self._cache.room:
            self._make_room(width)
            self._set_bias(self.bias[:, :width, : self._num_keys] == 0)
        self._num_keys += width
        fed = tokens.new_zeros(roots * width).index_copy_(0, self._slots, tokens)
        mask = self.bias[:, None, :, : self._num_keys]
        if self._attn == "flash_attention_2":
            mask = (mask[:, 0, 0] == 0).long()
        fed = fed.view(roots, width)
        logits = self._run(fed, self.next_positions, self._masks.of(mask), 0)
        self.logits = logits.flatten(0, 1).index_select(0, self._slots).to(torch.float32)
        self.next_positions = self.next_positions + 1

    def keep(self, rows: Sequence[int]) -> None:
        """Keep only these rows, and drop roots that have none left from the cache.

        What ended branches of other roots have appended is dropped where it is a quarter of the
        cache: to drop it copies the cache, and to keep it makes each step read it.
        """
        num_roots, width = self.next_positions.shape
        device = self._slots.device
        live: dict[int, list[int]] = {}
        for row in rows:
            root, branch = divmod(self._slot_list[row], width)
            live.setdefault(root, []).append(branch)
        new_width = max(map(len, live.values()))
        if len(live) == num_roots and new_width == width:
            self._set_slots([self._slot_list[row] for row in rows], device)
            return
        slots = [
            k * new_width + b for k, some in enumerate(live.values()) for b in range(len(some))
        ]
        self._set_slots(slots, device)
        roots = torch.tensor(list(live), device=device)
        # The empty slots of a root with fewer branches get a copy of one, which is never read.
        picked = [some + some[:1] * (new_width - len(some)) for some in live.values()]
        branches = torch.tensor(picked, device=device)
        self.next_positions = self.next_positions[roots[:, None], branches]
        seen = self.bias[roots[:, None], branches, : self._num_keys] == 0
        columns = seen.any(dim=0).any(dim=0).nonzero().flatten()
        if len(live) < num_roots or 4 * len(columns) <= 3 * self._num_keys:
            seen = seen[:, :, columns]
            self._num_keys = len(columns)
            self._make_room(new_width, roots if len(live) < num_roots else None, columns)
        self._set_bias(seen)

    def _set_slots(self, slots: list[int], device: torch.device) -> None:
        """Remember each row's slot, on the CPU for ``keep`` and on the device for each step."""
        self._slot_list = slots
        self._slots = torch.tensor(slots, device=device)

    def _make_room(
        self, width: int, rows: torch.Tensor | None = None, columns: torch.Tensor | None = None
    ) -> None:
        """Have room for the next steps, and keep only these rows and columns of the cache."""
        room = self._num_keys + width * CACHE_STEPS
        if columns is not None or room > self._cache.room:
            self._cache.resize(room, rows, columns)

    def _set_bias(self, seen: torch.Tensor) -> None:
        """Write the bias of all steps that there is room for.

        seen: bool [roots, width, keys], what each slot sees of the tokens that are there.
        """
        roots, width, keys = seen.shape
        room = self._cache.room
        own = torch.eye(width, dtype=torch.bool, device=seen.device)
        ahead = own.repeat(1, -(-(room - keys) // width))[:, : room - keys]
        mask = torch.cat([seen, ahead.expand(roots, -1, -1)], dim=-1)
        self.bias = bias(mask, self._model.dtype, self._masks.groups)[:, 0]
        self._cache.set_window(slice(None), 0, keys)

    def _run_suffixes(
        self,
        passes: Iterable["_Pass"],
        suffixes: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        seen: torch.Tensor,
    ) -> None:
        """Run the suffixes, in passes of bounded memory, and set the logits of their last tokens.

        suffixes: token ids, which are real, and positions: [roots, width, longest].
        seen: bool [roots, L], the real tokens of each root.
        """
        tokens, real, positions = suffixes
        length, longest = seen.shape[1], tokens.shape[2]
        logits: dict[int, list[torch.Tensor]] = {}
        for each in passes:
            rows, some, num = each.rows, each.branches, each.num_tokens
            begin = longest - num  # before it, all is padding
            self._cache.set_window(rows, 0, length + some.start * longest + begin)
            mask = _suffix_mask(seen[rows], real[rows], some)
            if begin > 0:
                mask = mask[:, begin:]  # of a single branch
            if self._attn == "flash_attention_2":
                found = mask[:, -1].long()
            else:
                found = bias(mask, self._model.dtype, self._masks.groups)
            ends = torch.arange(1, some.stop - some.start + 1, device=tokens.device) * num - 1
            fed, at = (of[rows, some, begin:].flatten(1) for of in (tokens, positions))
            logits.setdefault(rows.start, []).append(
                self._run(fed, at, self._masks.of(found), ends)
            )
        joined = torch.cat([torch.cat(of_rows, dim=1) for of_rows in logits.values()])
        self.logits = joined.flatten(0, 1).index_select(0, self._slots).to(torch.float32)

    def _passes(self, suffixes: Sequence[Sequence[Sequence[int]]], width: int) -> Iterator["_Pass"]:
        """Which branches of which roots go through the model together."""
        longest = max(len(ids) for some in suffixes for ids in some)
        num_tokens = min(PREFILL_CHUNK_TOKENS, MAX_BIAS // (self._masks.groups * self._num_keys))
        lengths = [longest] * len(suffixes)
        if self._cache.is_hybrid:  # sorted by length, each with one branch
            lengths = [len(ids) for (ids,) in suffixes]
        begin = 0
        for length, group in groupby(lengths):
            end = begin + len(list(group))
            num_branches = min(max(num_tokens // length, 1), width)
            num_roots = max(num_tokens // (width * length), 1)
            for root in range(begin, end, num_roots):
                for branch in range(0, width, num_branches):
                    yield _Pass(
                        rows=slice(root, min(root + num_roots, end)),
                        branches=slice(branch, min(branch + num_branches, width)),
                        num_tokens=length,
                    )
            begin = end

    def _run(
        self, tokens: torch.Tensor, positions: torch.Tensor, mask: Any, ends: Any
    ) -> torch.Tensor:
        """Feed tokens, int64 [roots, L]; returns logits, float [roots, L of ends, vocabulary].

        ends: indices of the tokens whose logits are needed; 0 for all.
        """
        logits: torch.Tensor = self._model(
            input_ids=tokens,
            position_ids=positions.expand(3, -1, -1),
            attention_mask=mask,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=ends,
        ).logits
        return logits


def _padded(
    suffixes: Sequence[Sequence[Sequence[int]]], width: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids, int64 [roots, width, longest], padded on the left; and which are real, bool."""
    longest = max(len(ids) for some in suffixes for ids in some)
    tokens = torch.zeros((len(suffixes), width, longest), dtype=torch.long)
    real = torch.zeros((len(suffixes), width, longest), dtype=torch.bool)
    for k, some in enumerate(suffixes):
        for b, ids in enumerate(some):
            tokens[k, b, longest - len(ids) :] = torch.tensor(ids)
            real[k, b, longest - len(ids) :] = True
    return tokens, real


def _suffix_mask(seen: torch.Tensor, real: torch.Tensor, some: slice) -> torch.Tensor:
    """What the suffix tokens of some branches see: their root, and their own branch so far.

    seen: bool [roots, L]. real: bool [roots, width, longest].

    Returns bool [roots, branches * longest, L + some.stop * longest].
    """
    roots, _, longest = real.shape
    num = some.stop - some.start
    same = torch.eye(some.stop, dtype=torch.bool, device=seen.device)[some, None, :, None]
    causal = torch.ones(longest, longest, dtype=torch.bool, device=seen.device).tril()
    own = same & causal[None, :, None, :] & real[:, None, None, : some.stop]
    root = seen[:, None, None].expand(-1, num, longest, -1)
    return torch.cat([root, own.flatten(3)], dim=-1).view(roots, num * longest, -1)
