"""Join the small files of the output into large ones, and take out what is superseded.

The new file is written before the old ones are removed, so no row is ever missing; for the moment
in between, a reader of the plain files may see rows twice, which the view ``latest`` never shows.
A kill in that moment leaves both, and the next ``compact`` or ``annotate`` takes the second out.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.storage import Storage, join
from pipeline.views import connect
from pipeline.write import ANNOTATION, drop_rows, part_name, read_parquet, write_parquet
from schemas.unit import UnitStatus

COMPACTED = "compacted"
"""Stands in a file's name where the run's id would."""

_NAME = re.compile(r"(.*)/part-(.+)-([0-9a-f]+)-[0-9a-f]{16}\.parquet")


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Files of one partition and recipe that become one."""

    folder: str
    recipe_id: str
    files: list[dict[str, Any]]


def bins(output: str, storage: Storage, target_bytes: int) -> Iterator[Bin]:
    """Choose which files to join: the small ones, in order of name, up to ``target_bytes``.

    Raises:
        StorageError: the storage refused or failed.
    """
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for page in storage.list_pages(join(output, "annotations"), "*/part-*.parquet"):
        for file in page:
            found = _NAME.fullmatch(file["uri"])
            if found and file["size"] < target_bytes / 2:
                groups[found[1], found[3]].append(file)
    for (folder, recipe_id), files in sorted(groups.items()):
        held: list[dict[str, Any]] = []
        size = 0
        for file in files:
            if held and size + file["size"] > target_bytes:
                yield Bin(folder=folder, recipe_id=recipe_id, files=held)
                held, size = [], 0
            held.append(file)
            size += file["size"]
        yield Bin(folder=folder, recipe_id=recipe_id, files=held)


def join_files(some: Bin, storage: Storage) -> int:
    """Write the rows of a bin's files as one file, then remove them; returns how many went.

    Raises:
        StorageError: the storage refused or failed; no row is lost then.
    """
    if len(some.files) < 2:
        return 0
    try:
        tables = [(file["uri"], read_parquet(file["uri"], storage)) for file in some.files]
    except FileNotFoundError:
        return 0  # a run beside us just wrote it anew: another time
    table = _once(tables)
    table = table.take(
        pc.sort_indices(
            pa.table(
                {
                    "media_id": table["media_id"],
                    "start": pc.struct_field(table["sampling"], "start_seconds"),
                }
            ),
            sort_keys=[("media_id", "ascending"), ("start", "ascending")],
        )
    )
    name = part_name(table["unit_id"].to_pylist(), COMPACTED, some.recipe_id)
    new = f"{some.folder}/{name}"
    write_parquet(table, new, storage)
    old = [uri for uri, _ in tables if uri != new]
    for uri in old:
        storage.remove(uri)
    return len(old)


def _once(tables: list[tuple[str, pa.Table]]) -> pa.Table:
    """All rows, of each unit the one that ``settle`` would leave."""
    best: dict[str, tuple[Any, int, int]] = {}
    for k, (uri, table) in enumerate(tables):
        rows = table.select(["unit_id", "status", "error"]).to_pylist()
        for i, row in enumerate(rows):
            ranked = (_order(row, uri), k, i)
            best[row["unit_id"]] = min(best.get(row["unit_id"], ranked), ranked)
    kept: dict[int, list[int]] = defaultdict(list)
    for _, k, i in best.values():
        kept[k].append(i)
    parts = [
        _conform(table.take(pa.array(kept[k], pa.int64()))) for k, (_, table) in enumerate(tables)
    ]
    return pa.concat_tables(parts, promote_options="default")


def _order(row: dict[str, Any], file: str) -> tuple[int, int, str]:
    """As ``settle`` chooses among rows of one unit: the least stays."""
    attempts = row["error"]["attempts"] if row["error"] else 0
    return list(UnitStatus).index(UnitStatus(row["status"])), -attempts, file


def _conform(table: pa.Table) -> pa.Table:
    """Bring a table of another version into the present schema: columns that it lacks are null.

    Columns that this version does not know, which a later one may have written, stay.
    """
    columns = [_column(table, field) for field in ANNOTATION]
    known = pa.Table.from_arrays(columns, schema=ANNOTATION)
    for name in table.column_names:
        if name not in ANNOTATION.names:
            known = known.append_column(table.schema.field(name), table[name])
    return known


def _column(table: pa.Table, field: pa.Field) -> pa.ChunkedArray:
    if field.name not in table.column_names:
        # Not pa.nulls, which has nulls inside of structs too, where no file may have any.
        return pa.chunked_array([pa.array([None] * table.num_rows, field.type)])
    if table.schema.field(field.name).type == field.type:
        return table[field.name]
    # Structs get the fields that they lack.
    parts = [table.select([field.name]), pa.schema([field]).empty_table()]
    return pa.concat_tables(parts, promote_options="permissive")[field.name].cast(field.type)


def drop_superseded(output: str, before: str, storage: Storage) -> int:
    """Take out rows of partitions before a date that the view ``latest`` does not show.

    before: ``2026-08-24``. Returns how many rows went.

    Raises:
        StorageError: the storage refused or failed.
    """
    with connect(output, storage) as db:
        pattern = join(output, "annotations", "*", "part-*.parquet")
        old = db.sql(
            """SELECT unit_id, filename AS file FROM read_parquet($pattern, hive_partitioning =
            true, union_by_name = true, filename = true) AS rows WHERE run_date < $before::DATE AND
            NOT EXISTS (FROM latest WHERE latest.unit_id = rows.unit_id
            AND latest.recipe_id = rows.recipe_id)""",
            params={"pattern": pattern, "before": before},
        ).to_arrow_table()
    drop_rows(old, storage)
    return int(old.num_rows)
