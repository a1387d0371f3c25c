"""The output as SQL views for DuckDB: all rows, the latest rows, and the rows of whole videos.

``latest.sql`` has patterns, which DuckDB expands in each query, and ``latest`` reads the table
twice. So that no row is missed while a shard is sealed, pieces are listed before the table, each
time, and the columns by which rows are chosen are listed before all columns are. A row that is
chosen from a file that the second list lacks is then from a file that was removed before the query
opens it, which is an error of DuckDB. ``connect`` lists once, and gives DuckDB the names.
"""

import glob
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import pyarrow as pa

from pipeline.output.file_names import table_files
from pipeline.output.rows import ITEM
from pipeline.storage.parquet import write_parquet
from pipeline.storage.storage import Storage, join
from schemas.errors import StorageError, UserError
from schemas.tables.annotation import ANNOTATIONS, PIECES
from schemas.tables.listing import MAX_AHEAD_SECONDS

T = TypeVar("T")
Files = dict[str, list[str]]
"""The uris of the files of each table, by its name, in the order of ``table_files``."""

_TABLES = (ANNOTATIONS, "listing", "items")
_NO_PIECES = ("run_date=1970-01-01", "_empty.parquet")
"""Below the pieces: DuckDB refuses a pattern that matches no file, and finds this one.

Other readers pass over it, as over all names with ``_`` in front. It is listed first.
"""

_RANK = "array_position(['ok', 'partial', 'failed'], status)"

_IS_BELIEVED = f"epoch_us({{}}) <= epoch_us(now()) + {MAX_AHEAD_SECONDS * 1_000_000}"

VIEWS = """\
-- Views of the output of reelscribe, for DuckDB. `annotations` has every row of every run, also
-- those of runs at work, which are in the folder annotations-pieces until their shard is sealed;
-- while it is, a row may be there twice. A query that fails as a file is gone has to be repeated.
-- `listing` says which names have content that was known already, and which are gone.
-- `latest` has one row for each unit of the media that are there: for each name (media_id) its
-- newest content, under the newest recipe that it was annotated with, for each time span only the
-- newest question. Where the content is known under another name, `copied_from` says from which
-- row the answers are. Media that could not be read are in it only if no other recipe could read
-- the same content. A time that is more than an hour ahead of this computer's clock counts as none,
-- so that a wrong clock does not win for ever.
CREATE OR REPLACE VIEW annotations AS
FROM read_parquet({annotations}, hive_partitioning = true, union_by_name = true);
CREATE OR REPLACE VIEW listing AS
FROM {listing};
CREATE OR REPLACE VIEW latest AS
WITH keys AS (
    SELECT unit_id, media_id, uri, recipe_id, content_version, status, filename, file_row_number,
        CASE WHEN {is_believed} THEN timings.finished_at END AS finished_at, run_date,
        coalesce(error.attempts, 0) AS attempts,
        error IS NOT NULL AND media IS NULL AND len(parts) = 0 AS is_unread,
        coalesce(error.type = 'media_missing', false) OR (error IS NOT NULL AND media IS NULL
            AND len(parts) = 0 AND content_version IS NULL) AS is_mute,
        sampling IS NOT NULL AS is_span, sampling.start_seconds AS start_seconds,
        sampling.end_seconds AS end_seconds
    FROM read_parquet({annotations}, hive_partitioning = true, union_by_name = true,
        filename = true, file_row_number = true)
), seen AS (
    SELECT media_id, uri, recipe_id, content_version, media_id AS answers_of, false AS is_gone,
        is_unread, is_mute, finished_at AS seen_at, run_date, filename FROM keys
    UNION ALL
    SELECT media_id, uri, recipe_id, content_version, answers_of, is_gone,
        false, false, CASE WHEN {is_listed} THEN listed_at END, run_date, run_id FROM listing
), content AS (
    SELECT *, first_value((is_gone, content_version)) OVER (PARTITION BY media_id
        ORDER BY is_mute, seen_at DESC NULLS LAST, run_date DESC,
        filename) AS newest
    FROM seen
), wanted AS (
    SELECT media_id AS name, uri AS name_uri, recipe_id, content_version, answers_of FROM content
    WHERE NOT is_gone AND (is_gone, content_version) IS NOT DISTINCT FROM newest
    QUALIFY row_number() OVER (PARTITION BY media_id ORDER BY is_unread,
        seen_at DESC NULLS LAST, run_date DESC, filename) = 1
), units AS (
    SELECT name, name_uri, keys.* FROM wanted JOIN keys ON keys.media_id = answers_of
        AND keys.recipe_id = wanted.recipe_id
        AND keys.content_version IS NOT DISTINCT FROM wanted.content_version
    QUALIFY row_number() OVER (PARTITION BY name, unit_id ORDER BY {rank}, attempts DESC,
        filename, file_row_number) = 1
), best AS (
    SELECT name AS _name, CASE WHEN name <> media_id THEN name_uri END AS _copy_uri, filename,
        file_row_number FROM units
    QUALIFY NOT is_span OR row_number() OVER (PARTITION BY is_span, name, start_seconds,
        end_seconds ORDER BY finished_at DESC NULLS LAST, run_date DESC, filename) = 1
)
SELECT rows.* EXCLUDE (filename, file_row_number) REPLACE (
        _name AS media_id,
        coalesce(_copy_uri, rows.uri) AS uri,
        CASE WHEN _name = rows.media_id THEN rows.unit_id
            ELSE left(sha256(concat(_name, chr(31), rows.unit_id)), 24) END AS unit_id),
    CASE WHEN _name <> rows.media_id THEN
        {{'unit_id': rows.unit_id, 'media_id': rows.media_id, 'uri': rows.uri}}
        END AS copied_from
FROM best JOIN read_parquet({annotations}, hive_partitioning = true, union_by_name = true,
    filename = true, file_row_number = true) AS rows USING (filename, file_row_number);
"""

