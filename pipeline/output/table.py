"""Commit annotation rows as Parquet files, and read what is committed.

One file is one commit: it is written whole or not at all, and it holds everything known about its
units. So a killed run leaves only whole files, and the next run reads from them which units are
done. A task that Ray runs twice leaves two files, of which ``duplicates`` keeps one row a unit.
"""

import io
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.output.file_names import FILE_NAME, a_file_of_each_recipe, file_name, table_files
from pipeline.output.rows import ANNOTATION, RunKey
from pipeline.storage.parquet import read_parquet, read_schema, readable, write_parquet
from pipeline.storage.storage import Storage, join
from schemas.errors import ErrorType, JobFileError, StorageError
from schemas.shown import redact_uri
from schemas.tables.annotation import ANNOTATIONS
from schemas.tables.unit import UnitStatus


def commit_rows(
    rows: Iterable[dict[str, Any]],
    folder: str,
    key: RunKey,
    storage: Storage,
    schema: pa.Schema = ANNOTATION,
    shard: int = 0,
) -> None:
    """Commit rows as Parquet files, one for each recipe.

    folder: of the table, or of the pieces. shard: of the rows.

    Raises:
        StorageError: a file could not be written; no part of it is visible.
    """
    of_recipe: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=_reading_order):
        of_recipe.setdefault(row["recipe_id"], []).append(row)
    for recipe_id, some in of_recipe.items():
        name = file_name(key.run_id, recipe_id, shard=shard)
        table = pa.Table.from_pylist(some, schema=schema)
        write_parquet(table, join(folder, f"run_date={key.run_date}", name), storage)


def _reading_order(row: dict[str, Any]) -> tuple[str, float]:
    return row["media_id"], (row["sampling"] or {}).get("start_seconds") or 0.0


_FILES_PER_BATCH = 512

COUNTED = (
    "unit_id",
    "media_id",
    "content_version",
    "media.media_type",
    "run_id",
    "status",
    "error.type",
    "error.attempts",
    "sampling.decoder",
    "parts.list.element.sampling.decoder",
    "responses.list.element.status",
    "responses.list.element.num_prompt_tokens",
    "responses.list.element.num_output_tokens",
    "timings.decode_seconds",
    "timings.engine_seconds",
)
"""Columns from which the driver counts a run's units, tokens and seconds."""


def read_committed(
    output: str,
    recipe_ids: Collection[str],
    storage: Storage,
    columns: Sequence[str] = COUNTED,
    media_ids: "pa.Array[Any] | None" = None,
) -> pa.Table:
    """Read the committed rows of some recipes, from all runs.

    columns: the columns to read. media_ids: only rows of these media are kept.

    Returns the columns and ``file``, the uri of each row's file. Rows stay in Arrow: a million of
    them as Python objects would take gigabytes of the driver's memory.

    Raises:
        StorageError: the storage refused or failed.
    """
    folder = join(output, ANNOTATIONS)
    return read_files(folder, recipe_ids, storage, columns, ANNOTATION, media_ids)


def read_files(
    folder: str,
    recipe_ids: Collection[str] | None,
    storage: Storage,
    columns: Sequence[str],
    schema: pa.Schema,
    media_ids: "pa.Array[Any] | None" = None,
) -> pa.Table:
    """Read some columns of all files of some recipes, and ``file``, the uri of each row's file.

    recipe_ids: None: of all recipes. schema: of the files. media_ids: only rows of these media are
    kept. If files are replaced while they are read, because a shard is sealed or by ``reelscribe
    compact``, the listing is read again.

    Raises:
        StorageError: the storage refused or failed.
    """

    def read(file: dict[str, Any]) -> pa.Table:
        table = read_parquet(file["uri"], storage, list(columns), file["size"])
        check_rows(table, schema, file["uri"])
        return with_file_column(table, file["uri"])

    buffer = io.BytesIO()
    pq.write_table(schema.empty_table(), buffer)
    empty = with_file_column(pq.ParquetFile(buffer).read(columns=list(columns)), "")

    def read_all() -> pa.Table:
        held = [empty]
        files = [
            file
            for file in table_files(folder, storage)
            if recipe_ids is None
            or ((found := FILE_NAME.fullmatch(file["uri"])) and found[3] in recipe_ids)
        ]
        with ThreadPoolExecutor(16) as pool:
            for start in range(0, len(files), _FILES_PER_BATCH):
                some = [empty, *pool.map(read, files[start : start + _FILES_PER_BATCH])]
                # Files of an earlier version may lack a column.
                with readable(folder):
                    table = pa.concat_tables(some, promote_options="default")
                if media_ids is not None:
                    table = table.filter(pc.is_in(table["media_id"], media_ids))
                held.append(table)
        return pa.concat_tables(held).unify_dictionaries()

    for _ in range(2):
        with suppress(FileNotFoundError):
            return read_all()
    return read_all()


