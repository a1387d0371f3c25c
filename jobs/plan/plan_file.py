"""A run's plan: read it, complete it, plan some media again, and write it.

Only ``write_plan`` writes. A plan is a table of UNIT rows; the plan file is one Parquet object in
the run's folder, without the secrets in uris.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console

from jobs.plan.listing import existing_media
from jobs.plan.open_job import JobContext
from jobs.plan.probe import probe_items
from jobs.plan.secrets import remove_secrets, restore_secrets
from pipeline.manifest.existing import is_matchable
from pipeline.output.table import ids_in, is_readable
from pipeline.plan.shards import keep_shards, with_shards
from pipeline.storage.parquet import read_parquet, readable, write_parquet
from pipeline.storage.storage import join
from schemas.errors import ErrorType, ManifestError, StorageError
from schemas.tables.listing import LISTING
from schemas.tables.manifest import MediaItem
from schemas.tables.unit import UNIT


@dataclass(frozen=True, kw_only=True)
class Draft:
    """The units of a plan, before they are written.

    units: UNIT rows. is_written: the plan file has exactly these, in their final order.
    listing: LISTING rows of media whose units were left out, because their content is known.
    """

    units: pa.Table
    is_written: bool
    listing: pa.Table = field(default_factory=LISTING.empty_table)


def read_plan(context: JobContext, items: Sequence[MediaItem]) -> pa.Table:
    """Read the run's plan file: UNIT rows, highest predicted cost first.

    items: the job's; signed uris are restored from them.

    Raises:
        FileNotFoundError: there is none yet, or ``reelscribe compact`` has removed it.
        StorageError: the storage refused or failed, or the file is no plan.
    """
    uri = _plan_uri(context)
    plan = read_parquet(uri, context.storage)
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


def draft_plan(context: JobContext, items: Sequence[MediaItem], console: Console) -> Draft:
    """Read the plan file, and plan the items that it lacks.

    Once the run has begun, its plan stays as it is. Before that, items that could not be read are
    planned again.

    Raises:
        UserError: the storage or cluster failed, or none of the media can be read.
    """
    try:
        plan = read_plan(context, items)
    except FileNotFoundError:
        plan = UNIT.empty_table()
    failed = set(ids_in(plan.filter(pc.is_valid(plan["error"])), "media_id"))
    if plan.num_rows and (context.run.starts or not failed):
        return Draft(units=plan, is_written=True)
    kept = _without_media(plan, failed)
    planned = set(ids_in(kept, "media_id"))
    missing = [item for item in items if item.media_id not in planned]
    found = probe_items(missing, context, console)
    # With `only_new`, the items left may all be ones that were never readable.
    if not context.num_known:
        _check_access(pa.concat_tables([kept, found]))
    new, listing = _new_units(found, missing, context)
    units = with_shards(pa.concat_tables([kept, new]))
    return Draft(units=units, is_written=False, listing=listing)


def draft_again(
    plan: pa.Table,
    media_ids: set[str],
    context: JobContext,
    items: Sequence[MediaItem],
    console: Console,
) -> Draft:
    """Plan some media of a plan again, as they are now.

    plan: UNIT rows.
    media_ids: the media. Their units stay as they are if a span of the media that was readable
        cannot be read now, or if the media are not in the manifest any more.

    Raises:
        UserError: the storage or cluster failed.
    """
    fresh = probe_items([item for item in items if item.media_id in media_ids], context, console)
    was_read = set(ids_in(plan.filter(is_readable(plan)), "media_id"))
    unread = set(ids_in(fresh.filter(pc.invert(is_readable(fresh))), "media_id"))
    fresh = keep_shards(_without_media(fresh, was_read & unread), plan)
    units = pa.concat_tables([_without_media(plan, set(ids_in(fresh, "media_id"))), fresh])
    return Draft(units=units, is_written=False)


def write_plan(draft: Draft, context: JobContext, *, dry_run: bool = False) -> pa.Table:
    """Write the plan file, unless it has these units already.

    dry_run: only check and sort.

    Returns UNIT rows, highest predicted cost first, then by ``unit_id``.

    Raises:
        ManifestError: two units are the same.
        StorageError: the storage refused or failed.
    """
    if draft.is_written:
        return draft.units
    plan = in_order(draft.units)
    _check_distinct(plan)
    if not dry_run:
        write_parquet(remove_secrets(plan), _plan_uri(context), context.storage)
    return plan


def in_order(units: pa.Table) -> pa.Table:
    """Sort units as a plan has them: highest predicted cost first, then by ``unit_id``."""
    return units.sort_by([("predicted_cost", "descending"), ("unit_id", "ascending")])


def _without_media(units: pa.Table, media_ids: set[str]) -> pa.Table:
    is_among = pc.is_in(units["media_id"], pa.array(sorted(media_ids), pa.string()))
    return units.filter(pc.invert(is_among))


def _plan_uri(context: JobContext) -> str:
    return join(context.run.folder(context.job.output), "plan", "part-0.parquet")


def _new_units(
    units: pa.Table, items: Sequence[MediaItem], context: JobContext
) -> tuple[pa.Table, pa.Table]:
    """With ``only_new``, leave out units that the table has, where only probing identifies them."""
    if not context.job.input.only_new or all(is_matchable(item) for item in items):
        return units, LISTING.empty_table()
    with existing_media(context) as existing:
        return existing.new_units(units)


def _check_access(plan: pa.Table) -> None:
    """Check that some media can be read; else the job is wrong, not each item.

    Raises:
        StorageError: all media are missing or denied, or their storage failed.
    """
    kinds = pc.struct_field(plan["error"], "type")
    barred = pa.array(
        [ErrorType.MEDIA_DENIED, ErrorType.MEDIA_MISSING, ErrorType.STORAGE_FAILED], pa.string()
    )
    if plan.num_rows and pc.all(pc.is_in(kinds, barred)).as_py():
        message = plan["error"][0].as_py()["message"]
        num_media = pc.count_distinct(plan["media_id"]).as_py()
        raise StorageError(f"none of the {num_media:,} media can be read, such as {message}")


def _check_distinct(plan: pa.Table) -> None:
    if pc.count_distinct(plan["unit_id"]).as_py() == plan.num_rows:
        return
    counts = plan.group_by("unit_id").aggregate([("media_id", "count"), ("media_id", "first")])
    repeated = counts.filter(pc.greater(counts["media_id_count"], pa.scalar(1)))
    raise ManifestError(
        f"the manifest has {repeated.num_rows} time spans of media more than once, such as of "
        f"{repeated['media_id_first'][0]}: two rows have the same start_seconds and end_seconds "
        "after rounding; remove one of them"
    )
