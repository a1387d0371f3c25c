"""A run's plan: read it, complete it, plan some media again, and write it.

Only ``write_plan`` writes. A plan is a table of UNIT rows.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console

from jobs.plan.listing import existing_media
from jobs.plan.open_job import JobContext
from jobs.plan.probe import probe_items
from pipeline.manifest.existing import is_matchable
from pipeline.output.table import COUNTED, ids_in, read_committed
from pipeline.plan.plan_file import (
    check_distinct,
    failed_media,
    in_order,
    plan_files,
    plan_folder,
    read_plan_file,
    slice_plan,
    whole_plan,
    with_fresh,
    without_media,
    write_plan_file,
)
from pipeline.plan.secrets import restore_secrets
from pipeline.plan.shards import SHARDS_PER_SLICE, with_shards
from schemas.errors import ErrorType, StorageError
from schemas.tables.listing import LISTING
from schemas.tables.manifest import MediaItem
from schemas.tables.unit import UNIT


@dataclass(frozen=True, kw_only=True)
class Draft:
    """The units of a plan, before they are written.

    units: UNIT rows. is_written: the plan file has exactly these, in their final order.
    planned_again: ids of media whose units may differ from those of the plan that is written.
    listing: LISTING rows of media whose units were left out, because their content is known.
    """

    units: pa.Table
    is_written: bool
    planned_again: frozenset[str] = frozenset()
    listing: pa.Table = field(default_factory=LISTING.empty_table)


def folder_of_plan(context: JobContext) -> str:
    """The folder of the run's plan."""
    return plan_folder(context.run.folder(context.job.output))


def read_plan(context: JobContext, items: Sequence[MediaItem]) -> pa.Table:
    """Read the run's plan: UNIT rows, highest predicted cost first, of each slice if it has some.

    items: the job's; signed uris are restored from them.

    Raises:
        FileNotFoundError: there is none yet, or ``reelscribe compact`` has removed it.
        StorageError: the storage refused or failed, or a file is no plan.
    """
    storage = context.storage
    uris = plan_files(context.run.folder(context.job.output), storage)
    if len(uris) <= 1:
        (uri,) = uris or [whole_plan(folder_of_plan(context))]
        return read_plan_file(uri, storage, items)
    with ThreadPoolExecutor(16) as pool:
        files = pool.map(lambda uri: read_plan_file(uri, storage, ()), uris)
        return restore_secrets(pa.concat_tables(files), items)


def read_rows(context: JobContext, plan: pa.Table, columns: Sequence[str] = COUNTED) -> pa.Table:
    """Read the committed rows of the plan's media under the run's recipes, from all runs.

    Returns the columns and ``file``; a unit may have several rows until ``remove_duplicates``.

    Raises:
        StorageError: the storage refused or failed.
    """
    media_ids = plan["media_id"].combine_chunks().unique()
    recipe_ids = context.run.recipe_ids
    return read_committed(context.job.output, recipe_ids, context.storage, columns, media_ids)


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
    failed = failed_media(plan)
    if plan.num_rows and (context.run.starts or not failed):
        return Draft(units=plan, is_written=True)
    kept = without_media(plan, failed)
    planned = set(ids_in(kept, "media_id"))
    missing = [item for item in items if item.media_id not in planned]
    found = probe_items(missing, context, console)
    # With `only_new`, the items left may all be ones that were never readable.
    if not context.num_known:
        check_access(pa.concat_tables([kept, found]))
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
    again = frozenset(ids_in(fresh, "media_id"))
    return Draft(units=with_fresh(plan, fresh), is_written=False, planned_again=again)


def write_plan(draft: Draft, context: JobContext, *, dry_run: bool = False) -> pa.Table:
    """Write the plan, unless its file has these units already; of slices those that differ.

    dry_run: only check and sort.

    Returns UNIT rows, highest predicted cost first, then by ``unit_id``.

    Raises:
        ManifestError: two units are the same.
        StorageError: the storage refused or failed.
    """
    if draft.is_written:
        return draft.units
    plan = in_order(draft.units)
    check_distinct(plan)
    if dry_run:
        return plan
    folder, storage = folder_of_plan(context), context.storage
    if not storage.list_files(folder, "slice-*.parquet"):
        write_plan_file(plan, whole_plan(folder), storage)
        return plan
    is_again = pc.is_in(plan["media_id"], pa.array(sorted(draft.planned_again), pa.string()))
    slices = plan["shard"].to_numpy() // SHARDS_PER_SLICE
    for number in np.unique(slices[is_again.to_numpy()]).tolist():
        units = plan.filter(pa.array(slices == number))
        write_plan_file(units, slice_plan(folder, number), storage)
    return plan


def _new_units(
    units: pa.Table, items: Sequence[MediaItem], context: JobContext
) -> tuple[pa.Table, pa.Table]:
    """With ``only_new``, leave out units that the table has, where only probing identifies them."""
    if not context.job.input.only_new or all(is_matchable(item) for item in items):
        return units, LISTING.empty_table()
    with existing_media(context) as existing:
        return existing.new_units(units)


def check_access(plan: pa.Table) -> None:
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
