"""Write the table ``listing``: known content under other names, earlier content, gone media."""

import pyarrow as pa

from pipeline.output.rows import RunKey
from pipeline.output.table import file_name
from pipeline.output.views import write_views
from pipeline.storage.parquet import write_parquet
from pipeline.storage.storage import Storage, join
from schemas.tables.listing import LISTING


def write_listing(rows: pa.Table, output: str, key: RunKey, storage: Storage) -> None:
    """Write rows of ``listing`` as one file, and the views that read it; no rows, no file.

    rows: LISTING; their run becomes that of ``key``.

    Raises:
        StorageError: the file could not be written; no part of it is visible.
    """
    if not rows.num_rows:
        return
    run_ids = pa.array([key.run_id] * rows.num_rows, pa.string())
    at = LISTING.get_field_index("run_id")
    rows = rows.set_column(at, LISTING.field("run_id"), run_ids).sort_by("media_id")
    folder = join(output, "listing", f"run_date={key.run_date}")
    write_parquet(rows, join(folder, file_name(key.run_id, key.recipe_id)), storage)
    write_views(output, storage)
