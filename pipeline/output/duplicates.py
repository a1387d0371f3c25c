"""Keep exactly one row per unit: find superfluous rows, and remove them from their files.

A retry, a task that Ray runs twice, two drivers of one job, a killed ``reelscribe compact`` or
actors that outlive their driver leave several rows of one unit. ``find_superfluous_rows`` only
reads its arguments; ``remove_rows`` rewrites and deletes files; ``remove_duplicates`` calls both.

Any number of processes may do this at once, and be killed in between. A row is removed only if a
better one was read, in an order that is the same for all processes; a file only if its other rows
were written to a new file before, in which they are better by their level. So the best row of a
unit that was ever written stays, or its copy.

A row of the table is not removed for a row that is only in a piece: until that is sealed, a reader
of the plain files would find no row of the unit. ``seal.settle`` seals such pieces first.
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.output.file_names import is_piece, level_of, rewritten
from pipeline.output.table import is_readable, with_file_column
from pipeline.storage.parquet import read_parquet, write_parquet
from pipeline.storage.storage import Storage
from schemas.tables.unit import UnitStatus

STATUS_RANKS = {UnitStatus.OK: 0, UnitStatus.PARTIAL: 1, UnitStatus.FAILED: 2}
"""Of several rows of one unit, the row with the lowest rank is kept."""


def find_superfluous_rows(rows: pa.Table, plan: pa.Table | None = None) -> "pa.ChunkedArray[Any]":
    """Find the rows to remove so that each unit has one row.

    Of several rows of one unit the best is kept: the lowest ``STATUS_RANKS``, then the maximum of
    attempts, then of the file's level, then the first file name. The choice depends on the rows and
    their files alone: two processes keep the same row. A copy is better than its original, which
    the process that made it is about to remove.

    rows: columns ``unit_id``, ``status``, ``error`` and ``file``; with ``plan`` also ``media_id``,
        ``content_version``, ``media`` and ``parts``.
    plan: columns ``unit_id``, ``unread_id`` and ``content_version``. If given, stale error rows are
        found too: of media that are readable now, and of earlier content that could not be read.

    Returns a mask, bool [num_rows].
    """
    counts = pc.value_counts(rows["unit_id"])
    repeated = counts.field("values").filter(pc.greater(counts.field("counts"), pa.scalar(1)))
    stale = pa.chunked_array([pa.repeat(False, rows.num_rows)])
    if plan is not None:
        was_read = is_readable(rows)
        read_media = pc.unique(rows["media_id"].filter(was_read))
        stale = pc.and_not(pc.is_in(rows["media_id"], read_media), was_read)
        stale = pc.and_(stale, pc.is_in(rows["unit_id"], plan["unread_id"]))
        stale = pc.and_not(stale, pc.is_in(rows["unit_id"], plan["unit_id"]))
        stale = pc.or_(stale, _of_earlier_content(rows, pc.invert(was_read), plan))
    # Only these few become Python objects: a million rows would take gigabytes.
    indices = pc.indices_nonzero(pc.or_(pc.is_in(rows["unit_id"], repeated), stale))
    few = rows.select(["unit_id", "status", "error", "file"]).take(indices).to_pylist()
    is_stale = stale.take(indices).to_pylist()
    best: dict[str, tuple[int, int, int, str]] = {}
    for row, row_is_stale in zip(few, is_stale, strict=True):
        if not row_is_stale:  # it goes, so another row of the unit must not go because of it
            best[row["unit_id"]] = min(best.get(row["unit_id"], _rank(row)), _rank(row))
    is_superfluous = np.zeros(rows.num_rows, dtype=bool)
    is_superfluous[indices.to_numpy()] = [
        row_is_stale or best[row["unit_id"]][-1] != row["file"]
        for row, row_is_stale in zip(few, is_stale, strict=True)
    ]
    return pa.chunked_array([pa.array(is_superfluous)])


def _of_earlier_content(rows: pa.Table, is_unread: Any, plan: pa.Table) -> "pa.ChunkedArray[Any]":
    """Whether a row is about content that could not be read, and the plan has other content.

    Media that cannot be read have one ``unit_id``, whatever their content.
    """
    planned = plan.select(["unit_id", "content_version"])
    few = planned.filter(pc.is_in(planned["unit_id"], rows["unit_id"].filter(is_unread)))
    versions = {row["unit_id"]: row["content_version"] for row in few.to_pylist()}
    found = np.zeros(rows.num_rows, dtype=bool)
    indices = pc.indices_nonzero(is_unread)
    for k, row in zip(
        indices.to_pylist(),
        rows.select(["unit_id", "content_version"]).take(indices).to_pylist(),
        strict=True,
    ):
        now = versions.get(row["unit_id"])
        found[k] = None not in (now, row["content_version"]) and now != row["content_version"]
    return pa.chunked_array([pa.array(found)])


def _rank(row: dict[str, Any]) -> tuple[int, int, int, str]:
    """Sort key of a unit's rows; the lowest is kept. Of failed rows, more attempts are later."""
    attempts = (row["error"] or {}).get("attempts") or 0
    return STATUS_RANKS[row["status"]], -attempts, -level_of(row["file"]), row["file"]


