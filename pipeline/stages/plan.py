"""The stage that plans: manifest rows in, units out."""

from typing import Any

import pyarrow as pa

from pipeline.plan.planner import PROBE_THREADS, Planner
from pipeline.storage.storage import Storage
from pipeline.workers.child_process import Isolated
from pipeline.workers.code_version import check_code
from schemas.job.job import Job
from schemas.shown import log_shown
from schemas.tables.columns import to_table
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
