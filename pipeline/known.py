"""Which media the output table has already, by their content: what ``input.only_new`` leaves out.

The rows of a table of ten million media are read part by part, a few columns of each, into DuckDB,
which keeps to a memory limit and spills to disk. Media are then asked about in batches; of those
that are known, nothing is held.

What identifies content: an etag that is the MD5 of the bytes, as S3 gives it (of a multipart upload
with the number of parts), identifies them under any name. What other storages tell (size and time,
a generation) identifies the version of one media item only, so there a renamed object is new.
"""

import itertools
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.storage import Storage, join
from pipeline.write import read_parquet
from schemas.errors import PASSING, ErrorType
from schemas.manifest import MediaItem

MEMORY_LIMIT = "1GB"
_INSERTED_ROWS = 200_000
_EPS_SECONDS = 0.01

# A name for the content: see the module. Hashed to 16 bytes, since millions of them are held.
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

_TABLES = """
CREATE OR REPLACE TABLE stretch (key UHUGEINT, start_seconds DOUBLE, end_seconds DOUBLE,
    first DOUBLE, last DOUBLE, is_whole BOOLEAN);
"""

# Media are whole in the table if their stretches leave no gap from the first frame to the last.
_WHOLE = f"""
CREATE TABLE whole AS
    SELECT DISTINCT key FROM stretch WHERE is_whole
    UNION
    SELECT key FROM (
        SELECT *, max(end_seconds) OVER (PARTITION BY key ORDER BY start_seconds
            ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS reached
        FROM stretch WHERE NOT is_whole)
    GROUP BY key HAVING min(start_seconds) <= min(first) + {_EPS_SECONDS}
        AND max(end_seconds) >= max(last) - {_EPS_SECONDS}
        AND bool_and(reached IS NULL OR start_seconds <= reached + {_EPS_SECONDS})
"""

# A request that its media cannot meet (a stretch past the end) says nothing of the other requests.
_INSERT = f"""
INSERT INTO stretch
SELECT {_KEY}, start_seconds, end_seconds, begin_seconds, begin_seconds + duration_seconds,
    CASE WHEN media_type IS NULL THEN error_type IS DISTINCT FROM $bad_request
    ELSE media_type = 'image' OR (start_seconds <= begin_seconds + {_EPS_SECONDS}
        AND end_seconds >= begin_seconds + duration_seconds - {_EPS_SECONDS}) END
FROM batch
WHERE content_version IS NOT NULL AND (error_type IS NULL OR NOT list_contains($passing, error_type))
"""  # noqa: E501


class Known:
    """The media that the table has under a recipe. A context manager: it holds a database.

    Rows that failed by what may have passed do not count: these media are taken again.
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
        for last in (False, False, True):
            self._db.execute(_TABLES)
            try:
                for batch in _batches(_parts(output, recipe_id, storage)):
                    self._insert(batch)
            except FileNotFoundError:  # `reelscribe compact` joined it with others meanwhile
                if last:
                    raise
            else:
                break
        self._db.execute(_WHOLE)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Drop the database."""
        self._db.close()
        self._folder.cleanup()

    def _insert(self, batch: pa.Table) -> None:
        self._db.register("batch", batch)
        asked = {"passing": sorted(PASSING), "bad_request": ErrorType.BAD_REQUEST.value}
        self._db.execute(_INSERT, asked)
        self._db.unregister("batch")

    def new_items(self, items: list[MediaItem]) -> list[MediaItem]:
        """Leave out the items that are in the table as a whole.

        An item without a version, or with a stretch of its own, stays: only its units can tell.
        """
        asked = [
            (k, item.media_id, item.content_version)
            for k, item in enumerate(items)
            if is_told(item)
        ]
        columns = [list(column) for column in zip(*asked, strict=True)] or [[], [], []]
        batch = pa.table(
            {
                "k": pa.array(columns[0], pa.int64()),
                "media_id": pa.array(columns[1], pa.string()),
                "content_version": pa.array(columns[2], pa.string()),
            }
        )
        self._db.register("batch", batch)
        known = self._db.execute(f"SELECT k FROM batch SEMI JOIN whole ON {_KEY} = key").fetchall()
        self._db.unregister("batch")
        gone = {k for (k,) in known}
        return [item for k, item in enumerate(items) if k not in gone]

    def new_units(self, units: pa.Table) -> pa.Table:
        """Leave out units of the plan of media of which every planned stretch is in the table.

        Media of which some are new keep all their units, of which a run takes the rows that there
        are: what is said of an item as a whole follows from its plan.
        """
        batch = _flat(units).append_column("unit_id", units["unit_id"])
        self._db.register("batch", batch)
        known = self._db.execute(
            f"""SELECT unit_id FROM batch SEMI JOIN stretch ON {_KEY} = key
                AND round(batch.start_seconds, 3) IS NOT DISTINCT FROM round(stretch.start_seconds, 3)
                AND round(batch.end_seconds, 3) IS NOT DISTINCT FROM round(stretch.end_seconds, 3)
                WHERE content_version IS NOT NULL"""  # noqa: E501
        ).fetchall()
        self._db.unregister("batch")
        are_known = pa.array([unit_id for (unit_id,) in known], pa.string())
        is_new = pc.invert(pc.is_in(units["unit_id"], are_known))
        return units.filter(pc.is_in(units["media_id"], units["media_id"].filter(is_new)))


def is_told(item: MediaItem) -> bool:
    """Whether an item can be told to be known from the manifest alone."""
    return bool(item.content_version) and (item.start_seconds, item.end_seconds) == (None, None)


def _parts(output: str, recipe_id: str, storage: Storage) -> Iterator[pa.Table]:
    """Read the columns of each part under the recipe; some parts at a time."""
    columns = [".".join(path) for path in _COLUMNS.values()]

    def read(file: dict[str, Any]) -> pa.Table:
        return _flat(read_parquet(file["uri"], storage, columns, file["size"]))

    pages = storage.list_pages(join(output, "annotations"), f"*/part-*-{recipe_id}-*.parquet")
    files = (file for page in pages for file in page)
    with ThreadPoolExecutor(16) as pool:
        while some := list(itertools.islice(files, 64)):
            yield from pool.map(read, some)


def _flat(table: pa.Table) -> pa.Table:
    """The columns that say what of which content a row is about, one level deep.

    A table of before has no ``content_version`` of its own; that of its media is the same.
    """
    columns = {}
    for name, (top, *path) in _COLUMNS.items():
        column = table[top] if top in table.column_names else pa.nulls(table.num_rows, pa.string())
        columns[name] = pc.struct_field(column, path) if path else column
    return pa.table(columns)


def _batches(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Join small tables: an insert has a price of its own."""
    held: list[pa.Table] = []
    rows = 0
    for table in tables:
        held.append(table)
        rows += table.num_rows
        if rows >= _INSERTED_ROWS:
            yield pa.concat_tables(held)
            held, rows = [], 0
    if held:
        yield pa.concat_tables(held)
