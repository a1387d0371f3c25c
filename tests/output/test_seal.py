"""Pieces become one file of the table; a reader of its plain files sees each unit once, always."""

from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from jobs.results.read import Selection, read_annotations
from pipeline.manifest.existing import ExistingMedia
from pipeline.output.duplicates import remove_duplicates
from pipeline.output.file_names import (
    file_name,
    level_of,
    piece_files,
    rewritten,
    shard_of,
    table_files,
)
from pipeline.output.seal import seal_pieces, seal_shard
from pipeline.output.table import commit_rows, read_committed
from pipeline.output.views import connect
from pipeline.storage.ids import digest
from pipeline.storage.storage import Storage, join
from schemas.tables.annotation import PIECES
from schemas.tables.manifest import MediaItem
from tests.support.annotation_rows import row
from tests.support.latest_sql import latest_sql
from tests.support.run_key import run_key

KEY = run_key("test-20260101-abcdef", "abc", run_date="2026-01-01")
STORAGE = Storage()


def commit(output: Path, *rows: dict, shard: int = 0, key=KEY) -> None:
    """Commit rows as a piece."""
    commit_rows(rows, join(str(output), PIECES), key, STORAGE, shard=shard)


def ok(unit_id: str, **columns) -> dict:
    return row(unit_id, f"m{unit_id}", "v") | columns


def failed(unit_id: str) -> dict:
    return row(unit_id, f"m{unit_id}", "v", error="engine_crashed")


def plain(output: Path) -> list[str]:
    """Unit ids, as a program reads them that knows nothing but Parquet."""
    if not (output / "annotations").exists():
        return []
    return ds.dataset(output / "annotations").to_table()["unit_id"].to_pylist()


def in_sql(output: Path, view: str) -> list[str]:
    sql = latest_sql(output)
    rows = duckdb.connect().execute(sql).execute(f"SELECT unit_id FROM {view} ORDER BY 1")
    return [unit_id for (unit_id,) in rows.fetchall()]


def test_a_shard_becomes_one_file_of_each_recipe_sorted_and_its_pieces_go(tmp_path):
    commit(tmp_path, ok("c"), ok("a"), shard=7)
    commit(tmp_path, ok("b"), ok("d") | {"recipe_id": "def"}, shard=7)
    commit(tmp_path, ok("e"), shard=8)
    seal_shard(7, str(tmp_path), KEY, STORAGE)
    files = sorted((tmp_path / "annotations").glob("run_date=2026-01-01/part-*.parquet"))
    assert [pq.read_table(file)["unit_id"].to_pylist() for file in files] == [
        ["a", "b", "c"],
        ["d"],
    ]
    assert {(shard_of(str(file)), level_of(str(file))) for file in files} == {(7, 1)}
    (piece,) = piece_files(str(tmp_path), STORAGE)
    assert shard_of(piece["uri"]) == 8
    seal_shard(7, str(tmp_path), KEY, STORAGE)  # nothing is left to do
    assert sorted((tmp_path / "annotations").glob("*/*")) == files


def test_of_several_rows_of_a_unit_the_best_is_sealed(tmp_path):
    commit(tmp_path, failed("a"), ok("b"))
    commit(tmp_path, ok("a", caption="the answer"))
    commit(tmp_path, ok("b"))
    seal_shard(0, str(tmp_path), KEY, STORAGE)
    (table,) = [pq.read_table(file) for file in (tmp_path / "annotations").rglob("*.parquet")]
    assert table.select(["unit_id", "status", "caption"]).to_pylist() == [
        {"unit_id": "a", "status": "ok", "caption": "the answer"},
        {"unit_id": "b", "status": "ok", "caption": None},
    ]


def test_another_run_and_another_day_keep_their_pieces(tmp_path):
    """The id of one run may begin with that of another."""
    longer = run_key(f"{KEY.run_id}-20260101-abcdef", "abc", run_date=KEY.run_date)
    commit(tmp_path, ok("a"))
    commit(tmp_path, ok("b"), key=longer)
    seal_shard(0, str(tmp_path), KEY, STORAGE)
    assert plain(tmp_path) == ["a"]
    (piece,) = piece_files(str(tmp_path), STORAGE)
    assert longer.run_id in piece["uri"]


class Stopping(Storage):
    """Looks at the table after each change of it, and is killed at one."""

    def __init__(self, output: Path, at: int | None = None) -> None:
        super().__init__()
        self.output, self.at, self.seen = output, at, []

    def _turn(self) -> None:
        plainly, in_latest = plain(self.output), in_sql(self.output, "latest")
        read = read_annotations(Selection(uri=str(self.output)), STORAGE).rows
        self.seen.append((sorted(plainly), in_latest, sorted(row["unit_id"] for row in read)))
        if self.at == len(self.seen):
            raise KeyboardInterrupt

    def write_bytes(self, uri: str, content: bytes) -> None:
        super().write_bytes(uri, content)
        self._turn()

    def remove(self, uri: str) -> None:
        super().remove(uri)
        self._turn()


