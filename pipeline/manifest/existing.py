"""Find the media that the output table has already, for ``input.only_new``.

A few columns of the table are read into DuckDB, which keeps to a memory limit and spills to disk,
so that a table of ten million media fits. Media items are then looked up in batches.

Media are identified by content. An etag that is an MD5, as S3 gives it (with the number of parts
for a multipart upload), identifies the bytes under any name. Other versions (size and time, a
generation) identify content only together with the media id, so a renamed object counts as new.
"""

import itertools
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.storage.parquet import read_parquet
from pipeline.storage.storage import Storage, join
from schemas.errors import TRANSIENT, ErrorType
from schemas.tables.manifest import MediaItem

MEMORY_LIMIT = "1GB"
_MIN_INSERTED_ROWS = 200_000
_EPS_SECONDS = 0.01

# Identifies the content, see above. Hashed to 16 bytes, since DuckDB holds millions of them.
_KEY = r"""md5_number(CASE WHEN regexp_full_match(content_version, '[0-9a-f]{32}(-\d+)?')
    THEN content_version ELSE concat(media_id, chr(31), content_version) END)"""

_COLUMNS = {
    "content_version": ("content_version",),
    "media_id": ("media_id",),
    "error_type": ("error", "type"),
    "media_type": ("media", "media_type"),
    "begin_seconds": ("media", "begin_seconds"),
    "duration_seconds": ("media", "duration_seconds"),
    "start_seconds": ("sampling", "start_seconds"),
    "end_seconds": ("sampling", "end_seconds"),
}

_CREATE_SPANS = """
CREATE OR REPLACE TABLE span (key UHUGEINT, start_seconds DOUBLE, end_seconds DOUBLE,
    first DOUBLE, last DOUBLE, is_whole BOOLEAN);
"""

# The table has a whole video if its spans leave no gap from the first frame to the last.
_CREATE_WHOLE = f"""
CREATE TABLE whole AS
    SELECT DISTINCT key FROM span WHERE is_whole
    UNION
    SELECT key FROM (
        SELECT *, max(end_seconds) OVER (PARTITION BY key ORDER BY start_seconds
            ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS reached
        FROM span WHERE NOT is_whole)
    GROUP BY key HAVING min(start_seconds) <= min(first) + {_EPS_SECONDS}
        AND max(end_seconds) >= max(last) - {_EPS_SECONDS}
        AND bool_and(reached IS NULL OR start_seconds <= reached + {_EPS_SECONDS})
"""

# A bad request (a span after the end) does not mean that the rest of the video was annotated.
_INSERT = f"""
INSERT INTO span
SELECT {_KEY}, start_seconds, end_seconds, begin_seconds, begin_seconds + duration_seconds,
    CASE WHEN media_type IS NULL THEN error_type IS DISTINCT FROM $bad_request
    ELSE media_type = 'image' OR (start_seconds <= begin_seconds + {_EPS_SECONDS}
        AND end_seconds >= begin_seconds + duration_seconds - {_EPS_SECONDS}) END
FROM batch
WHERE content_version IS NOT NULL AND (error_type IS NULL OR NOT list_contains($transient, error_type))
"""  # noqa: E501


