"""Cut a run's units into pieces of work, so that all engines are busy and end together.

A piece (a block of Ray Data) stays together from the plan's order to the engine. Ray Data gives the
next one to the actor with the fewest; so the longest come first, and the last ones are small.
"""

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.build import Pools

_BLOCKS_PER_REPLICA = 32
_TAIL_BLOCKS_PER_REPLICA = 3
_BLOCK_UNITS = 256
_BLOCK_BYTES = 1 << 29

Costs = np.ndarray[tuple[int], np.dtype[np.float64]]


def at_most(pools: Pools, blocks: int) -> Pools:
    """No more actors than pieces of work: the others would only load the model."""
    return dataclasses.replace(
        pools, decoders=min(pools.decoders, blocks), replicas=min(pools.replicas, blocks)
    )


def in_blocks(
    units: pa.Table, costs: Costs, pools: Pools, max_batch_tokens: int, calls_at_once: int = 1
) -> list[pa.Table]:
    """Cut units, the most expensive first, into pieces; a unit that is more than one is alone.

    costs: of each unit, in tokens or seconds, in the order of ``units``.
    calls_at_once: how many pieces a replica works on at a time.

    A piece costs a 32nd of a replica's share, towards the end a third of what is left for each
    taker (guided self-scheduling), so that none works on alone; but it is two engine batches, one
    at the end, where there are so many tokens. It holds at most 256 units and half a gigabyte of
    frames, and there are two pieces or more for every actor.
    """
    order = np.argsort(-costs, kind="stable")
    if (np.diff(order) != 1).any():  # else it is the plan's own order: no copy
        units, costs = units.take(pa.array(order)), costs[order]
    tokens, frames = units["predicted_cost"].to_numpy(), frame_bytes(units)
    left, takers = float(costs.sum()), pools.replicas * calls_at_once
    usual = left / (_BLOCKS_PER_REPLICA * pools.replicas)
    most = left / (2 * max(pools.decoders, takers))
    blocks, start, cost, num_tokens, num_bytes = [], 0, 0.0, 0.0, 0.0
    for k in range(len(costs)):
        guided = left / (_TAIL_BLOCKS_PER_REPLICA * takers)
        batches = 2 if guided > usual else 1  # engines form batches by tokens, whatever the costs
        is_enough = (
            cost + costs[k] > min(usual, guided)
            and num_tokens + tokens[k] > batches * max_batch_tokens
        )
        is_full = k - start >= _BLOCK_UNITS or num_bytes + frames[k] > _BLOCK_BYTES
        if k > start and (is_enough or is_full or cost + costs[k] > most):
            blocks.append(units.slice(start, k - start))
            left -= cost
            start, cost, num_tokens, num_bytes = k, 0.0, 0.0, 0.0
        cost += costs[k]
        num_tokens += tokens[k]
        num_bytes += frames[k]
    blocks.append(units.slice(start))
    return blocks


def frame_bytes(units: pa.Table) -> Costs:
    """Bytes of each unit's frames, ``uint8 [T, H, W, 3]``; 0 where there are none."""
    parts = pc.list_flatten(units["parts"])
    of_parts = np.bincount(
        pc.list_parent_indices(units["parts"]).to_numpy(),
        weights=_pixels(pc.struct_field(parts, "sampling")),
        minlength=units.num_rows,
    )
    return 3 * (_pixels(units["sampling"]) + of_parts)


def _pixels(sampling: pa.ChunkedArray) -> Costs:
    sides = [
        pc.cast(pc.struct_field(sampling, name), pa.float64())
        for name in ("num_frames", "resized_height", "resized_width")
    ]
    return np.asarray(pc.fill_null(pc.multiply(pc.multiply(*sides[:2]), sides[2]), 0.0))
