"""The plan of a run: UNIT rows, in Parquet objects of its folder, without the secrets in uris.

<output>/runs/<run_id>/plan/part-0.parquet        all units of a run
<output>/runs/<run_id>/plan/slice-<n>.parquet     of a large run: those of one slice
"""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.output.table import ids_in, is_readable
from pipeline.plan.secrets import remove_secrets, restore_secrets
from pipeline.plan.shards import keep_shards, with_shards
from pipeline.storage.parquet import read_parquet, read_schema, readable, write_parquet
from pipeline.storage.storage import Storage, join
from schemas.errors import ErrorType, ManifestError
from schemas.tables.manifest import MediaItem
from schemas.tables.unit import UNIT

_ATTEMPT = b"reelscribe.attempt"


def plan_folder(run_folder: str) -> str:
    """The folder of a run's plan."""
    return join(run_folder, "plan")


def whole_plan(folder: str) -> str:
    """The uri of the file with all units of a run. folder: ``plan_folder``."""
    return join(folder, "part-0.parquet")


def slice_plan(folder: str, number: int) -> str:
    """The uri of the file with the units of a slice. folder: ``plan_folder``."""
    return join(folder, f"slice-{number}.parquet")


def plan_files(run_folder: str, storage: Storage) -> list[str]:
    """The uris of all files of a run's plan.

    Raises:
        StorageError: the storage refused or failed.
    """
    return [file["uri"] for file in storage.list_files(plan_folder(run_folder), "*.parquet")]


def read_plan_file(uri: str, storage: Storage, items: Sequence[MediaItem]) -> pa.Table:
    """Read a file of a plan: UNIT rows, highest predicted cost first.

    items: the job's, or those of the slice; signed uris are restored from them.

    Raises:
        FileNotFoundError: there is none.
        StorageError: the storage refused or failed, or the file is no plan.
    """
    plan = read_parquet(uri, storage)
    with readable(uri):
        is_unnumbered = "shard" not in plan.column_names  # of an earlier version
        if is_unnumbered:
            at, none = UNIT.get_field_index("shard"), pa.array([0] * plan.num_rows, pa.int32())
            plan = plan.add_column(at, UNIT.field("shard"), none)
        plan = plan.cast(UNIT)
        plan.validate(full=True)
        is_finite = pc.is_finite(plan["predicted_cost"])
        if not pc.all(
            pc.and_(is_finite, pc.greater_equal(plan["predicted_cost"], pa.scalar(0.0)))
        ).as_py():
            raise ValueError("a predicted_cost is not a number from 0")
        if pc.count_distinct(plan["unit_id"]).as_py() < plan.num_rows:
            raise ValueError("it has a unit twice")
    return restore_secrets(with_shards(plan) if is_unnumbered else plan, items)


def write_plan_file(units: pa.Table, uri: str, storage: Storage, attempt: str = "") -> None:
    """Write UNIT rows as a file of a plan. attempt: of which start, for ``attempt_of``.

    Raises:
        StorageError: the storage refused or failed.
    """
    table = remove_secrets(units)
    metadata = {**(table.schema.metadata or {}), _ATTEMPT: attempt.encode()}
    write_parquet(table.replace_schema_metadata(metadata), uri, storage)


def attempt_of(uri: str, storage: Storage) -> str:
    """The attempt of a file of a plan, as it was given to ``write_plan_file``.

    Raises:
        FileNotFoundError: there is no such file.
        StorageError: the storage refused or failed.
    """
    return (read_schema(uri, storage).metadata or {}).get(_ATTEMPT, b"").decode()


def in_order(units: pa.Table) -> pa.Table:
    """Sort units as a plan has them: highest predicted cost first, then by ``unit_id``."""
    return units.sort_by([("predicted_cost", "descending"), ("unit_id", "ascending")])


def failed_media(plan: pa.Table) -> set[str]:
    """Ids of the media that could not be planned."""
    return set(ids_in(plan.filter(pc.is_valid(plan["error"])), "media_id"))


def media_without_storage(plan: pa.Table) -> set[str]:
    """Ids of the media that could not be planned because their storage failed."""
    kinds = pc.struct_field(plan["error"], "type")
    is_storage = pc.equal(kinds, pa.scalar(ErrorType.STORAGE_FAILED.value))
    return set(ids_in(plan.filter(is_storage), "media_id"))


def without_media(units: pa.Table, media_ids: set[str]) -> pa.Table:
    """Units of other media."""
    is_among = pc.is_in(units["media_id"], pa.array(sorted(media_ids), pa.string()))
    return units.filter(pc.invert(is_among))


def with_fresh(plan: pa.Table, fresh: pa.Table) -> pa.Table:
    """Replace units of a plan by those of media that were planned again; their shards stay.

    fresh: UNIT rows. Media that were readable and cannot be read now keep the units of the plan.
    """
    was_read = set(ids_in(plan.filter(is_readable(plan)), "media_id"))
    unread = set(ids_in(fresh.filter(pc.invert(is_readable(fresh))), "media_id"))
    fresh = keep_shards(without_media(fresh, was_read & unread), plan)
    return pa.concat_tables([without_media(plan, set(ids_in(fresh, "media_id"))), fresh])


def check_distinct(plan: pa.Table) -> None:
    """Check that no unit is there twice.

    Raises:
        ManifestError: two units are the same.
    """
    if pc.count_distinct(plan["unit_id"]).as_py() == plan.num_rows:
        return
    counts = plan.group_by("unit_id").aggregate([("media_id", "count"), ("media_id", "first")])
    repeated = counts.filter(pc.greater(counts["media_id_count"], pa.scalar(1)))
    raise ManifestError(
        f"the manifest has {repeated.num_rows} time spans of media more than once, such as of "
        f"{repeated['media_id_first'][0]}: two rows have the same start_seconds and end_seconds "
        "after rounding; remove one of them"
    )
