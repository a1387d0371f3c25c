"""A cache of keys and values that holds them once, in buffers with room for what is coming.

Linear layers have states of a fixed size in place of keys and values.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer, LinearAttentionLayer

LINEAR, INDEXED = "linear_attention", "indexed_attention"
"""Kinds of layers, as transformers names them: gated delta nets, and those that choose keys."""


def layer_types(text_config: Any) -> Sequence[str]:
    """The kind of each layer of a language model, by the names of transformers."""
    listed = getattr(text_config, "layer_types", None)
    return listed or ["full_attention"] * int(text_config.num_hidden_layers)


class PreallocatedLayer(DynamicLayer):  # type: ignore[misc]  # transformers is untyped
    """One layer's keys and values, float [rows, key heads, room, D], written in place.

    A forward pass of the model reads and extends a window of rows and tokens. So rows may be
    computed in parts, and a prompt in chunks, without copies.
    """

    def __init__(self, num_rows: int, room: int) -> None:
        """Allocate nothing yet: the first update knows heads, size, dtype and device."""
        super().__init__()
        self._shape = (num_rows, room)
        self.is_initialized: bool = False
        self.rows, self.begin, self.end = slice(None), 0, 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write keys and values of the window's new tokens; return those of the whole window."""
        if not self.is_initialized:
            (rows, room), (_, heads, _, size) = self._shape, key_states.shape
            # Zeros, because attention multiplies what no token sees by 0, and NaN stays NaN.
            self.keys = key_states.new_zeros(rows, heads, room, size)
            self.values = torch.zeros_like(self.keys)
            self.is_initialized = True
        new = slice(self.end, self.end + key_states.shape[2])
        self.keys[self.rows, :, new] = key_states
        self.values[self.rows, :, new] = value_states
        self.end = new.stop
        seen = slice(self.begin, self.end)
        return self.keys[self.rows, :, seen], self.values[self.rows, :, seen]

    def get_seq_length(self) -> int:
        """Number of tokens in the window."""
        return self.end - self.begin

    def set_window(self, rows: slice, begin: int, end: int) -> None:
        """Let the next forward pass see these rows from ``begin`` to ``end``, and extend them."""
        self.rows, self.begin, self.end = rows, begin, end

    def resize(
        self, room: int, rows: torch.Tensor | None = None, columns: torch.Tensor | None = None
    ) -> None:
        """Move rows and tokens into buffers of another size; see the cache's method."""
        self.keys = _moved(self.keys, room, rows, columns)
        self.values = _moved(self.values, room, rows, columns)


class IndexedLayer(PreallocatedLayer):
    """A layer that chooses its keys: one more key of each token, float [rows, room, D].

    The first of them also holds the positions of all tokens, int64 [3, rows, room].
    """

    def __init__(self, num_rows: int, room: int) -> None:
        """Allocate nothing yet."""
        super().__init__(num_rows, room)
        self._index_keys: torch.Tensor | None = None
        self._positions: torch.Tensor | None = None

    def update_indexer(self, index_keys: torch.Tensor) -> torch.Tensor:
        """Write the window's new keys, float [B, L, D]; return those of the whole window.

        The model calls it before ``update``, which moves the window's end.
        """
        if self._index_keys is None:
            self._index_keys = index_keys.new_zeros(*self._shape, index_keys.shape[-1])
        end = self.end + index_keys.shape[1]
        self._index_keys[self.rows, self.end : end] = index_keys
        return self._index_keys[self.rows, self.begin : end]

    @property
    def indexer_position_ids(self) -> torch.Tensor | None:
        """Positions of the window's tokens, int64 [3, B, L]; None if there are no tokens."""
        if self._positions is None or self.begin == self.end:
            return None
        return self._positions[:, self.rows, self.begin : self.end]

    @indexer_position_ids.setter
    def indexer_position_ids(self, positions: torch.Tensor) -> None:
        """Write the positions of the window's tokens and of the next ones."""
        if self._positions is None:
            self._positions = positions.new_zeros(len(positions), *self._shape)
        self._positions[:, self.rows, self.begin : self.begin + positions.shape[2]] = positions

    def resize(
        self, room: int, rows: torch.Tensor | None = None, columns: torch.Tensor | None = None
    ) -> None:
        """Move rows and tokens into buffers of another size."""
        super().resize(room, rows, columns)
        if self._index_keys is not None:
            self._index_keys = _moved(self._index_keys[:, None], room, rows, columns)[:, 0]
        if self._positions is not None:
            by_row = self._positions.transpose(0, 1)[..., None]
            self._positions = _moved(by_row, room, rows, columns)[..., 0].transpose(0, 1)


@dataclass(frozen=True, kw_only=True)
class States:
    """States of a linear layer: of convolutions [rows, ..., width], and of the recurrence."""

    conv: dict[int, torch.Tensor]
    recurrent: dict[int, torch.Tensor]


