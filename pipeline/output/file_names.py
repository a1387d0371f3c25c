"""The names of the table's files, and where they are.

    <output>/annotations/run_date=.../part-<run>-<recipe>-<token>-<level>.parquet
    <output>/annotations-pieces/run_date=.../part-...

A piece has some rows of a shard, and is there from their answers until the shard is sealed: then
its rows are in a file of ``annotations``.

Each write has a name that no other write has: a file never changes, and whoever removes one removes
what it has read. A token begins with the number of the shard, in eight hexadecimal digits.
"""

import re
import uuid
from collections.abc import Iterable
from typing import Any

from pipeline.storage.storage import Storage, join
from schemas.tables.annotation import ANNOTATIONS, PIECES

FILE_NAME = re.compile(r"(.*)/part-(.+)-([0-9a-z]+)-[0-9a-f]{16,32}(?:-\d{1,9})?\.parquet")
"""The uri of a file of the table: folder, run and recipe. Earlier versions wrote no level."""

_END = re.compile(r"-([0-9a-f]{16,32})(?:-(\d{1,9}))?\.parquet$")
_SHARD_DIGITS = 8
_PIECE = re.compile(f".*/{PIECES}/run_date=[^/]+/part-[^/]+")


def file_name(run_id: str, recipe_id: str, level: int = 0, shard: int = 0) -> str:
    """Return a new name for a file of a table; no other call returns it.

    level: 0 for new rows; for rows of other files, one more than the highest level of these.
    """
    return f"part-{run_id}-{recipe_id}{_new_end(f'{shard:0{_SHARD_DIGITS}x}', level)}"


def rewritten(file: str) -> str:
    """Return a new uri for rows of a file, of the same run, recipe and shard, of the next level."""
    shard = f"{shard_of(file):0{_SHARD_DIGITS}x}"
    return _END.sub("", file).removesuffix(".parquet") + _new_end(shard, level_of(file) + 1)


def level_of(file: str) -> int:
    """Return the level of a file, by its uri; 0 if its name has none."""
    found = _END.search(file)
    return int(found[2] or 0) if found else 0


def shard_of(file: str) -> int:
    """Return the shard of a piece, by its uri; of other files a number without meaning."""
    found = _END.search(file)
    return int(found[1][:_SHARD_DIGITS], 16) if found else 0


def is_piece(uri: str) -> bool:
    """Whether a file has rows of a shard that is not sealed yet."""
    return _PIECE.fullmatch(uri) is not None


def _new_end(shard: str, level: int) -> str:
    return f"-{shard}{uuid.uuid4().hex[_SHARD_DIGITS:]}-{level}.parquet"


def piece_files(
    output: str, storage: Storage, run_id: str | None = None, run_date: str = "*"
) -> list[dict[str, Any]]:
    """List the pieces of a run, or of all runs, as ``Storage.list_files`` does.

    Raises:
        StorageError: the storage refused or failed.
    """
    found = storage.list_files(join(output, PIECES), f"run_date={run_date}/part-*.parquet")
    if run_id is None:
        return found
    names = [FILE_NAME.fullmatch(file["uri"]) for file in found]
    return [file for file, name in zip(found, names, strict=True) if name and name[2] == run_id]


def table_files(folder: str, storage: Storage) -> list[dict[str, Any]]:
    """List the files of a table, those of ``annotations`` with the pieces, sorted by folder.

    Pieces first: a shard that is sealed in between is in both lists, and not in none.

    folder: ``<output>/annotations``, ``<output>/listing`` or ``<output>/items``.

    Raises:
        StorageError: the storage refused or failed.
    """
    output, _, name = folder.rpartition("/")
    found = piece_files(output, storage) if name == ANNOTATIONS else []
    return found + storage.list_files(folder, "*/part-*.parquet")


def a_file_of_each_recipe(files: Iterable[str]) -> list[str]:
    """Return one file of each recipe, by their names; files with other names are all returned."""
    named = {((found := FILE_NAME.fullmatch(file)) and found[3]) or file: file for file in files}
    return list(named.values())
