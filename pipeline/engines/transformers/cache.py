"""A cache of keys and values that holds them once, in buffers with room for what is coming."""

from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer


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

    def resize(
        self, room: int, rows: torch.Tensor | None = None, columns: torch.Tensor | None = None
    ) -> None:
        """Move rows and tokens into buffers of another size; see the cache's method."""
        self.keys = _moved(self.keys, room, rows, columns)
        self.values = _moved(self.values, room, rows, columns)


class PreallocatedCache(DynamicCache):  # type: ignore[misc]  # transformers is untyped
    """The layers of a model.

    num_rows: sequences.
    room: tokens that fit into a row before ``resize`` is needed, a multiple of 64.
    """

    def __init__(self, num_layers: int, num_rows: int, room: int) -> None:
        """Make a cache whose layers allocate ``room`` tokens or more for each row on first use."""
        super().__init__()
        self.num_rows, self.room = num_rows, _aligned(room)
        self.layers = [PreallocatedLayer(num_rows, self.room) for _ in range(num_layers)]

    def set_window(self, rows: slice, begin: int, end: int) -> None:
        """Let the next forward pass see these rows from ``begin`` to ``end``, and extend them."""
        for layer in self.layers:
            layer.rows, layer.begin, layer.end = rows, begin, end

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
