"""Run the prefixes of a batch of roots through the model, a few thousand tokens at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.engines.transformers.attention import MAX_BIAS, bias, takes_causal_flag
from pipeline.engines.transformers.cache import (
    INDEXED,
    LINEAR,
    PreallocatedCache,
    States,
    layer_types,
)
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


class LayerMasks:
    """The masks of a forward pass, in the form that a language model takes.

    groups: query heads of a key head in the rows of ``bias``; 1 for transformers' own attention.
    takes_none: attention without a mask is causal.
    takes_flag: attention without a mask is causal in a later chunk of a prompt, too.
    """

    def __init__(self, model: Any, attn_implementation: str) -> None:
        """attn_implementation: of the language model, as in the job."""
        config = model.config.get_text_config()
        types = set(layer_types(config))
        # Layers that choose their keys read the mask, with a row for each token.
        is_indexed = INDEXED in types
        self._types = types if LINEAR in types else set()
        self.groups = 1
        if attn_implementation == "sdpa" and not is_indexed:
            self.groups = config.num_attention_heads // config.num_key_value_heads
        # Where there are no linear layers, transformers makes the mask that eager attention needs.
        is_made = not self._types or attn_implementation != "eager"
        self.takes_none = is_made and not is_indexed
        self.takes_flag = self.takes_none and takes_causal_flag(
            attn_implementation, model.device, model.dtype
        )

    def of(self, attention: torch.Tensor | None, real: torch.Tensor | None = None) -> Any:
        """Give each kind of layer its mask.

        attention: for full layers, see ``bias``; None: causal.
        real: for linear layers, bool [rows, L], which tokens of the pass are no padding; None: all.
            In a row, padding may only be before all real tokens: it decays a state.
        """
        if not self._types:
            return attention
        return {kind: real if kind == LINEAR else attention for kind in self._types}


class Prefix:
    """Cached keys and values of a batch of roots, padded on the left; or states of linear layers.

    mask: bool [roots, L], false for padding.
    next_positions: int64 [roots], position id of the token after each root.
    cache: has room for what the roots' branches will append, if it was computed right.
    last_hidden: of the passes so far, the hidden states of each root's last token, after the final
        norm, float [roots of the pass, hidden]: the vectors of an embedding.
    """

    def __init__(
        self, model: Any, roots: Sequence[RootTokens], attn_implementation: str, spare: int
    ) -> None:
        """Make room; ``run`` fills it.

        spare: tokens that will be appended to each root.
        """
        self._model, self._roots, self._attn = model, roots, attn_implementation
        self.masks = LayerMasks(model, attn_implementation)
        self._lengths = [len(root.ids) for root in roots]
        self._longest = max(self._lengths)
        config = model.config.get_text_config()
        self.cache = PreallocatedCache(config, len(roots), self._longest + spare)
        self._states: list[States] = []
        # Some layers make embeddings of tokens of their own, from ids.
        self._takes_ids = bool(getattr(config, "ple_layer_ids", None))
        columns = torch.arange(self._longest)
        begins = torch.tensor([self._longest - length for length in self._lengths])
        self.mask = (columns >= begins[:, None]).to(model.device)
        nexts = [int(root.positions.max()) + 1 for root in roots]
        self.next_positions = torch.tensor(nexts, device=model.device)
        self.last_hidden: list[torch.Tensor] = []

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
        self.cache.replace_states(self._states)

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
            takes_none = self.masks.takes_none if columns.start == 0 else self.masks.takes_flag
            mask = None if takes_none and not padded else self._attention_mask(seen, columns)
            masks = self.masks.of(mask, seen[:, columns] if padded else None)
            states = self._forward(chunk, masks)
        self.last_hidden.append(states[:, -1].clone())  # padding is on the left
        if len(self._roots) == 1:
            self._states = self.cache.states()

    def _chunks(self, length: int) -> Iterator[slice]:
        """Cut the tokens of a pass; also so that no bias is too large."""
        begin = 0
        while begin < length:
            end = min(begin + PREFILL_CHUNK_TOKENS, length)
            if begin > 0 and not self.masks.takes_flag:
                end = min(end, begin + max(MAX_BIAS // (self.masks.groups * end), 1))
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
        return bias(
            causal.tril(columns.start) & seen[:, None], self._model.dtype, self.masks.groups
        )

    def _forward(self, chunk: "_Chunk", attention_mask: Any) -> torch.Tensor:
        """Run a chunk; returns its hidden states after the final norm, float [rows, L, hidden]."""
        device = self._model.device
        embeddings = self._model.get_input_embeddings()(chunk.ids.to(device))
        given: dict[str, Any] = {}
        if self._takes_ids:
            given["ple_input_ids"] = chunk.ids.to(device)
        if chunk.features:
            places = chunk.is_vision.flatten().nonzero().flatten().to(device)
            features = chunk.features[0].to(embeddings.dtype)
            embeddings = embeddings.flatten(0, 1).index_copy(0, places, features)
            embeddings = embeddings.view(*chunk.ids.shape, -1)
            if deepstack := chunk.features[1:]:
                given["visual_pos_masks"] = chunk.is_vision.to(device)
                given["deepstack_visual_embeds"] = deepstack
        states: torch.Tensor = self._model.model.language_model(
            inputs_embeds=embeddings,
            position_ids=chunk.positions.to(device),
            attention_mask=attention_mask,
            past_key_values=self.cache,
            use_cache=True,
            **given,
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