class ExistingMedia:
    """The media that the table has under a recipe, in a database; a context manager.

    Rows with a transient error do not count, so that their media are tried again.
    """

    def __init__(self, output: str, recipe_id: str, storage: Storage) -> None:
        """Read the table.

        Raises:
            StorageError: the storage refused or failed.
        """
        self._folder = tempfile.TemporaryDirectory(prefix="reelscribe-")
        self._db = duckdb.connect(
            config={
                "memory_limit": MEMORY_LIMIT,
                "temp_directory": self._folder.name,
                "preserve_insertion_order": False,
            }
        )
        for is_last_attempt in (False, False, True):
            self._db.execute(_CREATE_SPANS)
            try:
                for batch in _batches(_read_parts(output, recipe_id, storage)):
                    self._insert(batch)
                break
            except FileNotFoundError:  # `reelscribe compact` joined a file with others meanwhile
                if is_last_attempt:
                    raise
        self._db.execute(_CREATE_WHOLE)

    def __enter__(self) -> Self:
        """Return self."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Delete the database."""
        self._db.close()
        self._folder.cleanup()

    def _insert(self, batch: pa.Table) -> None:
        self._db.register("batch", batch)
        types = {"transient": sorted(TRANSIENT), "bad_request": ErrorType.BAD_REQUEST.value}
        self._db.execute(_INSERT, types)
        self._db.unregister("batch")

    def new_items(self, items: list[MediaItem]) -> list[MediaItem]:
        """Return the items that are not in the table, or only in part.

        Items without a version, or with a time span, are returned too: ``new_units`` checks them.
        """
        matchable = [(k, item) for k, item in enumerate(items) if matchable_without_probe(item)]
        versions = [item.content_version for _, item in matchable]
        batch = pa.table(
            {
                "k": pa.array([k for k, _ in matchable], pa.int64()),
                "media_id": pa.array([item.media_id for _, item in matchable], pa.string()),
                "content_version": pa.array(versions, pa.string()),
            }
        )
        self._db.register("batch", batch)
        known = self._db.execute(f"SELECT k FROM batch SEMI JOIN whole ON {_KEY} = key").fetchall()
        self._db.unregister("batch")
        left_out = {k for (k,) in known}
        return [item for k, item in enumerate(items) if k not in left_out]

    def new_units(self, units: pa.Table) -> pa.Table:
        """Return the planned units of each media item that has a span which is not in the table.

        All units of such an item are kept, since the row of a whole video needs its whole plan;
        the run does not annotate again the units that are in the table.
        """
        batch = _flat(units).append_column("unit_id", units["unit_id"])
        self._db.register("batch", batch)
        known = self._db.execute(
            f"""SELECT unit_id FROM batch SEMI JOIN span ON {_KEY} = key
                AND round(batch.start_seconds, 3) IS NOT DISTINCT FROM round(span.start_seconds, 3)
                AND round(batch.end_seconds, 3) IS NOT DISTINCT FROM round(span.end_seconds, 3)
                WHERE content_version IS NOT NULL"""
        ).fetchall()
        self._db.unregister("batch")
        are_known = pa.array([unit_id for (unit_id,) in known], pa.string())
        is_new = pc.invert(pc.is_in(units["unit_id"], are_known))
        return units.filter(pc.is_in(units["media_id"], units["media_id"].filter(is_new)))


def matchable_without_probe(item: MediaItem) -> bool:
    """Whether an item can be found in the table from its manifest row alone."""
    return bool(item.content_version) and (item.start_seconds, item.end_seconds) == (None, None)


def _read_parts(output: str, recipe_id: str, storage: Storage) -> Iterator[pa.Table]:
    """Read the columns of each file under the recipe, 16 files at a time."""
    columns = [".".join(path) for path in _COLUMNS.values()]

    def read(file: dict[str, Any]) -> pa.Table:
        return _flat(read_parquet(file["uri"], storage, columns, file["size"]))

    pages = storage.list_pages(join(output, "annotations"), f"*/part-*-{recipe_id}-*.parquet")
    files = (file for page in pages for file in page)
    with ThreadPoolExecutor(16) as pool:
        while some := list(itertools.islice(files, 64)):
            yield from pool.map(read, some)


def _flat(table: pa.Table) -> pa.Table:
    """The columns of ``_COLUMNS``, without nesting; one that an older table lacks is null."""
    columns: dict[str, Any] = {}
    for name, (top, *path) in _COLUMNS.items():
        column = table[top] if top in table.column_names else pa.nulls(table.num_rows, pa.string())
        columns[name] = pc.struct_field(column, path) if path else column
    return pa.table(columns)


def _batches(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Join small tables, since each insert into DuckDB costs time."""
    held: list[pa.Table] = []
    rows = 0
    for table in tables:
        held.append(table)
        rows += table.num_rows
        if rows >= _MIN_INSERTED_ROWS:
            yield pa.concat_tables(held)
            held, rows = [], 0
    if held:
        yield pa.concat_tables(held)
