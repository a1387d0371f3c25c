"""Shards are sealed while a run goes on, as soon as all of their units have rows."""

import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from jobs.run import sealing as sealing_module
from jobs.run.sealing import Sealing
from pipeline.output.file_names import piece_files
from pipeline.output.table import commit_rows, read_committed
from pipeline.storage.storage import Storage, join
from schemas.errors import ResourceError, StorageError
from schemas.tables.annotation import PIECES
from schemas.tables.columns import to_table
from schemas.tables.unit import UNIT, Unit
from tests.support import sealed
from tests.support.annotation_rows import row
from tests.support.run_key import run_key

KEY = run_key("test-20260101-abcdef", "abc", run_date="2026-01-01")
EARLIER = run_key("test-20251231-abcdef", "abc", run_date="2025-12-31")
STORAGE = Storage()
NOTHING = pa.table({"unit_id": pa.array([], pa.string()), "file": pa.array([], pa.string())})


def held() -> None:
    """The lease is still this driver's."""


def units_of(**shards: int) -> pa.Table:
    units = [Unit(unit_id=k, media_id=k, uri=k, shard=shard) for k, shard in shards.items()]
    return to_table(units, UNIT)


def answered(output: Path, **shards: int) -> pa.Table:
    """Commit pieces; returns what the driver gets of them."""
    for unit_id, shard in shards.items():
        rows = [row(unit_id, f"m{unit_id}", "v")]
        commit_rows(rows, join(str(output), PIECES), KEY, STORAGE, shard=shard)
    return pa.table({"shard": pa.array(shards.values(), pa.int32())})


def plain(output: Path) -> list[str]:
    """Unit ids in the files of the table alone."""
    if not (output / "annotations").exists():
        return []
    table = ds.dataset(output / "annotations").to_table()
    return sorted(table["unit_id"].to_pylist())


def test_a_shard_is_sealed_when_its_last_unit_has_a_row(tmp_path):
    units = units_of(a=0, b=0, c=1)
    with Sealing(str(tmp_path), KEY, STORAGE, units, NOTHING, held) as sealing:
        assert sealing.committed(answered(tmp_path, a=0)) == []
        assert sealing.committed(answered(tmp_path, c=1)) == [1]
        assert sealing.committed(answered(tmp_path, b=0)) == [0]
    assert plain(tmp_path) == ["a", "b", "c"]
    assert len(list(tmp_path.rglob("*.parquet"))) == 2
    assert not piece_files(str(tmp_path), STORAGE)


def test_what_a_killed_start_left_complete_is_sealed_first(tmp_path):
    answered(tmp_path, a=0, b=0, c=1)
    with Sealing(str(tmp_path), KEY, STORAGE, units_of(d=1), NOTHING, held):
        pass
    assert plain(tmp_path) == ["a", "b"]
    assert len(piece_files(str(tmp_path), STORAGE)) == 1


def test_an_error_of_the_run_seals_nothing_more_and_is_not_hidden(tmp_path):
    def stopped() -> None:
        with Sealing(str(tmp_path), KEY, STORAGE, units_of(a=0, b=0), NOTHING, held) as sealing:
            sealing.committed(answered(tmp_path, a=0))
            raise RuntimeError("the cluster is gone")

    with pytest.raises(RuntimeError, match="the cluster is gone"):
        stopped()
    assert plain(tmp_path) == []
    assert len(piece_files(str(tmp_path), STORAGE)) == 1


def test_a_shard_that_cannot_be_written_ends_the_run(tmp_path):
    class Full(Storage):
        def write_bytes(self, uri: str, content: bytes) -> None:
            raise StorageError("no space left")

    def run() -> None:
        with Sealing(str(tmp_path), KEY, Full(), units_of(a=0), NOTHING, held) as sealing:
            sealing.committed(answered(tmp_path, a=0))

    with pytest.raises(StorageError, match="no space left"):
        run()
    assert len(piece_files(str(tmp_path), STORAGE)) == 1  # nothing is lost


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_rows_that_failed_earlier_go_when_the_new_ones_are_sealed(tmp_path, order):
    """Not only when the run ends: it may go on for weeks."""
    failed = [row(k, f"m{k}", "v", error="storage_failed") for k in "ab"]
    kept = row("other", "mother", "v")
    sealed.commit_rows([*failed, kept], str(tmp_path), EARLIER, STORAGE)
    rows = read_committed(str(tmp_path), ["abc"], STORAGE).select(["unit_id", "file"])
    units = units_of(a=0, b=1, c=0)
    with Sealing(str(tmp_path), KEY, STORAGE, units, rows, held) as sealing:
        sealing.committed(answered(tmp_path, c=0))
        for unit_id in order:
            sealing.committed(answered(tmp_path, **{unit_id: {"a": 0, "b": 1}[unit_id]}))
    found = read_committed(str(tmp_path), ["abc"], STORAGE).to_pylist()
    assert sorted((one["unit_id"], one["status"]) for one in found) == [
        ("a", "ok"),
        ("b", "ok"),
        ("c", "ok"),
        ("other", "ok"),
    ]


def test_two_shards_with_rows_in_one_file_copy_its_other_rows_once(tmp_path, monkeypatch):
    """Each of two threads would copy them, while the other one's removal is on its way."""
    failed = [row(k, f"m{k}", "v", error="storage_failed") for k in "ab"]
    kept = [row(f"kept {k}", f"m{k}", "v") for k in range(3)]
    sealed.commit_rows([*failed, *kept], str(tmp_path), EARLIER, STORAGE)
    rows = read_committed(str(tmp_path), ["abc"], STORAGE).select(["unit_id", "file"])
    together = threading.Barrier(2)
    seal = sealing_module.seal_shard
    monkeypatch.setattr(
        sealing_module, "seal_shard", lambda *args: (seal(*args), together.wait(30))[0]
    )
    with Sealing(str(tmp_path), KEY, STORAGE, units_of(a=0, b=1), rows, held) as sealing:
        sealing.committed(answered(tmp_path, a=0, b=1))
    assert plain(tmp_path) == ["a", "b", "kept 0", "kept 1", "kept 2"]


class Lost:
    """A lease that is lost after a number of checks."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise ResourceError("process 3 on other has taken over this run")


@pytest.mark.parametrize(
    ("after", "in_table", "num_pieces", "num_failed"),
    [(0, [], 2, 1), (1, ["a", "b"], 2, 1), (2, ["a", "b"], 0, 1), (3, ["a", "b"], 0, 0)],
)
def test_a_driver_that_lost_the_run_changes_nothing(
    tmp_path, after, in_table, num_pieces, num_failed
):
    """Neither before it writes the shard, nor before it removes pieces, nor rows that failed."""
    sealed.commit_rows(
        [row("a", "ma", "v", error="storage_failed")], str(tmp_path), EARLIER, STORAGE
    )
    rows = read_committed(str(tmp_path), ["abc"], STORAGE).select(["unit_id", "file"])

    def run() -> None:
        lost = Lost(after)
        with Sealing(str(tmp_path), KEY, STORAGE, units_of(a=0, b=0), rows, lost) as sealing:
            sealing.committed(answered(tmp_path, a=0, b=0))

    if after < 3:
        with pytest.raises(ResourceError, match="has taken over this run"):
            run()
    else:
        run()
    table = ds.dataset(tmp_path / "annotations").to_table(["unit_id", "status"]).to_pylist()
    assert sorted(one["unit_id"] for one in table if one["status"] == "ok") == in_table
    assert sum(one["status"] == "failed" for one in table) == num_failed
    assert len(piece_files(str(tmp_path), STORAGE)) == num_pieces
