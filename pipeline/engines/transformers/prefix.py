"""Run the prefixes of a batch of roots through the model, a few thousand tokens at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.engines.transformers.attention import MAX_BIAS, bias, takes_causal_flag
from pipeline.engines.transformers.cache import PreallocatedCache
from pipeline.engines.transformers.vision import Encoded
from pipeline.model.memory import PREFILL_CHUNK_TOKENS
from pipeline.model.positions import TEXT, Grid, mrope_positions, token_types


@dataclass(frozen=True, kw_only=True)
class RootTokens:
    """What the model sees of a root.

    ids: token ids, int64 [L].
    is_vision: bool [L], the tokens that stand for images and videos.
    positions: int64 [3, L], time, height and width.
    """

    ids: torch.Tensor
    is_vision: torch.Tensor
    positions: torch.Tensor

    @classmethod
    def of(cls, ids: Sequence[int], pad_ids: dict[str, int], grids: Sequence[Grid]) -> "RootTokens":
        """Find a prompt's vision tokens and positions.

        pad_ids: by media type, the token id that stands for it.
        grids: (t, h, w) in patches of each image and video, in order.

        Raises:
            ValueError: ids and grids do not match.
        """
        types = token_types(ids, pad_ids)
        return cls(
            ids=torch.tensor(ids),
            is_vision=torch.from_numpy(types != TEXT),
            positions=torch.from_numpy(mrope_positions(types, grids)),
        )


class Prefix:
    """Cached keys and values of a batch of roots, padded on the left.

    mask: bool [roots, L], false for padding.
    next_positions: int64 [roots], position id of the token after each root.
    cache: has room for what the roots' branches will append, if it was computed right.
    last_states: of the passes so far, the hidden states of each root's last token, after the final
        norm, float [roots of the pass, hidden]: the vectors of an embedding.
    """

    def __init__(
        self, model: Any, roots: Sequence[RootTokens], attn_implementation: str, spare: int
    ) -> None:
        """Make room; ``run`` fills it.

        spare: tokens that will be appended to each root.
        """
        self._model, self._roots, self._attn = model, roots, attn_implementation
        config = model.config.get_text_config()
        self.groups = 1
        if attn_implementation == "sdpa":
            self.groups = config.num_attention_heads // config.num_key_value_heads
        self._takes_flag = takes_causal_flag(attn_implementation, model.device, model.dtype)
        self._lengths = [len(root.ids) for root in roots]
        self._longest = max(self._lengths)
        self.cache = PreallocatedCache(config.num_hidden_layers, len(roots), self._longest + spare)
        columns = torch.arange(self._longest)
        begins = torch.tensor([self._longest - length for length in self._lengths])
        self.mask = (columns >= begins[:, None]).to(model.device)
        nexts = [int(root.positions.max()) + 1 for root in roots]
        self.next_positions = torch.tensor(nexts, device=model.device)
        self.last_states: list[torch.Tensor] = []

    @property
    def num_tokens(self) -> list[int]:
        """Number of tokens of each root that were fed, counted on the tensor."""
        counts: list[int] = self.mask.sum(dim=1).tolist()
        return counts

    def rewind(self) -> None:
        """Forget the branches of a single root, so that others can be run behind it.

        Nothing is copied, unless each branch had a copy of its root.
        """
        assert len(self._roots) == 1, "of several roots, one may have left the cache"
        if self.cache.num_rows > 1:
            self.cache.resize(self.cache.room, rows=self.mask.new_zeros(1).long())

    def passes(self) -> Iterator[slice]:
        """Roots that go through the model together: neighbours, unless they are too long."""
        begin = 0
        for end in range(1, len(self._lengths) + 1):
            if end < len(self._lengths):
                longest = max(self._lengths[begin : end + 1])
                if (end + 1 - begin) * longest <= PREFILL_CHUNK_TOKENS:
                    continue
            yield slice(begin, end)
            begin = end

    def run(self, rows: slice, encoded: Sequence[Encoded | None]) -> None:
        """Run the roots of a pass through the model: several short ones, or a long one in chunks.

        encoded: features of each root's images and videos.
        """
        roots = self._roots[rows]
        longest = max(self._lengths[rows])
        first = self._longest - longest
        padded = min(self._lengths[rows]) < longest
        self.cache.set_window(rows, first, first)
        for columns in self._chunks(longest):
            seen = self.mask[rows, first : first + columns.stop]
            chunk = _Chunk.of(roots, encoded, longest, columns)
            is_causal = not padded and (columns.start == 0 or self._takes_flag)
            states = self._forward(
                chunk, None if is_causal else self._attention_mask(seen, columns)
            )
        self.last_states.append(states[:, -1].clone())  # padding is on the left

    def _chunks(self, length: int) -> Iterator[slice]:
        """Cut the tokens of a pass; also so that no bias is too large."""
        begin = 0
        while begin < length:
            end = min(begin + PREFILL_CHUNK_TOKENS, length)
            if begin > 0 and not self._takes_flag:
                end = min(end, begin + max(MAX_BIAS // (self.groups * end), 1))
            yield slice(begin, end)
            begin = end

    def _attention_mask(self, seen: torch.Tensor, columns: slice) -> torch.Tensor:
        """The mask of a chunk, in the form that attention takes.

        seen: bool [rows, end of the chunk], the real tokens.
        """
        if self._attn == "flash_attention_2":
            return seen.long()
        length = columns.stop - columns.start
        causal = torch.ones(length, columns.stop, dtype=torch.bool, device=seen.device)
        return bias(causal.tril(columns.start) & seen[:, None], self._model.dtype, self.groups)

    def _forward(self, chunk: "_Chunk", attention_mask: torch.Tensor | None) -> torch.Tensor:
        """Run a chunk; returns its hidden states after the final norm, float [rows, L, hidden]."""
        device = self._model.device
        embeddings = self._model.get_input_embeddings()(chunk.ids.to(device))
        seen = {}
        if chunk.features:
            places = chunk.is_vision.flatten().nonzero().flatten().to(device)
            features = chunk.features[0].to(embeddings.dtype)
            embeddings = embeddings.flatten(0, 1).index_copy(0, places, features)
            embeddings = embeddings.view(*chunk.ids.shape, -1)
            seen = {
                "visual_pos_masks": chunk.is_vision.to(device),
                "deepstack_visual_embeds": chunk.features[1:],
            }
        states: torch.Tensor = self._model.model.language_model(
            inputs_embeds=embeddings,
            position_ids=chunk.positions.to(device),
            attention_mask=attention_mask,
            past_key_values=self.cache,
            use_cache=True,
            **seen,
        ).last_hidden_state
        return states


@dataclass(frozen=True, kw_only=True)
class _Chunk:
    """Tokens of several roots, on the CPU, and the features of those that stand for media.

    ids: int64 [rows, L].
    is_vision: bool [rows, L].
    positions: int64 [3, rows, L].
    features: float [vision tokens, hidden], of the tower and of each DeepStack layer, on the
        device.
    """

    ids: torch.Tensor
    is_vision: torch.Tensor
    positions: torch.Tensor
    features: list[torch.Tensor]

    @classmethod
    def of(
        cls,
        roots: Sequence[RootTokens],
        encoded: Sequence[Encoded | None],
        longest: int,
        columns: slice,
    ) -> "_Chunk":
        """Take these columns of the roots, padded on the left to ``longest``.

        Padding is token 0 at position 0, which no real token sees.
        """
        shape = (len(roots), columns.stop - columns.start)
        ids = torch.zeros(shape, dtype=torch.long)
        is_vision = torch.zeros(shape, dtype=torch.bool)
        positions = torch.zeros((3, *shape), dtype=torch.long)
        features = []
        for k, (root, found) in enumerate(zip(roots, encoded, strict=True)):
            padding = longest - len(root.ids)
            here = slice(max(columns.start - padding, 0), columns.stop - padding)
            at = slice(here.start + padding - columns.start, None)
            ids[k, at] = root.ids[here]
            is_vision[k, at] = root.is_vision[here]
            positions[:, k, at] = root.positions[:, here]
            before = int(root.is_vision[: here.start].sum())
            num = int(root.is_vision[here].sum())
            if found is not None:
                layers = (found.embeddings, *found.deepstack)
                features.append([layer[before : before + num] for layer in layers])
        joined = [torch.cat(layer) for layer in zip(*features, strict=True)]
        has_media = bool(joined) and len(joined[0]) > 0
        return cls(
            ids=ids,
            is_vision=is_vision,
            positions=positions,
            features=joined if has_media else [],
        )
