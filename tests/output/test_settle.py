"""Rows that failed go when their answers are sealed, not before: also after a retry was killed."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from pipeline.output import table
from pipeline.output.compact import find_superseded_rows
from pipeline.output.duplicates import remove_duplicates, remove_rows, settle_files
from pipeline.output.file_names import piece_files
from pipeline.output.seal import settle
from pipeline.output.table import read_committed
from pipeline.storage.storage import Storage, join
from schemas.tables.annotation import PIECES
from schemas.tables.columns import to_table
from schemas.tables.unit import UNIT, Unit
from tests.support.annotation_rows import row
from tests.support.run_key import run_key
from tests.support.sealed import commit_rows

KEY = run_key("test-20260101-abcdef", "abc", run_date="2026-01-01")
OTHER = run_key("other-20260102-abcdef", "abc", run_date="2026-01-02")
STORAGE = Storage()
COLUMNS = (*table.COUNTED, "media", "parts")


def failed(unit_id: str, media_id: str, **columns) -> dict:
    return row(unit_id, media_id, "v", error="storage_failed", **columns)


def commit_piece(rows: list[dict], output: Path, shard: int = 0, key=KEY) -> None:
    table.commit_rows(rows, join(str(output), PIECES), key, STORAGE, shard=shard)


def reader(output: Path, storage: Storage) -> Callable[[], pa.Table]:
    return lambda: read_committed(str(output), ["abc"], storage, COLUMNS)


def plain(output: Path) -> list[tuple[str, str, str]]:
    """Media, unit and status of each row, for a program that knows nothing but Parquet."""
    found = ds.dataset(output / "annotations").to_table(["media_id", "unit_id", "status"])
    return sorted(tuple(row.values()) for row in found.to_pylist())


class Watching(Storage):
    """Keeps what a reader of the plain files finds after each change; is killed at one."""

    def __init__(self, output: Path, at: int | None = None) -> None:
        super().__init__()
        self.output, self.at, self.seen = output, at, []

    def _turn(self) -> None:
        self.seen.append(plain(self.output))
        if len(self.seen) == self.at:
            raise KeyboardInterrupt

    def write_bytes(self, uri: str, content: bytes) -> None:
        super().write_bytes(uri, content)
        self._turn()

    def remove(self, uri: str) -> None:
        super().remove(uri)
        self._turn()


def killed_retry(output: Path) -> None:
    """The table has rows that failed; their answers are in pieces of shards that are not whole."""
    commit_rows([failed("a", "ma"), row("b", "mb", "v")], str(output), KEY, STORAGE)
    commit_rows([failed("c", "mc")], str(output), OTHER, STORAGE)
    commit_piece([row("a", "ma", "v")], output, shard=3)
    commit_piece([row("c", "mc", "v")], output, shard=4, key=OTHER)
    commit_piece([row("d", "md", "v")], output, shard=5)


@pytest.mark.parametrize("at", [None, 1, 2, 3, 4, 5, 6])
def test_a_reader_of_the_plain_files_finds_each_unit_after_a_killed_retry(tmp_path, at):
    killed_retry(tmp_path)
    storage = Watching(tmp_path, at)
    try:
        settle(reader(tmp_path, storage), str(tmp_path), storage)
    except KeyboardInterrupt:
        assert at is not None
    assert len(storage.seen) == (at or 7)  # two shards; of one file only a row goes
    for found in storage.seen:
        assert {unit_id for _, unit_id, _ in found} == {"a", "b", "c"}
    left = settle(reader(tmp_path, STORAGE), str(tmp_path), STORAGE)
    assert sorted(left["unit_id"].to_pylist()) == ["a", "b", "c", "d"]
    assert plain(tmp_path) == [("ma", "a", "ok"), ("mb", "b", "ok"), ("mc", "c", "ok")]
    assert len(piece_files(str(tmp_path), STORAGE)) == 1  # nothing in the table waits for it


def test_the_error_row_of_a_video_goes_when_its_units_are_sealed(tmp_path):
    """Media that could not be read have one row; the retry found several units in them."""
    commit_rows([failed("unread", "m", readable=False)], str(tmp_path), KEY, STORAGE)
    units = [row(k, "m", "v", video=(0.0, 9.0, start, start + 4.5)) for k, start in
             (("first", 0.0), ("second", 4.5))]  # fmt: skip
    commit_piece(units[:1], tmp_path)
    fields = {"media_id": "m", "uri": "m", "unread_id": "unread"}
    plan = to_table([Unit(unit_id=k, **fields) for k in ("first", "second")], UNIT)
    storage = Watching(tmp_path)
    left = settle(reader(tmp_path, storage), str(tmp_path), storage, plan)
    assert storage.seen and all(found for found in storage.seen)
    assert left["unit_id"].to_pylist() == ["first"]
    assert plain(tmp_path) == [("m", "first", "ok")]


def test_pieces_that_come_meanwhile_take_no_row_from_the_table(tmp_path):
    """They are not sealed yet; the next one who settles seals them."""
    killed_retry(tmp_path)
    before = plain(tmp_path)
    left = remove_duplicates(reader(tmp_path, STORAGE)(), STORAGE)
    assert plain(tmp_path) == before
    assert sorted(left["status"].to_pylist()) == ["ok"] * 4
    settle_files([row["file"] for row in reader(tmp_path, STORAGE)().to_pylist()], STORAGE)
    assert plain(tmp_path) == before


def test_a_piece_loses_its_superfluous_rows_at_once(tmp_path):
    commit_rows([row("a", "ma", "v")], str(tmp_path), KEY, STORAGE)
    commit_piece([failed("a", "ma"), failed("b", "mb")], tmp_path)
    commit_piece([row("b", "mb", "v")], tmp_path)
    settle(reader(tmp_path, STORAGE), str(tmp_path), STORAGE)
    found = reader(tmp_path, STORAGE)()
    assert sorted(zip(found["unit_id"].to_pylist(), found["status"].to_pylist(), strict=True)) == [
        ("a", "ok"),
        ("b", "ok"),
    ]
    assert plain(tmp_path) == [("ma", "a", "ok")]


def test_superseded_rows_stay_until_what_supersedes_them_is_sealed(tmp_path):
    """`compact --superseded-days` while a run of another recipe is at work."""
    old = [row(k, f"m{k}", "v") | {"recipe_id": "old"} for k in "ab"]
    commit_rows(old, str(tmp_path), KEY, STORAGE)
    commit_rows([row("new a", "ma", "v")], str(tmp_path), OTHER, STORAGE)
    commit_piece([row("new b", "mb", "v")], tmp_path, key=OTHER)
    remove_rows(find_superseded_rows(str(tmp_path), "2026-02-01", STORAGE), STORAGE)
    assert plain(tmp_path) == [("ma", "new a", "ok"), ("mb", "b", "ok")]
