"""Write the table ``listing``: known content under other names, earlier content, gone media."""

from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.output.file_names import file_name
from pipeline.output.rows import RunKey
from pipeline.output.views import write_views
from pipeline.storage.parquet import write_parquet
from pipeline.storage.storage import Storage, join
from schemas.tables.listing import LISTING, MAX_AHEAD_SECONDS


def believed(time: datetime | None) -> datetime:
    """Return a row's time; the earliest of all if it has none, or if it is far in the future."""
    latest = datetime.now(UTC) + timedelta(seconds=MAX_AHEAD_SECONDS)
    return time if time is not None and time <= latest else datetime.min.replace(tzinfo=UTC)


def write_listing(rows: pa.Table, output: str, key: RunKey, storage: Storage) -> None:
    """Write rows of ``listing``, a file for each recipe, and the views that read it.

    rows: LISTING; their run becomes that of ``key``.

    Raises:
        StorageError: a file could not be written; no part of it is visible.
    """
    if not rows.num_rows:
        return
    run_ids = pa.array([key.run_id] * rows.num_rows, pa.string())
    at = LISTING.get_field_index("run_id")
    rows = rows.set_column(at, LISTING.field("run_id"), run_ids).sort_by("media_id")
    folder = join(output, "listing", f"run_date={key.run_date}")
    for recipe_id in pc.unique(rows["recipe_id"]):
        some = rows.filter(pc.equal(rows["recipe_id"], recipe_id))
        write_parquet(some, join(folder, file_name(key.run_id, recipe_id.as_py())), storage)
    write_views(output, storage)