class StateLayer(LinearAttentionLayer):  # type: ignore[misc]  # transformers is untyped
    """One linear layer's states, of all rows; a forward pass reads and writes those of a window."""

    def __init__(self, num_rows: int, number_of_states: int) -> None:
        """Allocate nothing yet: the first update knows the sizes."""
        super().__init__(number_of_states)
        self.num_rows = num_rows
        self.states = States(conv={}, recurrent={})
        self._rows = slice(None)

    def lazy_initialization(
        self,
        conv_states: torch.Tensor | None = None,
        recurrent_states: torch.Tensor | None = None,
        state_idx: int = 0,
        conv_kernel_size: int | None = None,
    ) -> None:
        """Allocate a state for all rows; transformers calls it at the first update of a state."""
        if conv_states is not None:
            width = conv_kernel_size or conv_states.shape[-1]
            self.conv_kernel_size[state_idx] = width
            shape = (self.num_rows, *conv_states.shape[1:-1], width)
            self.states.conv[state_idx] = conv_states.new_zeros(shape)
            self.is_conv_states_initialized[state_idx] = True
        if recurrent_states is not None:
            shape = (self.num_rows, *recurrent_states.shape[1:])
            self.states.recurrent[state_idx] = recurrent_states.new_zeros(shape)
            self.is_recurrent_states_initialized[state_idx] = True
        self._show_rows()

    def set_window(self, rows: slice, begin: int, end: int) -> None:
        """Let the next forward pass continue these rows; they are new if the window is empty."""
        self._rows = rows
        self._show_rows()
        for state in self.has_previous_state:
            self.has_previous_state[state] = end > begin and state in self.states.conv

    def resize(
        self, room: int, rows: torch.Tensor | None = None, columns: torch.Tensor | None = None
    ) -> None:
        """Keep only these rows, as copies; states have no room and no columns."""
        if rows is not None:
            kept = (
                {key: state.index_select(0, rows) for key, state in found.items()}
                for found in (self.states.conv, self.states.recurrent)
            )
            self.replace_states(States(conv=next(kept), recurrent=next(kept)), len(rows))

    def replace_states(self, states: States, num_rows: int) -> None:
        """Have these states of all rows in place of those that there are."""
        self.states, self.num_rows, self._rows = states, num_rows, slice(None)
        self._show_rows()

    def _show_rows(self) -> None:
        """Let transformers see the window's rows: views, into which it writes."""
        for state, whole in self.states.conv.items():
            self.conv_states[state] = whole[self._rows]
        for state, whole in self.states.recurrent.items():
            self.recurrent_states[state] = whole[self._rows]


class PreallocatedCache(DynamicCache):  # type: ignore[misc]  # transformers is untyped
    """The layers of a model.

    num_rows: sequences.
    room: tokens that fit into a row before ``resize`` is needed, a multiple of 64.
    is_hybrid: some layers are linear, so each row is one sequence, without branches.
    """

    def __init__(self, text_config: Any, num_rows: int, room: int) -> None:
        """Make a cache whose layers allocate ``room`` tokens or more for each row on first use.

        text_config: transformers' configuration of the language model.
        """
        super().__init__()
        self.num_rows, self.room = num_rows, _aligned(room)
        types = layer_types(text_config)
        self.is_hybrid = LINEAR in types
        num_states = int(getattr(text_config, "number_of_conv_states", 1))
        self.layers = [
            StateLayer(num_rows, num_states)
            if kind == LINEAR
            else (IndexedLayer if kind == INDEXED else PreallocatedLayer)(num_rows, self.room)
            for kind in types
        ]

    def set_window(self, rows: slice, begin: int, end: int) -> None:
        """Let the next forward pass see these rows from ``begin`` to ``end``, and extend them."""
        for layer in self.layers:
            layer.set_window(rows, begin, end)

    def resize(
        self, room: int, rows: torch.Tensor | None = None, columns: torch.Tensor | None = None
    ) -> None:
        """Give each row another room, one layer after the other, so that one layer is held twice.

        rows: int64 indices of rows to keep, in their new order; None keeps all.
        columns: int64 indices of tokens to keep; None keeps all.
        """
        self.room = _aligned(room)
        if rows is not None:
            self.num_rows = len(rows)
        for layer in self.layers:
            layer.resize(self.room, rows, columns)

    def states(self) -> list[States]:
        """States of the linear layers. They stay as they are once ``resize`` has copied rows."""
        return [layer.states for layer in self.layers if isinstance(layer, StateLayer)]

    def replace_states(self, states: Sequence[States]) -> None:
        """Have these states of all rows in the linear layers, in their order."""
        linear = [layer for layer in self.layers if isinstance(layer, StateLayer)]
        for layer, found in zip(linear, states, strict=True):
            layer.replace_states(found, self.num_rows)


def _aligned(room: int) -> int:
    """The next multiple of 64: kernels copy a mask whose rows are not aligned, in each layer."""
    return -(-room // 64) * 64


def _moved(
    states: torch.Tensor, room: int, rows: torch.Tensor | None, columns: torch.Tensor | None
) -> torch.Tensor:
    """Copy rows and columns of [rows, heads, L, D] into a tensor with ``room`` tokens."""
    if rows is not None:
        states = states.index_select(0, rows)
    if columns is not None:
        states = states.index_select(2, columns)
    num_rows, heads, length, size = states.shape
    moved = states.new_zeros(num_rows, heads, room, size)
    moved[:, :, :length] = states
    return moved
