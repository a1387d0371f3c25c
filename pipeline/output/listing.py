"""Write the table ``listing``: known content under other names, earlier content, gone media."""

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.output.rows import RunKey
from pipeline.output.table import file_name, ids_in
from pipeline.output.views import write_views
from pipeline.storage.parquet import write_parquet
from pipeline.storage.storage import Storage, join
from schemas.tables.listing import LISTING


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
        # The time: a name may have the same content once more, after another, in the same run's id.
        ids = [*ids_in(some, "media_id"), str(some["listed_at"][0])]
        write_parquet(some, join(folder, file_name(ids, key.run_id, recipe_id.as_py())), storage)
    write_views(output, storage)
