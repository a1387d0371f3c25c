"""The stages that plan: manifest rows in, units out."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from pipeline.plan.planner import PROBE_THREADS, Planner
from pipeline.plan.slices import Slice, SliceSettings, plan_items
from pipeline.plan.to_do import units_to_do
from pipeline.stages.blocks import in_blocks
from pipeline.stages.generate import Generate
from pipeline.stages.pools import Pools
from pipeline.storage.storage import Storage
from pipeline.workers.child_process import Isolated
from pipeline.workers.code_version import check_code
from schemas.job.job import Job
from schemas.shown import log_shown
from schemas.tables.columns import as_one_row, to_table
from schemas.tables.manifest import MediaItem
from schemas.tables.unit import UNIT


class Plan:
    """Stage: manifest rows in, units out."""

    def __init__(self, job: Job, max_model_len: int, storage: Storage, code: str) -> None:
        log_shown()
        check_code(code)
        isolated = Isolated("pipeline.plan.sampler", PROBE_THREADS)
        self._planner = Planner(job, max_model_len, storage, isolated)

    def __call__(self, batch: dict[str, Any]) -> pa.Table:
        """Plan a batch of media items."""
        items: list[MediaItem] = list(batch["item"])
        return to_table(self._planner.plan(items), UNIT)


class PlanSlice:
    """Stage: slices of items in, blocks of UNIT rows to do out. It writes the plan of each."""

    def __init__(
        self, job: Job, storage: Storage, code: str, settings: SliceSettings, pools: Pools | None
    ) -> None:
        """pools: for which blocks are cut; None: a slice stays whole."""
        log_shown()
        check_code(code)
        isolated = Isolated("pipeline.plan.sampler", PROBE_THREADS)
        self._planner = Planner(job, settings.max_model_len, storage, isolated)
        self._storage, self._settings, self._pools = storage, settings, pools
        self._calls_at_once = Generate.calls_at_once(job)

    def __call__(self, batch: dict[str, Any]) -> Iterator[pa.Table]:
        """Plan a slice; yields its blocks, each in one row.

        A call that is repeated yields the same blocks: it reads the plan that the first wrote.
        """
        for items in batch["slice"]:
            yield from map(as_one_row, self._blocks(items))

    def _blocks(self, items: Slice) -> list[pa.Table]:
        units = plan_items(items, self._settings, self._storage, self._probe)
        if items.rows is not None:
            units = units_to_do(units, items.rows, self._settings.run_id)
        if self._pools is None:
            return [units]
        costs = units["predicted_cost"].to_numpy()
        later = float(costs.sum()) / max(1, len(items.items)) * items.num_items_later
        tokens = self._settings.max_batch_tokens
        return in_blocks(units, costs, self._pools, tokens, self._calls_at_once, later)

    def _probe(self, items: list[MediaItem]) -> pa.Table:
        return to_table(self._planner.plan(items), UNIT)
