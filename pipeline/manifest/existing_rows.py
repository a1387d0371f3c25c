"""Read the few columns of the output's tables that say which content is known under which name."""

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.storage.parquet import read_parquet
from pipeline.storage.storage import Storage, join
from schemas.tables.annotation import ANNOTATIONS, PIECES
from schemas.tables.listing import LISTING

_MIN_INSERTED_ROWS = 200_000

_SEEN: dict[str, tuple[pa.DataType, str]] = {
    "media_id": (pa.string(), "media_id"),
    "uri": (pa.string(), "uri"),
    "recipe_id": (pa.string(), "recipe_id"),
    "content_version": (pa.string(), "content_version"),
    "media_type": (pa.string(), "media.media_type"),
    "finished_at": (pa.timestamp("us", tz="UTC"), "timings.finished_at"),
}
_COLUMNS = _SEEN | {
    "unit_id": (pa.string(), "unit_id"),
    "error_type": (pa.string(), "error.type"),
    "media_version": (pa.string(), "media.content_version"),
    "begin_seconds": (pa.float64(), "media.begin_seconds"),
    "duration_seconds": (pa.float64(), "media.duration_seconds"),
    "start_seconds": (pa.float64(), "sampling.start_seconds"),
    "end_seconds": (pa.float64(), "sampling.end_seconds"),
}


def read_rows(output: str, recipe_ids: Collection[str], storage: Storage) -> Iterator[pa.Table]:
    """Read the rows of all recipes; of other recipes only what says which content a name has.

    Raises:
        FileNotFoundError: a file vanished while it was read.
        StorageError: the storage refused or failed.
    """

    def columns(uri: str) -> list[str]:
        name = uri.rpartition("/")[2]
        is_of_recipe = any(f"-{recipe_id}-" in name for recipe_id in recipe_ids)
        return [path for _, path in (_COLUMNS if is_of_recipe else _SEEN).values()]

    # Pieces first: a shard that is sealed meanwhile is read twice, and not never.
    for folder in (PIECES, ANNOTATIONS):
        for table in _read_files(join(output, folder), columns, storage):
            yield flat(table)


def read_listing(output: str, storage: Storage) -> Iterator[pa.Table]:
    """Read the table ``listing``.

    Raises:
        FileNotFoundError: a file vanished while it was read.
        StorageError: the storage refused or failed.
    """
    yield from _read_files(join(output, "listing"), lambda _: LISTING.names, storage)


def _read_files(
    folder: str, columns: Callable[[str], list[str]], storage: Storage
) -> Iterator[pa.Table]:
    """Read columns of each file of a table, 16 files at a time."""

    def read(file: dict[str, Any]) -> pa.Table:
        return read_parquet(file["uri"], storage, columns(file["uri"]), file["size"])

    files = (file for page in storage.list_pages(folder, "*/part-*.parquet") for file in page)
    with ThreadPoolExecutor(16) as pool:
        while some := list(itertools.islice(files, 64)):
            yield from pool.map(read, some)


def flat(table: pa.Table) -> pa.Table:
    """The columns of ``_COLUMNS``, without nesting, of a table of rows or of units.

    One that the table lacks is null.
    """
    columns: dict[str, Any] = {}
    for name, (type_, path) in _COLUMNS.items():
        top, _, field = path.partition(".")
        column: Any = table[top] if top in table.column_names else None
        if column is not None and field:
            names = [part.name for part in column.type.fields]
            column = pc.struct_field(column, field) if field in names else None
        has = column is not None
        columns[name] = column.cast(type_) if has else pa.array([None] * table.num_rows, type_)
    return pa.table(columns)


def batches(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
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
