"""Units with frames and token ids, as the pipeline prepares them for an engine."""

from collections.abc import Iterable
from pathlib import Path

from pipeline.plan.planner import Planner
from pipeline.stages.prepare import Prepare
from pipeline.storage.storage import Storage
from pipeline.workers.code_version import code_digest
from schemas.job.job import Job
from schemas.tables.manifest import MediaItem
from schemas.tables.unit import PreparedUnit


def media_items(archive: Path, names: Iterable[str]) -> list[MediaItem]:
    """Manifest rows of files of the archive."""
    return [MediaItem(media_id=name, uri=str(archive / name)) for name in names]


def prepare_units(
    job: Job, items: list[MediaItem], max_model_len: int = 262_144
) -> list[PreparedUnit]:
    """Plan and decode manifest rows; fails if one of them has an error."""
    prepare = Prepare(job, Storage(), code_digest())
    planned = Planner(job, max_model_len, Storage()).plan(items)
    units = [prepare.prepare(unit) for unit in planned]
    assert [unit.error for unit in units] == [None] * len(units)
    return units