_NO_LISTING = """(SELECT ''::VARCHAR AS media_id, ''::VARCHAR AS uri, ''::VARCHAR AS run_id,
    ''::VARCHAR AS recipe_id, ''::VARCHAR AS content_version, ''::VARCHAR AS answers_of,
    false AS is_gone, NULL::TIMESTAMPTZ AS listed_at, NULL::DATE AS run_date LIMIT 0)"""

_ITEMS = """\
-- `items` has a row for each whole video, from the runs that wrote such rows.
CREATE OR REPLACE VIEW items AS
FROM read_parquet({items}, hive_partitioning = true, union_by_name = true);
"""


def views_sql(output: str, storage: Storage) -> str:
    """The views of an output folder, as SQL; without ``items`` where the output has no such table.

    They need the file that ``write_views`` puts beside the pieces.

    Raises:
        StorageError: the storage refused or failed.
    """

    def pattern(*parts: str) -> str:
        return _quoted(join(glob.escape(output), *parts))

    places = {
        name: pattern(name, "*", "part-*.parquet")
        for name in _TABLES
        if name == ANNOTATIONS or _files(output, name, storage)
    }
    places[ANNOTATIONS] = f"[{pattern(PIECES, '*', '*.parquet')},\n    {places[ANNOTATIONS]}]"
    return _views(places)


def _views(places: dict[str, str]) -> str:
    """The views, as SQL. places: what ``read_parquet`` takes for each table that has files."""
    listing = _NO_LISTING
    if "listing" in places:
        listing = f"read_parquet({places['listing']}, hive_partitioning = true)"
    sql = VIEWS.format(
        annotations=places[ANNOTATIONS],
        listing=listing,
        rank=_RANK,
        is_believed=_IS_BELIEVED.format("timings.finished_at"),
        is_listed=_IS_BELIEVED.format("listed_at"),
    )
    return sql + (_ITEMS.format(items=places["items"]) if "items" in places else "")


def _quoted(text: str) -> str:
    return "'{}'".format(text.replace("'", "''"))