def check_columns(named: Iterable["pa.Field[Any]"], output: str, storage: Storage) -> None:
    """Check that the table has no other columns of these names: SQL could not read both as one.

    named: the columns of a job's questions with names of their own.

    Raises:
        JobFileError: it has such a column.
        StorageError: the storage refused or failed.
    """
    columns = {field.name: field.type for field in named}
    if not columns:
        return
    files = table_files(join(output, ANNOTATIONS), storage)
    for file in a_file_of_each_recipe(file["uri"] for file in files):
        with suppress(FileNotFoundError):
            for field in read_schema(file, storage):
                type_ = columns.get(field.name, field.type)
                if not _fit(field.type, type_):
                    raise JobFileError(
                        f"the task {field.name} has answers of type {type_}, but the table in "
                        f"{output} has a column {field.name} of type {field.type} from an earlier "
                        "job: choose another name, or another output"
                    )


def _fit(one: pa.DataType, other: pa.DataType) -> bool:
    """Whether SQL can read columns of both types as one, as it does with ``union_by_name``."""
    if pa.types.is_struct(one) and pa.types.is_struct(other):
        shared = {field.name for field in one} & {field.name for field in other}
        return all(_fit(one.field(name).type, other.field(name).type) for name in shared)
    if pa.types.is_list(one) and pa.types.is_list(other):
        return _fit(one.value_type, other.value_type)
    return one == other or not (pa.types.is_nested(one) or pa.types.is_nested(other))


def check_rows(table: pa.Table, schema: pa.Schema, uri: str) -> None:
    """Check that rows of a file have the types of ``schema``, ids and a status.

    table: some columns of the file ``uri``, which another program may have written.

    Raises:
        StorageError: they have not.
    """
    for field in schema:
        if field.name not in table.column_names:
            continue
        found = table[field.name]
        is_wrong = not _is_alike(found.type, field.type)
        if pa.types.is_string(field.type) and not field.nullable:  # ids and the status
            is_wrong |= found.null_count > 0 or found.type != field.type
        if is_wrong:
            raise StorageError(
                f"{redact_uri(uri)} is not a file of the table: its column {field.name} is "
                f"{found.type} with {found.null_count} nulls, not {field.type}; move it away"
            )
        if field.name == "status":
            known = [UnitStatus.OK, UnitStatus.PARTIAL, UnitStatus.FAILED]
            is_known = pc.is_in(found, pa.array(known, pa.string()))
            if not pc.all(is_known, min_count=0).as_py():
                raise StorageError(
                    f"{redact_uri(uri)} is not a file of the table: it has a status that is none "
                    f"of {', '.join(known)}; move it away"
                )


def _is_alike(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether values of a type can be used as values of another one; null types can."""
    if pa.types.is_null(found):
        return True
    if pa.types.is_dictionary(found):
        return _is_alike(found.value_type, wanted)
    if pa.types.is_struct(wanted):
        names = {field.name for field in wanted}
        return pa.types.is_struct(found) and all(
            _is_alike(field.type, wanted.field(field.name).type)
            for field in found
            if field.name in names
        )
    if pa.types.is_list(wanted):
        return pa.types.is_list(found) and _is_alike(found.value_type, wanted.value_type)
    if pa.types.is_timestamp(wanted):
        return pa.types.is_timestamp(found) and bool(found.tz) == bool(wanted.tz)
    if pa.types.is_string(wanted):
        return pa.types.is_string(found) or pa.types.is_large_string(found)
    if pa.types.is_floating(wanted):
        return pa.types.is_floating(found) or pa.types.is_integer(found)
    return pa.types.is_integer(found) if pa.types.is_integer(wanted) else found == wanted


def with_file_column(table: pa.Table, uri: str) -> pa.Table:
    """Append the column ``file``: the uri, dictionary-encoded."""
    indices = pa.array([0] * table.num_rows, pa.int32())
    return table.append_column("file", pa.DictionaryArray.from_arrays(indices, pa.array([uri])))


def ids_in(table: pa.Table, column: str) -> list[str]:
    """The values of a column of ids, which has no nulls."""
    return cast(list[str], table[column].to_pylist())


def is_readable(rows: pa.Table) -> "pa.ChunkedArray[Any]":
    """Whether the media of each row could be read, bool [num_rows].

    Media that were read but cannot meet the request (``bad_request``) count as readable.

    rows: of a plan or of the table. In tables of an earlier version ``parts`` is null.
    """
    has_parts = pc.fill_null(pc.greater(pc.list_value_length(rows["parts"]), pa.scalar(0)), False)
    is_refused = pc.equal(
        pc.struct_field(rows["error"], "type"), pa.scalar(ErrorType.BAD_REQUEST.value)
    )
    is_found = pc.or_(pc.is_valid(rows["media"]), has_parts)
    found: pa.ChunkedArray[Any] = pc.or_(is_found, pc.fill_null(is_refused, False))
    return found
