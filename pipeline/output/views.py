"""The output as SQL views for DuckDB: all rows, the latest rows, and the rows of whole videos."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipeline.output.file_names import WITH_PIECES
from pipeline.output.rows import ITEM
from pipeline.storage.storage import Storage, join
from schemas.errors import StorageError
from schemas.tables.listing import MAX_AHEAD_SECONDS

_RANK = "array_position(['ok', 'partial', 'failed'], status)"

_IS_BELIEVED = f"epoch_us({{}}) <= epoch_us(now()) + {MAX_AHEAD_SECONDS * 1_000_000}"

VIEWS = """\
-- Views of the output of reelscribe, for DuckDB. `annotations` has every row of every run, also
-- those of runs at work, which are in the folder annotations-pieces until their shard is sealed.
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
FROM read_parquet({annotations}, hive_partitioning = true, union_by_name = true,
    filename = true, file_row_number = true) AS rows
JOIN best USING (filename, file_row_number);
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

    Raises:
        StorageError: the storage refused or failed.
    """

    def pattern(table: str) -> str:
        return "'{}'".format(join(output, table, "*", "part-*.parquet").replace("'", "''"))

    listing = _NO_LISTING
    if _has(output, "listing", storage):
        listing = f"read_parquet({pattern('listing')}, hive_partitioning = true)"
    sql = VIEWS.format(
        annotations=pattern(WITH_PIECES),
        listing=listing,
        rank=_RANK,
        is_believed=_IS_BELIEVED.format("timings.finished_at"),
        is_listed=_IS_BELIEVED.format("listed_at"),
    )
    has_items = _has(output, "items", storage)
    return sql + (_ITEMS.format(items=pattern("items")) if has_items else "")


def _has(output: str, table: str, storage: Storage) -> bool:
    """Whether the output has files of a table; DuckDB refuses a view of none."""
    return bool(storage.list_files(join(output, table), "*/part-*.parquet"))


def write_views(output: str, storage: Storage) -> None:
    """Write ``latest.sql`` into the output folder.

    Raises:
        StorageError: the storage refused or failed.
    """
    storage.write_bytes(join(output, "latest.sql"), views_sql(output, storage).encode())


def connect(output: str, storage: Storage) -> Any:
    """Open a DuckDB connection that has the views and reads through the job's storage.

    An output without the table ``items`` has an empty view of it.

    Raises:
        StorageError: the protocol is unknown or its package is missing, or a file is damaged.
    """
    import duckdb

    connection = duckdb.connect()
    if "://" in output:
        connection.register_filesystem(storage.filesystem(output)[0])
    with readable_table():
        connection.execute(views_sql(output, storage))
        if not _has(output, "items", storage):
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
