"""Generate the answers to several prompts about the same media, whose tokens are cached once.

A row of the batch is a root; its branches stand one after the other behind it, and a mask lets a
token see the root and its own branch. So keys and values of an image or video are computed and
kept once, however many prompts ask about it, and a step reads them once for all of them. What has
ended leaves the batch.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from pipeline.engines.attention import RoomyLayer
from pipeline.engines.sampling import RowProcessors, loop_end
from pipeline.positions import Grid, mrope_positions


@dataclass(frozen=True, kw_only=True)
class Said:
    """An answer's tokens, with the one that ends the turn, and why there are no more.

    finish_reason: ``stop``, ``length`` or ``loop``, as of ``RawAnswer``.
    """

    ids: list[int]
    finish_reason: str


class Prefix:
    """Keys and values of a batch of roots, computed once."""

    def __init__(
        self,
        model: Any,
        ids: Sequence[Sequence[int]],
        types: Sequence[np.ndarray[Any, Any]],
        grids: Sequence[Sequence[Grid]],
        features: dict[str, Any],
        pad_id: int,
    ) -> None:
        """Run the roots through the model, padded on the left.

        ids: token ids of each. types: ``mm_token_type_ids`` of each. grids: of the images and
        videos of each, in order. features: ``mm_encoder_outputs``, all roots' together.
        """
        device = model.device
        shape = (len(ids), max(len(root) for root in ids))
        tokens = torch.full(shape, pad_id)
        mask = torch.zeros(shape, dtype=torch.bool)
        positions = torch.zeros((3, *shape), dtype=torch.long)
        nexts = []
        for k, root in enumerate(ids):
            places = torch.from_numpy(mrope_positions(types[k], grids[k]))
            tokens[k, shape[1] - len(root) :] = torch.tensor(root)
            mask[k, shape[1] - len(root) :] = True
            positions[:, k, shape[1] - len(root) :] = places
            nexts.append(int(places.max()) + 1)
        self.mask = mask.to(device)
        self.next_positions = torch.tensor(nexts, device=device)
        self.is_padded = not bool(mask.all())
        self.cache = DynamicCache(config=model.config.get_text_config())
        model.model(
            input_ids=tokens.to(device),
            position_ids=positions.to(device),
            # None lets attention take its fast causal path.
            attention_mask=self.mask.long() if self.is_padded else None,
            past_key_values=self.cache,
            mm_encoder_outputs=features,
            use_cache=True,
        )

    @property
    def num_tokens(self) -> list[int]:
        """How many tokens of each root were fed, counted on the tensor."""
        counts: list[int] = self.mask.sum(dim=1).tolist()
        return counts


class Branches:
    """The branches of a batch of roots while their answers grow; rows are branches, in order.

    logits: of the token that comes next, float [rows, vocabulary].
    """

    def __init__(
        self,
        model: Any,
        prefix: Prefix,
        suffixes: Sequence[Sequence[Sequence[int]]],
        pad_id: int,
        attn_implementation: str,
    ) -> None:
        """Run the branches' prompts through the model.

        suffixes: for each root, token ids of its branches.
        """
        self._model = model
        self._takes = attn_implementation
        self._cache = DynamicCache()
        self._cache.layers = [RoomyLayer(of.keys, of.values) for of in prefix.cache.layers]
        seen, nexts = prefix.mask, prefix.next_positions
        device = seen.device
        if attn_implementation == "flash_attention_2":  # knows no mask: each branch has a root
            index = torch.tensor([k for k, some in enumerate(suffixes) for _ in some]).to(device)
            self._cache.batch_select_indices(index)
            seen, nexts = seen[index], nexts[index]
            suffixes = [[ids] for some in suffixes for ids in some]
        roots, width = len(suffixes), max(len(some) for some in suffixes)
        longest = max(len(ids) for some in suffixes for ids in some)
        tokens = torch.full((roots, width, longest), pad_id)
        real = torch.zeros((roots, width, longest), dtype=torch.bool)
        for k, some in enumerate(suffixes):
            for b, ids in enumerate(some):
                tokens[k, b, longest - len(ids) :] = torch.tensor(ids)
                real[k, b, longest - len(ids) :] = True
        tokens, real = tokens.to(device), real.to(device)
        self._slots = [k * width + b for k, some in enumerate(suffixes) for b in range(len(some))]
        self.num_suffix_tokens: list[int] = real.sum(dim=-1).flatten()[self._slots].tolist()

        offsets = (real.cumsum(dim=-1) - 1).clamp(min=0)
        positions = (nexts[:, None, None] + offsets).flatten(1)
        branch = torch.eye(width, dtype=torch.bool, device=device)[:, None, :, None]
        causal = torch.ones(longest, longest, dtype=torch.bool, device=device).tril()
        own = branch & causal[None, :, None, :] & real[:, None, None]
        root = seen[:, None, None, :].expand(-1, width, longest, -1)
        mask = torch.cat([root, own.flatten(3)], dim=-1)
        self._mask = mask[:, :, -1]  # [roots, width, keys]: what each branch's next token sees
        self._next = nexts[:, None] + real.sum(dim=-1)
        ends = torch.arange(1, width + 1, device=device) * longest - 1
        self._run(tokens.flatten(1), positions, mask.flatten(1, 2), ends)

    def feed(self, tokens: torch.Tensor) -> None:
        """Go on with a token for each row: int64 [rows]."""
        roots, width = self._next.shape
        all_tokens = tokens.new_zeros(roots * width)
        all_tokens[self._slots] = tokens
        own = torch.eye(width, dtype=torch.bool, device=tokens.device).expand(roots, -1, -1)
        self._mask = torch.cat([self._mask, own], dim=-1)
        self._run(all_tokens.view(roots, width), self._next, self._mask, 0)
        self._next = self._next + 1

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows alone: what no row needs any more is dropped from the cache."""
        _, width = self._next.shape
        live: dict[int, list[int]] = {}
        for row in rows:
            root, branch = divmod(self._slots[row], width)
            live.setdefault(root, []).append(branch)
        new_width = max(map(len, live.values()))
        if len(live) == self._next.shape[0] and new_width == width:
            self._slots = [self._slots[row] for row in rows]
            return
        self._slots = [
            k * new_width + b for k, some in enumerate(live.values()) for b in range(len(some))
        ]
        device = self._mask.device
        roots = torch.tensor(list(live), device=device)
        # A root with fewer branches than another has one twice, and nobody reads the second.
        picked = [some + some[:1] * (new_width - len(some)) for some in live.values()]
        branches = torch.tensor(picked, device=device)
        self._mask = self._mask[roots[:, None], branches]
        self._next = self._next[roots[:, None], branches]
        needed = self._mask.any(dim=0).any(dim=0).nonzero().flatten()
        self._mask = self._mask[:, :, needed]
        for layer in self._cache.layers:
            layer.select(roots, needed)

    def _run(
        self, tokens: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor, ends: Any
    ) -> None:
        """Feed tokens [roots, L] that see what ``mask`` says, bool [roots, L, keys]."""
        taken: torch.Tensor | None = mask[:, None]
        if self._takes == "flash_attention_2":
            taken = mask[:, -1].long()
        elif self._takes == "eager":
            least = torch.finfo(self._model.dtype).min
            taken = torch.where(mask[:, None], 0.0, least).to(self._model.dtype)
        output = self._model(
            input_ids=tokens,
            position_ids=positions.expand(3, -1, -1),
            attention_mask=taken,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=ends,
        )
        logits = output.logits.flatten(0, 1)[self._slots]
        self.logits = logits.to(torch.float32)


