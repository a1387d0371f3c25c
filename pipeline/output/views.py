"""The output as SQL views for DuckDB: all rows, and the latest rows, one per unit."""

from typing import Any

from pipeline.storage.storage import Storage, join
from schemas.errors import StorageError

_RANK = "array_position(['ok', 'partial', 'failed'], status)"

VIEWS = """\
-- Views of the output of reelscribe, for DuckDB. `annotations` has every row of every run.
-- `latest` has one row for each unit: for each media item only its newest content and the newest
-- recipe that it was annotated with, for each time span only the newest question. Error rows of
-- media that could not be read are in it only if the media have no other rows.
CREATE OR REPLACE VIEW annotations AS
FROM read_parquet({annotations}, hive_partitioning = true, union_by_name = true);
CREATE OR REPLACE VIEW latest AS
WITH keys AS (
    SELECT unit_id, media_id, recipe_id, content_version, status, filename, file_row_number,
        timings.finished_at AS finished_at, run_date, coalesce(error.attempts, 0) AS attempts,
        error IS NOT NULL AND media IS NULL AND len(parts) = 0 AS is_unread,
        sampling IS NOT NULL AS is_span, sampling.start_seconds AS start_seconds,
        sampling.end_seconds AS end_seconds
    FROM read_parquet({annotations}, hive_partitioning = true, union_by_name = true,
        filename = true, file_row_number = true)
), newest AS (
    SELECT *, first_value((recipe_id, content_version)) OVER (PARTITION BY media_id
        ORDER BY is_unread, finished_at DESC NULLS LAST, run_date DESC, filename) AS wanted
    FROM keys
), units AS (
    SELECT * FROM newest WHERE (recipe_id, content_version) IS NOT DISTINCT FROM wanted
    QUALIFY row_number() OVER (PARTITION BY unit_id ORDER BY {rank}, attempts DESC, filename,
        file_row_number) = 1
), best AS (
    SELECT filename, file_row_number FROM units
    QUALIFY NOT is_span OR row_number() OVER (PARTITION BY is_span, media_id, start_seconds,
        end_seconds ORDER BY finished_at DESC NULLS LAST, run_date DESC, filename) = 1
)
SELECT rows.* EXCLUDE (filename, file_row_number)
FROM read_parquet({annotations}, hive_partitioning = true, union_by_name = true,
    filename = true, file_row_number = true) AS rows
SEMI JOIN best USING (filename, file_row_number);
"""


def views_sql(output: str) -> str:
    """The views of an output folder, as SQL."""
    pattern = join(output, "annotations", "*", "part-*.parquet").replace("'", "''")
    return VIEWS.format(annotations=f"'{pattern}'", rank=_RANK)


def write_views(output: str, storage: Storage) -> None:
    """Write ``latest.sql`` into the output folder.

    Raises:
        StorageError: the storage refused or failed.
    """
    storage.write_bytes(join(output, "latest.sql"), views_sql(output).encode())


def connect(output: str, storage: Storage) -> Any:
    """Open a DuckDB connection that has the views and reads through the job's storage.

    Raises:
        StorageError: the protocol is unknown or its package is missing, or a file is damaged.
    """
    import duckdb

    connection = duckdb.connect()
    if "://" in output:
        connection.register_filesystem(storage.filesystem(output)[0])
    try:
        connection.execute(views_sql(output))
    except duckdb.Error as error:
        raise StorageError(
            f"the table cannot be read: {error}; for a damaged file see disasters in "
            "docs/operations.md"
        ) from None
    return connection