def _files(output: str, table: str, storage: Storage) -> list[str]:
    return [file["uri"] for file in table_files(join(output, table), storage)]


def write_views(output: str, storage: Storage) -> None:
    """Write ``latest.sql`` into the output folder, and an empty file beside the pieces.

    Raises:
        StorageError: the storage refused or failed.
    """
    folder, name = join(output, PIECES, _NO_PIECES[0]), _NO_PIECES[1]
    if not storage.list_files(folder, name):
        write_parquet(pa.table({"unit_id": pa.array([], pa.string())}), join(folder, name), storage)
    storage.write_bytes(join(output, "latest.sql"), views_sql(output, storage).encode())


def connect(output: str, storage: Storage) -> Any:
    """Open a DuckDB connection that has the views and reads through the job's storage.

    The views have the files of one listing, as variables named after ``files_of``: what is
    committed later is not in them, and a query fails if one of the files is gone; ``read_views``
    repeats it then. An output without the table ``items`` has an empty view of it.

    Raises:
        StorageError: the protocol is unknown or its package is missing, or a file is damaged.
    """
    return _with_present_files(output, storage, lambda files: _open(output, files, storage))


def read_views(output: str, storage: Storage, read: Callable[[Any], T]) -> T:
    """Call a function with a connection as of ``connect``; again if a file vanished meanwhile.

    A shard that is sealed, a retry and ``reelscribe compact`` replace files.

    read: reads all rows that it needs before it changes anything; called up to three times.

    Raises:
        StorageError: as for ``connect``.
        Exception: what ``read`` raised.
    """

    def attempt(files: Files) -> T:
        with _open(output, files, storage) as db:
            return read(db)

    return _with_present_files(output, storage, attempt)


def _with_present_files(output: str, storage: Storage, use: Callable[[Files], T]) -> T:
    """Call a function with the files of the tables; again if it fails and one of them is gone."""
    import duckdb

    for is_last_attempt in (False, False, True):
        files = {table: _files(output, table, storage) for table in _TABLES}
        try:
            return use(files)
        except (duckdb.Error, OSError, UserError):
            if is_last_attempt or all(
                set(files[table]) <= set(_files(output, table, storage)) for table in _TABLES
            ):
                raise
    raise AssertionError


def files_of(table: str) -> str:
    """Return the files of a table as SQL, for ``read_parquet``, in a connection of ``connect``."""
    return f"getvariable('{table}_files')"


def hide_pieces(db: Any) -> bool:
    """Let a connection of ``connect`` read the table's files alone; returns whether this is new."""
    uris = db.execute(f"SELECT unnest({files_of(ANNOTATIONS)})").fetchall()
    sealed = [uri for (uri,) in uris if f"/{PIECES}/" not in uri]
    _set_files(ANNOTATIONS, sealed, db)
    return len(sealed) < len(uris)


def _set_files(table: str, uris: list[str], db: Any) -> None:
    db.execute(f"SET VARIABLE {table}_files = $uris", {"uris": uris})


def _open(output: str, files: Files, storage: Storage) -> Any:
    import duckdb

    connection = duckdb.connect()
    if "://" in output:
        fs, path = storage.filesystem(output)
        for folder in (PIECES, *_TABLES):
            fs.find(join(path, folder))  # s3fs keeps this: without it, each open asks for the size
        connection.register_filesystem(fs)
    with readable_table():
        for table, uris in files.items():
            _set_files(table, [glob.escape(uri) for uri in uris], connection)
        present = {table: files_of(table) for table in _TABLES if files[table]}
        connection.execute(_views({ANNOTATIONS: files_of(ANNOTATIONS)} | present))
        if not files["items"]:
            connection.register("items", ITEM.empty_table())
    return connection


@contextmanager
def readable_table() -> Iterator[None]:
    """Turn what DuckDB raises on damaged files, or on files of other types, into StorageError."""
    import duckdb

    try:
        yield
    except duckdb.Error as error:
        raise StorageError(
            f"the table cannot be read: {error}; for a damaged file see disasters in "
            "docs/operations.md"
        ) from None