def pieces_in_wait(rows: pa.Table, is_superfluous: "pa.ChunkedArray[Any]") -> list[str]:
    """Return the pieces with rows of media of which the table has superfluous rows.

    rows: as for ``find_superfluous_rows``, with ``media_id``.
    """
    in_piece = _in_piece(rows)
    replaced = rows["media_id"].filter(pc.and_not(is_superfluous, in_piece))
    is_new = pc.and_not(pc.and_(in_piece, pc.is_in(rows["media_id"], replaced)), is_superfluous)
    return _pieces(rows.filter(is_new))


def has_pieces(rows: pa.Table) -> bool:
    """Whether rows are of shards that are not sealed yet. rows: with ``file``."""
    return bool(_pieces(rows))


def _in_piece(rows: pa.Table) -> Any:
    """Whether each row is in a piece, bool [num_rows]."""
    return pc.is_in(rows["file"], pa.array(_pieces(rows), pa.string()))


def _pieces(rows: pa.Table) -> list[str]:
    files: list[Any] = pc.unique(rows["file"]).to_pylist()  # of a million rows, some hundred
    return [file for file in files if is_piece(file)]


def remove_duplicates(rows: pa.Table, storage: Storage, plan: pa.Table | None = None) -> pa.Table:
    """Remove superfluous rows from the table's files, but not for the sake of rows in pieces.

    rows, plan: as for ``find_superfluous_rows``, with ``media_id`` if there are pieces.

    Returns the rows that are not superfluous.

    Raises:
        StorageError: the storage refused or failed.
    """
    is_superfluous = find_superfluous_rows(rows, plan)
    if not pc.any(is_superfluous).as_py():
        return rows
    superfluous = rows.filter(is_superfluous)
    if has_pieces(rows) and (waiting := pieces_in_wait(rows, is_superfluous)):
        media = rows["media_id"].filter(pc.is_in(rows["file"], pa.array(waiting, pa.string())))
        stays = pc.and_not(pc.is_in(superfluous["media_id"], media), _in_piece(superfluous))
        superfluous = superfluous.filter(pc.invert(stays))
    remove_rows(superfluous, storage)
    return rows.filter(pc.invert(is_superfluous))


def settle_files(uris: Sequence[str], storage: Storage) -> None:
    """Remove superfluous rows from some files; those that are gone have been settled by others.

    Raises:
        StorageError: the storage refused or failed.
    """
    found = []
    for uri in uris:
        with suppress(FileNotFoundError):
            table = read_parquet(uri, storage, ["unit_id", "media_id", "status", "error"])
            found.append(with_file_column(table, uri))
    if found:
        rows = pa.concat_tables(found, promote_options="permissive")
        remove_duplicates(rows.unify_dictionaries(), storage)


def remove_rows(rows: pa.Table, storage: Storage) -> None:
    """Remove rows from the files of a table: write a file's other rows, then delete the file.

    rows: the id as the first column, and ``file``, the uri, as ``read_files`` returns them. Files
        that do not exist any more are skipped.

    Raises:
        StorageError: the storage refused or failed; only rows to remove can be missing.
    """
    id_column = rows.column_names[0]
    ids_of_file: dict[str, list[str]] = {}
    for row in rows.select([id_column, "file"]).to_pylist():
        ids_of_file.setdefault(row["file"], []).append(row[id_column])
    for file, ids in ids_of_file.items():
        try:
            table = read_parquet(file, storage)
        except FileNotFoundError:
            continue  # another process replaced it; the next start finds its rows
        kept = table.filter(pc.invert(pc.is_in(table[id_column], pa.array(ids, pa.string()))))
        if kept.num_rows:
            write_parquet(kept, rewritten(file), storage)
        storage.remove(file)
