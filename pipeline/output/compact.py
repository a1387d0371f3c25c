"""Join the small files of the table into large ones, and find rows that are superseded.

The new file is written before the old ones are deleted, so no row is ever missing; its level is
higher, so no other process keeps the old ones instead (see ``duplicates``). In between, a
reader of the plain files may see rows twice; the view ``latest`` never shows them twice. A process
that is killed in between leaves both; the next ``compact`` or ``annotate`` removes the duplicates.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.output.file_names import FILE_NAME, file_name, level_of
from pipeline.output.listing import believed
from pipeline.output.rows import ANNOTATION
from pipeline.output.seal import best_rows
from pipeline.output.table import ids_in, read_files
from pipeline.output.views import files_of, hide_pieces, read_views, readable_table
from pipeline.storage.parquet import write_parquet
from pipeline.storage.storage import Storage, join
from schemas.tables.listing import LISTING

COMPACTED = "compacted"
"""Replaces the run's id in the name of a joined file."""


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Files of one partition and one recipe that become one file.

    files: ``uri`` and ``size`` in bytes, as the storage lists them.
    """

    folder: str
    recipe_id: str
    files: list[dict[str, Any]]


def find_bins(output: str, storage: Storage, target_bytes: int) -> Iterator[Bin]:
    """Group the files smaller than half of ``target_bytes`` into bins of at most ``target_bytes``.

    Raises:
        StorageError: the storage refused or failed.
    """
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for page in storage.list_pages(join(output, "annotations"), "*/part-*.parquet"):
        for file in page:
            found = FILE_NAME.fullmatch(file["uri"])
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


def join_files(group: Bin, storage: Storage) -> int:
    """Write the rows of a bin's files as one file, one row per unit; then delete the old files.

    Returns the number of deleted files.

    Raises:
        StorageError: the storage refused or failed; no row is lost.
    """
    if len(group.files) < 2:
        return 0
    uris = [file["uri"] for file in group.files]
    try:
        rows = best_rows(uris, storage)
    except FileNotFoundError:
        return 0  # a running job has just replaced it: the next `compact` joins it
    name = file_name(COMPACTED, group.recipe_id, max(map(level_of, uris)) + 1)
    write_parquet(rows, join(group.folder, name), storage)
    for uri in uris:
        storage.remove(uri)
    return len(uris)


def find_superseded_rows(output: str, before: str, storage: Storage) -> pa.Table:
    """Find rows in partitions before a date that the view ``latest`` does not show.

    Rows whose answers it shows under another name are not among them. Nor are rows that it shows
    without the pieces: a reader of the plain files has nothing newer until these are sealed.

    before: ``2026-08-24``. Returns columns ``unit_id`` and ``file``.

    Raises:
        StorageError: the storage refused or failed.
    """

    def find(db: Any) -> pa.Table:
        return _query(
            f"""SELECT unit_id, filename AS file FROM read_parquet({files_of("annotations")},
            hive_partitioning = true, union_by_name = true, filename = true) AS rows
            WHERE run_date < $before::DATE AND NOT EXISTS (FROM latest
            WHERE coalesce(copied_from.unit_id, latest.unit_id) = rows.unit_id
            AND latest.recipe_id = rows.recipe_id)""",
            before,
            db,
        )

    def find_twice(db: Any) -> pa.Table:
        found = find(db)
        if not hide_pieces(db):
            return found
        return found.join(find(db), ["unit_id", "file"], join_type="left semi")

    return read_views(output, storage, find_twice)


def find_superseded_items(output: str, before: str, storage: Storage) -> pa.Table:
    """Find rows of whole videos in partitions before a date of which ``latest`` shows no unit.

    Returns columns ``item_id`` and ``file``.

    Raises:
        StorageError: the storage refused or failed.
    """
    if not storage.list_files(join(output, "items"), "*/part-*.parquet"):
        return pa.table({"item_id": pa.array([], pa.string()), "file": pa.array([], pa.string())})
    query = f"""SELECT item_id, filename AS file FROM read_parquet({files_of("items")},
        hive_partitioning = true, union_by_name = true, filename = true) AS rows
        WHERE run_date < $before::DATE AND NOT EXISTS (FROM latest
        WHERE coalesce(copied_from.media_id, latest.media_id) = rows.media_id)"""
    return read_views(output, storage, lambda db: _query(query, before, db))


def _query(query: str, before: str, db: Any) -> pa.Table:
    """The rows of a query with a date, ``$before``."""
    with readable_table():
        found: pa.Table = db.sql(query, params={"before": before}).to_arrow_table()
    return found


def join_listing(output: str, storage: Storage) -> int:
    """Join the files of the table ``listing``, with the newest row of each name and recipe.

    Rows of media that are gone and have no row in the table are dropped: nothing is left of them.

    Returns the number of removed files.

    Raises:
        StorageError: the storage refused or failed; no row that counts is lost.
    """
    rows = read_files(join(output, "listing"), None, storage, LISTING.names, LISTING)
    table = read_files(join(output, "annotations"), None, storage, ["media_id"], ANNOTATION)
    known = pc.is_in(rows["media_id"], pc.unique(table["media_id"])).to_pylist()
    newest: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)  # by name and recipe
    pairs = list(zip(rows.to_pylist(), known, strict=True))
    pairs.sort(key=lambda pair: believed(pair[0]["listed_at"]))
    for row, has_rows in pairs:
        newest[row["media_id"]][row["recipe_id"]] = row
        if row["is_gone"] and not has_rows:
            newest[row["media_id"]].clear()
    kept = [row for _, of_recipes in sorted(newest.items()) for row in of_recipes.values()]
    num_removed = 0
    for recipe_id in sorted(set(ids_in(rows, "recipe_id"))):
        read = rows.filter(pc.equal(rows["recipe_id"], pa.scalar(recipe_id)))
        old = sorted(set(ids_in(read, "file")))
        some = [row for row in kept if row["recipe_id"] == recipe_id]
        if len(old) == 1 and len(some) == read.num_rows:
            continue
        if some:
            day = f"{max(row['listed_at'] for row in some):%Y-%m-%d}"
            name = file_name(COMPACTED, recipe_id, max(map(level_of, old)) + 1)
            uri = join(output, "listing", f"run_date={day}", name)
            write_parquet(pa.Table.from_pylist(some, schema=LISTING), uri, storage)
        for uri in old:
            storage.remove(uri)
        num_removed += len(old)
    return num_removed
