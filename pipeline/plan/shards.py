"""Divide a plan into shards: the units whose rows are written together, as one file.

Media stay whole, and neighbours by uri stay together: so the statistics of the files tell a reader
which of them can have a folder's rows.
"""

from typing import Any

import numpy as np
import pyarrow as pa

from schemas.tables.unit import UNIT

SHARD_UNITS = 4096
SHARD_COST = 30_000_000.0
"""In tokens: what one GPU does in about an hour."""
MIN_SHARD_UNITS = 64
SHARDS_PER_SLICE = 4096
"""The shards of the slice n are numbered from n times this."""


def with_shards(units: pa.Table, slice_number: int | None = None) -> pa.Table:
    """Number the shards of a plan, or of a slice of it, in order of uri.

    A shard ends at ``SHARD_UNITS`` units, or at ``SHARD_COST`` with at least ``MIN_SHARD_UNITS``.
    One medium with more units is a shard by itself.
    """
    if not units.num_rows:
        return units
    order = units.select(["uri", "media_id"])
    at = pa.compute.sort_indices(order, sort_keys=[("uri", "ascending"), ("media_id", "ascending")])
    media = units["media_id"].take(at).combine_chunks().dictionary_encode().indices.to_numpy()
    begins = np.flatnonzero(np.diff(media, prepend=-1))
    costs = np.add.reduceat(units["predicted_cost"].take(at).to_numpy(), begins)
    sizes = np.diff(begins, append=len(media))
    shards = np.empty(units.num_rows, np.int32)
    numbers = np.array(_number(sizes, costs))
    if slice_number is not None:
        numbers = slice_number * SHARDS_PER_SLICE + np.minimum(numbers, SHARDS_PER_SLICE - 1)
    shards[at.to_numpy()] = np.repeat(numbers, sizes)
    return _set_shards(units, pa.array(shards))


def _number(sizes: "np.ndarray[Any, Any]", costs: "np.ndarray[Any, Any]") -> list[int]:
    """The shard of each medium. sizes, costs: its units, and their sum of costs in tokens."""
    numbers, number, num_units, cost = [], 0, 0, 0.0
    for size, more in zip(sizes.tolist(), costs.tolist(), strict=True):
        is_full = num_units + size > SHARD_UNITS
        is_enough = num_units >= MIN_SHARD_UNITS and cost + more > SHARD_COST
        if num_units and (is_full or is_enough):
            number, num_units, cost = number + 1, 0, 0.0
        numbers.append(number)
        num_units, cost = num_units + size, cost + more
    return numbers


def keep_shards(units: pa.Table, plan: pa.Table) -> pa.Table:
    """Give units that were planned again the shards that their media have in the plan."""
    names = plan["media_id"].to_pylist()
    shards = dict(zip(names, plan["shard"].to_pylist(), strict=True))
    found = [shards[media_id] for media_id in units["media_id"].to_pylist()]
    return _set_shards(units, pa.array(found, pa.int32()))


def _set_shards(units: pa.Table, shards: "pa.Array[Any]") -> pa.Table:
    at = UNIT.get_field_index("shard")
    return units.set_column(at, UNIT.field(at), shards)
