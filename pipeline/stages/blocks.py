"""Cut a run's units into blocks, so that all engines are busy and end at the same time.

A block of Ray Data stays together up to the engine. Ray Data gives the next block to the actor with
the fewest; therefore the most expensive blocks come first, and the last ones are small.
"""

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.stages.pools import Pools

_BLOCKS_PER_REPLICA = 32
_TAIL_BLOCKS_PER_REPLICA = 3
_BLOCK_UNITS = 256
_BLOCK_BYTES = 1 << 29
_SHARED_BLOCK_BYTES = 1 << 27
"""Of an engine that works on several blocks at a time: small blocks, so that few wait for one."""
_MAX_BYTES = 2 << 30
"""Frames of the blocks that an engine works on at a time; patches take as much again."""

Costs = np.ndarray[tuple[int], np.dtype[np.float64]]


def limit_pools(pools: Pools, num_blocks: int) -> Pools:
    """Start no more actors than there are blocks: the others would only load the model."""
    return dataclasses.replace(
        pools,
        decoders=min(pools.decoders, num_blocks),
        max_decoders=pools.max_decoders and min(pools.max_decoders, num_blocks),
        replicas=min(pools.replicas, num_blocks),
    )


def in_blocks(
    units: pa.Table,
    costs: Costs,
    pools: Pools,
    max_batch_tokens: int,
    calls_at_once: int = 1,
    cost_of_later: float = 0.0,
) -> list[pa.Table]:
    """Cut units into blocks, shard by shard, the most expensive units of a shard first.

    The shard with the most expensive unit comes first: one shard after the other is complete.

    costs: float64 [N], the cost of each unit in tokens or seconds, in the order of ``units``.
    calls_at_once: number of blocks that a replica works on at a time.
    cost_of_later: of units that come after these, about.

    A block costs a 32nd of a replica's share, near the end a third of the remaining cost of each
    worker (guided self-scheduling), so that none works alone at the end. It has the tokens of at
    least two engine batches, near the end of one; at most 256 units and 512 MB of frames, 128 MB
    where a replica works on several; and there are at least two blocks for each actor. A more
    expensive unit is a block by itself.
    """
    shards = units["shard"].to_numpy()
    longest = np.zeros(shards.max(initial=0) + 1)
    np.maximum.at(longest, shards, costs)
    order = np.lexsort((-costs, shards, -longest[shards]))
    if (np.diff(order) != 1).any():  # else the plan has this order already: no copy
        units, costs = units.take(pa.array(order, pa.int64())), costs[order]
    tokens, frames = units["predicted_cost"].to_numpy(), frame_bytes(units)
    left, workers = float(costs.sum()) + cost_of_later, pools.replicas * calls_at_once
    usual = left / (_BLOCKS_PER_REPLICA * pools.replicas)
    max_cost = left / (2 * max(pools.decoders, workers))
    max_bytes = _BLOCK_BYTES if calls_at_once == 1 else _SHARED_BLOCK_BYTES
    if not len(costs):
        return []
    blocks, start, cost, num_tokens, num_bytes = [], 0, 0.0, 0.0, 0.0
    for k in range(len(costs)):
        guided = left / (_TAIL_BLOCKS_PER_REPLICA * workers)
        batches = 2 if guided > usual else 1  # engines form batches by tokens, whatever the costs
        is_enough = (
            cost + costs[k] > min(usual, guided)
            and num_tokens + tokens[k] > batches * max_batch_tokens
        )
        is_full = k - start >= _BLOCK_UNITS or num_bytes + frames[k] > max_bytes
        if k > start and (is_enough or is_full or cost + costs[k] > max_cost):
            blocks.append(units.slice(start, k - start))
            left -= cost
            start, cost, num_tokens, num_bytes = k, 0.0, 0.0, 0.0
        cost += costs[k]
        num_tokens += tokens[k]
        num_bytes += frames[k]
    blocks.append(units.slice(start))
    return blocks


def calls_within_memory(calls_at_once: int, largest: float) -> int:
    """Fewer calls where blocks are large, such as a long video alone in its block; at least two.

    calls_at_once: of the engine. largest: bytes of the frames of the largest block.
    """
    if calls_at_once == 1:
        return calls_at_once
    return min(calls_at_once, max(2, int(_MAX_BYTES // max(1.0, largest))))


def bytes_of_tokens(num_vision_tokens: int) -> float:
    """Bytes of the frames that make this many vision tokens: 32 x 32 pixels of two frames each."""
    return 3.0 * 2 * 32 * 32 * num_vision_tokens


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
