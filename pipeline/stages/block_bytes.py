"""The memory that the frames of planned blocks take, and how many blocks an engine gets for it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_MAX_BYTES = 2 << 30
"""Frames of the blocks that an engine works on at a time; patches take as much again."""

Costs = np.ndarray[tuple[int], np.dtype[np.float64]]


def calls_within_memory(calls_at_once: int, blocks: Sequence[pa.Table]) -> int:
    """Fewer calls where blocks are large, such as a long video alone in its block; at least two.

    calls_at_once: of the engine. blocks: UNIT rows.
    """
    if calls_at_once == 1 or not blocks:
        return calls_at_once
    largest = max(frame_bytes(block).sum() for block in blocks)
    return min(calls_at_once, max(2, int(_MAX_BYTES // max(1.0, largest))))


def frame_bytes(units: pa.Table) -> Costs:
    """Bytes of each unit's frames, ``uint8 [T, H, W, 3]``: float64 [N], 0 without frames."""
    parts = pc.list_flatten(units["parts"])
    of_parts = np.bincount(
        pc.list_parent_indices(units["parts"]).to_numpy(),
        weights=_pixels(pc.struct_field(parts, "sampling")),
        minlength=units.num_rows,
    )
    return 3 * (_pixels(units["sampling"]) + of_parts)


def _pixels(sampling: "pa.ChunkedArray[Any]") -> Costs:
    sides = [
        pc.cast(pc.struct_field(sampling, name), pa.float64())
        for name in ("num_frames", "resized_height", "resized_width")
    ]
    return np.asarray(pc.fill_null(pc.multiply(pc.multiply(*sides[:2]), sides[2]), 0.0))
