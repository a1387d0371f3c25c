"""Seal a shard: its rows leave the pieces, and become one file of the table.

So a reader of the plain files of ``annotations`` finds no new row twice at any moment, and files of
some thousand rows, sorted by media and time.

The new file is written before its pieces are removed, and its level is higher: a process that is
killed in between leaves rows in both, of which ``duplicates`` keeps those of the file.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.output.duplicates import (
    find_superfluous_rows,
    has_pieces,
    pieces_in_wait,
    remove_duplicates,
)
from pipeline.output.file_names import FILE_NAME, file_name, level_of, piece_files, shard_of
from pipeline.output.rows import ANNOTATION, RunKey
from pipeline.output.table import check_rows, with_file_column
from pipeline.storage.parquet import read_parquet, readable, write_parquet
from pipeline.storage.storage import Storage, join
from schemas.tables.annotation import ANNOTATIONS, PIECES, RecipeIds

_PIECE = re.compile(
    f".*/{PIECES}/run_date=([^/]+)/part-(.+)-[0-9a-z]+-([0-9a-f]{{8}})[0-9a-f]{{24}}-\\d+\\.parquet"
)


def seal_pieces(files: Iterable[str], output: str, storage: Storage) -> None:
    """Seal what is left of the shards to which pieces belong, of any run.

    files: uris; those that are no pieces are passed over. If a run still works on such a shard, its
    other rows come into another file.

    Raises:
        StorageError: the storage refused or failed; no row is lost.
    """
    found = {match.groups() for file in set(files) if (match := _PIECE.fullmatch(file))}
    for run_date, run_id, digits in sorted(found):
        none = RecipeIds("", "", "", "")
        key = RunKey(run_id=run_id, recipe_ids=none, run_date=run_date)
        seal_shard(int(digits, 16), output, key, storage)


def settle(
    read: Callable[[], pa.Table], output: str, storage: Storage, plan: pa.Table | None = None
) -> pa.Table:
    """Remove superfluous rows of the table; pieces that have the better rows are sealed first.

    So a reader of the plain files finds a row of each unit at every moment: a retry that was killed
    has answers in pieces, and the rows that failed are still in the table.

    read: reads the rows, as ``find_superfluous_rows`` takes them with ``media_id``; called again if
        something was sealed. plan: as for ``find_superfluous_rows``.

    Returns the rows that are not superfluous.

    Raises:
        StorageError: the storage refused or failed; no row is lost.
    """
    rows = read()
    if has_pieces(rows):
        pieces = pieces_in_wait(rows, find_superfluous_rows(rows, plan))
        if pieces:
            seal_pieces(pieces, output, storage)
            rows = read()
    return remove_duplicates(rows, storage, plan)


def seal_shard(
    shard: int,
    output: str,
    key: RunKey,
    storage: Storage,
    check: Callable[[], None] = lambda: None,
) -> list[str]:
    """Write the rows of a shard's pieces as one file for each recipe, then remove the pieces.

    check: called before a file is written, and before pieces are removed; raises if another driver
        has the run.

    Returns the uris of the new files.

    Raises:
        FileNotFoundError: other processes keep removing pieces.
        StorageError: the storage refused or failed; no row is lost.
    """
    for is_last_attempt in (False, False, True):
        try:
            return _seal(shard, output, key, storage, check)
        except FileNotFoundError:  # a driver that has lost the run seals it too
            if is_last_attempt:
                raise
    raise AssertionError


def _seal(
    shard: int, output: str, key: RunKey, storage: Storage, check: Callable[[], None]
) -> list[str]:
    of_recipe: dict[str, list[str]] = defaultdict(list)
    for file in piece_files(output, storage, key.run_id, key.run_date):
        if shard_of(file["uri"]) == shard and (found := FILE_NAME.fullmatch(file["uri"])):
            of_recipe[found[3]].append(file["uri"])
    folder = join(output, ANNOTATIONS, f"run_date={key.run_date}")
    written = []
    for recipe_id, uris in of_recipe.items():
        rows = best_rows(uris, storage)
        name = file_name(key.run_id, recipe_id, max(map(level_of, uris)) + 1, shard)
        written.append(join(folder, name))
        check()
        write_parquet(rows, written[-1], storage)
        check()
        for uri in uris:
            storage.remove(uri)
    return written


def best_rows(uris: Sequence[str], storage: Storage) -> pa.Table:
    """Read files, and return the best row of each unit, sorted by media and time.

    Raises:
        FileNotFoundError: another process removed one.
        StorageError: the storage refused or failed.
    """
    tables = [_conform(read_parquet(uri, storage), uri) for uri in uris]
    is_superfluous = find_superfluous_rows(
        pa.concat_tables(
            with_file_column(table.select(["unit_id", "status", "error"]), uri)
            for table, uri in zip(tables, uris, strict=True)
        ).unify_dictionaries()
    )
    rows = pa.concat_tables(tables, promote_options="default").filter(pc.invert(is_superfluous))
    sort_columns = {
        "media_id": rows["media_id"],
        "start": pc.struct_field(rows["sampling"], "start_seconds"),
    }
    order = pc.sort_indices(
        pa.table(sort_columns), sort_keys=[("media_id", "ascending"), ("start", "ascending")]
    )
    return rows.take(order)


def _conform(table: pa.Table, uri: str) -> pa.Table:
    """Convert a table of another version to the current schema: missing columns become null.

    Columns that this version does not know are kept: a later version may have written them.
    """
    check_rows(table, ANNOTATION, uri)
    with readable(uri):
        columns = [_column(table, field) for field in ANNOTATION]
        known = pa.Table.from_arrays(columns, schema=ANNOTATION)
    for name in table.column_names:
        if name not in ANNOTATION.names:
            known = known.append_column(table.schema.field(name), table[name])
    return known


def _column(table: pa.Table, field: "pa.Field[Any]") -> "pa.ChunkedArray[Any]":
    if field.name not in table.column_names:
        # pa.nulls would put nulls into non-nullable fields of structs too.
        return pa.chunked_array([pa.array([None] * table.num_rows, field.type)])
    if table.schema.field(field.name).type == field.type:
        return table[field.name]
    # "permissive" adds missing fields to structs.
    parts = [table.select([field.name]), pa.schema([field]).empty_table()]
    return pa.concat_tables(parts, promote_options="permissive")[field.name].cast(field.type)