def say(
    branches: Branches,
    processors: RowProcessors,
    prompts: torch.Tensor,
    max_new_tokens: Sequence[int],
    end_ids: Collection[int],
    *,
    stop_loops: bool,
) -> list[Said]:
    """Generate the answer of each row up to its own end: what each says depends on no other.

    prompts: token ids before the answers as ``processors`` want them, int64 [rows, L].
    max_new_tokens: of each row. end_ids: tokens that end an answer.
    """
    answers: list[list[int]] = [[] for _ in max_new_tokens]
    ended: dict[int, Said] = {}
    rows = list(range(len(answers)))
    ids = prompts
    while True:
        tokens = processors(ids, branches.logits).argmax(dim=-1)
        for row, token in zip(rows, tokens.tolist(), strict=True):
            said = answers[row]
            said.append(token)
            if token in end_ids:
                ended[row] = Said(ids=said, finish_reason="stop")
            elif stop_loops and (end := loop_end(said)) is not None:
                ended[row] = Said(ids=said[:end], finish_reason="loop")
            elif len(said) == max_new_tokens[row]:
                ended[row] = Said(ids=said, finish_reason="length")
        going = [k for k, row in enumerate(rows) if row not in ended]
        if not going:
            return [ended[row] for row in range(len(answers))]
        if len(going) < len(rows):
            branches.keep(going)
            processors.keep(going)
            rows = [rows[k] for k in going]
            tokens, ids = tokens[going], ids[going]
        ids = torch.cat([ids, tokens[:, None]], dim=1)
        branches.feed(tokens)
