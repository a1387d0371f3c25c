"""Rows in files of the table, as sealed shards have them."""

from pipeline.output import table
from pipeline.output.rows import ANNOTATION
from pipeline.storage.storage import join


def commit_rows(rows, output, key, storage, schema=ANNOTATION) -> None:
    """Commit rows as files of ``annotations``, without a piece before."""
    table.commit_rows(rows, join(output, "annotations"), key, storage, schema)