@pytest.mark.parametrize("at", [None, 1, 2, 3, 4])
def test_readers_at_every_moment_and_a_kill_at_every_moment(tmp_path, at):
    for unit_id in ("a", "b", "c"):
        commit(tmp_path, ok(unit_id))
    commit(tmp_path, failed("a"))
    storage = Stopping(tmp_path, at)
    try:
        seal_shard(0, str(tmp_path), KEY, storage)
    except KeyboardInterrupt:
        assert at is not None
    assert len(storage.seen) == (at or 5)
    everything = ["a", "b", "c"]
    for plainly, in_latest, read in storage.seen:
        assert plainly == in_latest == read == everything
    # The next start settles what the kill left, and seals again.
    remove_duplicates(read_committed(str(tmp_path), ["abc"], STORAGE), STORAGE)
    seal_shard(0, str(tmp_path), KEY, STORAGE)
    assert sorted(plain(tmp_path)) == everything
    assert not piece_files(str(tmp_path), STORAGE)
    assert len(table_files(join(str(tmp_path), "annotations"), STORAGE)) == 1


def test_two_drivers_seal_a_shard_at_once(tmp_path):
    """One that has lost the run goes on for a moment."""
    for unit_id in ("a", "b"):
        commit(tmp_path, ok(unit_id))

    class Both(Storage):
        done = False

        def read_bytes(self, uri: str) -> bytes:
            content = super().read_bytes(uri)
            if not self.done:
                self.done = True
                seal_shard(0, str(tmp_path), KEY, STORAGE)
            return content

    seal_shard(0, str(tmp_path), KEY, Both())
    assert sorted(set(plain(tmp_path))) == ["a", "b"]
    remove_duplicates(read_committed(str(tmp_path), ["abc"], STORAGE), STORAGE)
    assert sorted(plain(tmp_path)) == ["a", "b"]
    assert not piece_files(str(tmp_path), STORAGE)


def test_the_rows_of_an_interrupted_run_are_read_from_its_pieces(tmp_path):
    """By SQL, by the commands, by `only_new`, and by the next start."""
    ids = [digest(name, "", "", "") for name in ("ma", "mb")]  # as of plain rows of a manifest
    rows = [row(unit_id, name, "v") for unit_id, name in zip(ids, ("ma", "mb"), strict=True)]
    commit(tmp_path, *rows)
    assert plain(tmp_path) == []
    for view in ("annotations", "latest"):
        with connect(str(tmp_path), STORAGE) as db:
            found = db.sql(f"SELECT unit_id FROM {view}").fetchall()
        assert sorted(unit_id for (unit_id,) in found) == sorted(ids)
    found = read_annotations(Selection(uri=str(tmp_path)), STORAGE)
    assert sorted(one["unit_id"] for one in found.rows) == sorted(ids)
    assert read_committed(str(tmp_path), ["abc"], STORAGE).num_rows == 2
    items = [MediaItem(media_id=f"m{k}", uri="s3://b/k", content_version="v") for k in "ac"]
    with ExistingMedia(str(tmp_path), KEY.recipe_ids, STORAGE) as existing:
        new, _ = existing.new_items(items)
    assert [item.media_id for item in new] == ["mc"]


def test_pieces_that_no_run_comes_to_are_sealed_by_name(tmp_path):
    """Those of a killed run whose manifest has grown since: the next run counts them as done."""
    other = run_key("other-20251231-abcdef", "abc", run_date="2025-12-31")
    commit(tmp_path, ok("a"), shard=3, key=other)
    commit(tmp_path, ok("b"), shard=4, key=other)
    commit(tmp_path, ok("c"), shard=300)
    commit_rows([ok("d")], f"{tmp_path}/annotations", KEY, STORAGE)
    found = read_committed(str(tmp_path), ["abc"], STORAGE)
    files = [row["file"] for row in found.to_pylist() if row["unit_id"] != "b"]
    seal_pieces(files, str(tmp_path), STORAGE)
    assert sorted(plain(tmp_path)) == ["a", "c", "d"]
    (left,) = piece_files(str(tmp_path), STORAGE)
    assert shard_of(left["uri"]) == 4
    assert list(tmp_path.glob("annotations/run_date=2025-12-31/part-other-20251231-abcdef-*"))


def test_a_piece_that_is_written_again_stays_in_its_shard(tmp_path):
    name = f"/o/{PIECES}/run_date=2026-01-01/{file_name('r', 'abc', shard=4095)}"
    again = rewritten(name)
    assert again != name
    assert (shard_of(again), level_of(again)) == (4095, 1)
    assert again.startswith(f"/o/{PIECES}/run_date=2026-01-01/part-r-abc-00000fff")


def test_columns_of_named_questions_are_sealed_too(tmp_path):
    schema = pa.schema([*read_schema_of_rows(), pa.field("look", pa.string())])
    rows = [ok("a", look="red"), ok("b", look="blue")]
    commit_rows(rows, join(str(tmp_path), PIECES), KEY, STORAGE, schema)
    seal_shard(0, str(tmp_path), KEY, STORAGE)
    (file,) = (tmp_path / "annotations").rglob("*.parquet")
    assert pq.read_table(file)["look"].to_pylist() == ["red", "blue"]


def read_schema_of_rows() -> pa.Schema:
    from pipeline.output.rows import ANNOTATION

    return ANNOTATION
