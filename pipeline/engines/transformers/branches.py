"""Generate the answers to several prompts about the same media, whose tokens are cached once.

Each sequence in the model's batch is a root, followed by its branches; a mask lets a token see the
root and its own branch. Keys and values of an image or video are computed and stored once for all
prompts about it, and a decoding step reads them once. Finished answers leave the batch.

Source: tree attention with a shared prefix, as in Hydragen (arXiv 2402.05099) and SpecInfer (arXiv
2305.09781).
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from pipeline.engines.token_sampling import RowProcessors, loop_end
from pipeline.engines.transformers.attention import PreallocatedLayer
from pipeline.model.positions import Grid, mrope_positions


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

    lengths: tokens of each row's answer so far.
    """

    def __init__(self, lengths: Sequence[int]) -> None:
        super().__init__(f"the answers have {sum(lengths)} tokens, and are not finished")
        self.lengths = list(lengths)


class Prefix:
    """Cached keys and values of a batch of roots.

    mask: bool [roots, L], false for padding.
    next_positions: int64 [roots], position id of the token after each root.
    cache: transformers' ``DynamicCache``.
    """

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

        ids: token ids of each root.
        types: ``mm_token_type_ids`` of each root, int64 [L].
        grids: (t, h, w) in patches of each root's images and videos, in order.
        features: the model's ``mm_encoder_outputs`` by media type, of all roots.
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
        """Number of tokens of each root that were fed, counted on the tensor."""
        counts: list[int] = self.mask.sum(dim=1).tolist()
        return counts


class Branches:
    """The branches of a batch of roots while their answers are generated.

    A row is a branch, in the order of roots and of their branches; a slot is a place for a branch
    in the model's batch: roots with fewer branches than others have empty slots.

    logits: of each row's next token, float32 [rows, vocabulary].
    mask: what each slot's next token sees, bool [roots, width, keys].
    next_positions: its position id, int64 [roots, width].
    num_suffix_tokens: suffix tokens of each row that were fed, counted on the tensor.
    """

    def __init__(
        self,
        model: Any,
        prefix: Prefix,
        suffixes: Sequence[Sequence[Sequence[int]]],
        pad_id: int,
        attn_implementation: str,
        max_cached_tokens: int | None,
    ) -> None:
        """Run the branches' suffixes through the model.

        suffixes: for each root, the token ids of each branch.
        max_cached_tokens: of all rows together; None: any number.
        """
        self._model, self._max_cached_tokens = model, max_cached_tokens
        self._attn = attn_implementation
        self._cache = DynamicCache()
        self._cache.layers = [
            PreallocatedLayer(layer.keys, layer.values) for layer in prefix.cache.layers
        ]
        seen, nexts = prefix.mask, prefix.next_positions
        device = seen.device
        if attn_implementation == "flash_attention_2":
            # It takes no mask: copy the root for each branch.
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
        self.mask = mask[:, :, -1]
        self.next_positions = nexts[:, None] + real.sum(dim=-1)
        ends = torch.arange(1, width + 1, device=device) * longest - 1
        self._run(tokens.flatten(1), positions, mask.flatten(1, 2), ends)

    @property
    def is_full(self) -> bool:
        """Whether the cache has as many tokens as it may have, padding included."""
        keys = self._cache.layers[0].keys
        num_tokens = keys.shape[0] * keys.shape[2]
        return self._max_cached_tokens is not None and num_tokens >= self._max_cached_tokens

    def feed(self, tokens: torch.Tensor) -> None:
        """Append one token to each row and compute the next logits.

        tokens: int64 [rows].
        """
        roots, width = self.next_positions.shape
        all_tokens = tokens.new_zeros(roots * width)
        all_tokens[self._slots] = tokens
        own = torch.eye(width, dtype=torch.bool, device=tokens.device).expand(roots, -1, -1)
        self.mask = torch.cat([self.mask, own], dim=-1)
        self._run(all_tokens.view(roots, width), self.next_positions, self.mask, 0)
        self.next_positions = self.next_positions + 1

    def keep(self, rows: Sequence[int]) -> None:
        """Keep only these rows, and drop what none of them sees from the cache."""
        _, width = self.next_positions.shape
        live: dict[int, list[int]] = {}
        for row in rows:
            root, branch = divmod(self._slots[row], width)
            live.setdefault(root, []).append(branch)
        new_width = max(map(len, live.values()))
        if len(live) == self.next_positions.shape[0] and new_width == width:
            self._slots = [self._slots[row] for row in rows]
            return
        self._slots = [
            k * new_width + b for k, some in enumerate(live.values()) for b in range(len(some))
        ]
        device = self.mask.device
        roots = torch.tensor(list(live), device=device)
        # The empty slots of a root with fewer branches get a copy of one, which is never read.
        picked = [some + some[:1] * (new_width - len(some)) for some in live.values()]
        branches = torch.tensor(picked, device=device)
        self.mask = self.mask[roots[:, None], branches]
        self.next_positions = self.next_positions[roots[:, None], branches]
        needed = self.mask.any(dim=0).any(dim=0).nonzero().flatten()
        self.mask = self.mask[:, :, needed]
        for layer in self._cache.layers:
            layer.select(roots, needed)

    def _run(
        self, tokens: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor, ends: Any
    ) -> None:
        """Feed tokens, int64 [roots, L], under ``mask``, bool [roots, L, keys].

        ends: indices of the tokens whose logits are needed.
        """
        attention_mask: torch.Tensor = mask[:, None]
        if self._attn == "flash_attention_2":
            attention_mask = mask[:, -1].long()
        elif self._attn == "eager":
            masked = torch.finfo(self._model.dtype).min
            attention_mask = torch.where(mask[:, None], 0.0, masked).to(self._model.dtype)
        output = self._model(
            input_ids=tokens,
            position_ids=positions.expand(3, -1, -1),
            attention_mask=attention_mask,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=ends,
        )
        logits = output.logits.flatten(0, 1)[self._slots]
        self.logits = logits.to(torch.float32)


def generate_answers(
    branches: Branches,
    processors: RowProcessors,
    prompts: torch.Tensor,
    max_new_tokens: Sequence[int],
    end_ids: Collection[int],
    *,
    stop_loops: bool,
) -> list[Generated]:
    """Generate the answer of each row until it ends. Answers do not depend on the other rows.

    processors: turn logits into scores; the token with the highest score is taken.
    prompts: token ids before the answers, as ``processors`` need them, int64 [rows, L].
    max_new_tokens: of each row.
    end_ids: token ids that end an answer.
    stop_loops: end an answer that repeats itself.

    Raises:
        AnswersTooLong: the cache of ``branches`` is full.
    """
    answers: list[list[int]] = [[] for _ in max_new_tokens]
    ended: dict[int, Generated] = {}
    rows = list(range(len(answers)))
    ids = prompts
    while True:
        tokens = processors(ids, branches.logits).argmax(dim=-1)
        for row, token in zip(rows, tokens.tolist(), strict=True):
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
            rows = [rows[k] for k in going]
            tokens, ids = tokens[going], ids[going]
        if branches.is_full:
            raise AnswersTooLong(list(map(len, answers)))
        ids = torch.cat([ids, tokens[:, None]], dim=1)
        branches.feed(tokens)
