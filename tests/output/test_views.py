"""SQL while files are replaced: a query finds every unit, or it fails; it never misses one."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import duckdb
import fsspec
import pytest
import s3fs
from fsspec.implementations.local import LocalFileSystem
from rich.console import Console

from jobs.results import sql
from jobs.results.read import Selection, read_annotations
from pipeline.output import compact, table
from pipeline.output.duplicates import remove_duplicates
from pipeline.output.seal import seal_shard
from pipeline.output.table import read_committed
from pipeline.output.views import connect, read_views
from pipeline.storage.storage import Storage, join
from schemas.errors import StorageError, UserError
from schemas.tables.annotation import PIECES
from tests.support.annotation_rows import row
from tests.support.latest_sql import latest_sql
from tests.support.run_key import run_key
from tests.support.sealed import commit_rows

KEY = run_key("test-20260101-abcdef", "abc", run_date="2026-01-01")
STORAGE = Storage()
EVERYTHING = list("abcde")


def ok(unit_id: str) -> dict:
    return row(unit_id, f"m{unit_id}", "v")


def commit(output: Path, unit_ids: str, shard: int = 0) -> None:
    commit_rows_as_pieces([ok(k) for k in unit_ids], output, shard)


def commit_rows_as_pieces(rows: list[dict], output: Path, shard: int) -> None:
    table.commit_rows(rows, join(str(output), PIECES), KEY, STORAGE, shard=shard)


def at_work(output: Path) -> None:
    """A shard with all of its rows, one that waits for some, and files to be joined or settled."""
    commit(output, "a")
    commit(output, "b")
    commit(output, "c", shard=1)
    failed = row("e", "me", "v", error="engine_failed")
    for rows in ([ok("d"), failed], [ok("e")]):
        commit_rows(rows, str(output), KEY, STORAGE)


def seal(output: Path) -> None:
    seal_shard(0, str(output), KEY, STORAGE)


def join_small_files(output: Path, storage: Storage = STORAGE) -> None:
    for some in compact.find_bins(str(output), STORAGE, 128_000_000):
        compact.join_files(some, storage)


class Slow(Storage):
    """Has not come to removing anything yet."""

    def remove(self, uri: str) -> None:
        pass


def write_joined_file(output: Path) -> None:
    join_small_files(output, Slow())


def settle(output: Path) -> None:
    remove_duplicates(read_committed(str(output), ["abc"], STORAGE), STORAGE)


class Turning(LocalFileSystem):
    """The local disk as ``turn://``; calls ``then`` after the operation of a number."""

    protocol = "turn"
    cachable = False
    done: ClassVar[list[str]] = []
    then: ClassVar[tuple[int, Callable[[], None]] | None] = None

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).removeprefix("turn://"))

    def unstrip_protocol(self, name):
        return f"turn://{name}"

    def _turn(self, name: str) -> None:
        self.done.append(name)
        if self.then and len(self.done) == self.then[0]:
            self.then[1]()

    def glob(self, path, **options):
        found = super().glob(path, **options)
        self._turn("list")
        return found

    def find(self, path, **options):
        found = super().find(path, **options)
        self._turn("list")
        return found

    def _open(self, path, mode="rb", block_size=None, **options):
        opened = super()._open(path, mode, block_size, **options)
        self._turn("open")
        return opened


@pytest.fixture(autouse=True)
def turning():
    fsspec.register_implementation("turn", Turning, clobber=True)
    yield
    Turning.then = None


def at_every_moment(folder: Path, change: Callable[[Path], None], ask: Callable[[Path], list]):
    """Yield what ``ask`` finds, or its error, with a change after some of its operations.

    After the first ones that list, and each sixth and the last that open a file.
    """
    at_work(folder / "0")
    latest_sql(folder / "0")
    Turning.done.clear()
    assert ask(folder / "0")
    opened = [k for k, name in enumerate(Turning.done, 1) if name == "open"]
    listed = [k for k, name in enumerate(Turning.done, 1) if name == "list"]
    for moment in sorted({*listed[:8], *opened[::6], opened[-1]}):
        output = folder / str(moment)
        at_work(output)
        latest_sql(output)
        Turning.done.clear()
        Turning.then = moment, lambda output=output: change(output)
        try:
            yield ask(output)
        except (duckdb.Error, UserError) as error:
            yield error


def in_latest_sql(output: Path, view: str) -> list[str]:
    """The units that a DuckDB finds which has read nothing but the output's latest.sql."""
    with duckdb.connect() as db:
        db.register_filesystem(Turning())
        db.execute((output / "latest.sql").read_text().replace("'/", "'turn:///"))
        Turning.done.clear()
        found = db.execute(f"SELECT unit_id FROM {view} ORDER BY 1").fetchall()
        return [unit_id for (unit_id,) in found]


@pytest.mark.parametrize("change", [seal, join_small_files, write_joined_file, settle])
def test_latest_sql_finds_each_unit_once_or_fails(tmp_path, change):
    seen = list(at_every_moment(tmp_path, change, lambda output: in_latest_sql(output, "latest")))
    answers = [found for found in seen if not isinstance(found, Exception)]
    assert answers == [EVERYTHING] * len(answers) and answers


def test_all_rows_are_in_latest_sql_while_a_shard_is_sealed(tmp_path):
    seen = at_every_moment(tmp_path, seal, lambda output: in_latest_sql(output, "annotations"))
    answers = [found for found in seen if not isinstance(found, Exception)]
    assert answers
    assert all(sorted(set(found)) == EVERYTHING for found in answers)


@pytest.mark.parametrize(
    ("change", "form"), [(seal, "csv"), (join_small_files, "json"), (settle, "table")]
)
def test_reelscribe_sql_finds_each_unit_once_and_does_not_fail(tmp_path, change, form):
    def ask(output: Path) -> str:
        console = Console(file=io.StringIO(), width=80)
        query = "SELECT unit_id FROM latest ORDER BY 1"
        sql.run(f"turn://{output}", query, STORAGE, console, form=form, to=None)
        return console.file.getvalue()

    at_work(tmp_path)
    whole = ask(tmp_path)
    assert all(k in whole for k in EVERYTHING)
    seen = list(at_every_moment(tmp_path, change, ask))
    assert seen == [whole] * len(seen)


def test_a_query_is_repeated_if_a_file_vanishes_and_not_for_other_errors(tmp_path):
    at_work(tmp_path)
    calls = []

    def read(db) -> list[tuple]:
        calls.append(db)
        if len(calls) == 1:
            seal(tmp_path)
        return db.sql("SELECT unit_id FROM latest ORDER BY 1").fetchall()

    assert read_views(str(tmp_path), STORAGE, read) == [(k,) for k in EVERYTHING]
    assert len(calls) == 2

    def wrong(db) -> None:
        calls.append(db)
        db.sql("SELECT nothing FROM latest")

    with pytest.raises(duckdb.Error, match="nothing"):
        read_views(str(tmp_path), STORAGE, wrong)
    assert len(calls) == 3


def test_files_that_keep_vanishing_are_an_error(tmp_path):
    at_work(tmp_path)

    def read(db) -> None:
        commit(tmp_path, "b")
        seal(tmp_path)
        commit(tmp_path, "b")
        db.sql("SELECT unit_id FROM latest").fetchall()

    commit(tmp_path, "b")
    with pytest.raises(duckdb.Error, match="No such file|No files found"):
        read_views(str(tmp_path), STORAGE, read)


def test_a_connection_has_the_files_of_one_listing(tmp_path):
    at_work(tmp_path)
    with connect(str(tmp_path), STORAGE) as db:
        commit(tmp_path, "f")
        found = db.sql("SELECT unit_id FROM latest ORDER BY 1").fetchall()
    assert found == [(k,) for k in EVERYTHING]


@pytest.mark.parametrize(
    "name", ["annotations-old", "annotations_backup", "annotations-pieces-old", "annotations2"]
)
def test_folders_of_the_user_are_not_read(tmp_path, name):
    at_work(tmp_path)
    text = latest_sql(tmp_path)
    commit_rows([ok("x")], str(tmp_path / "copy"), KEY, STORAGE)
    (tmp_path / "copy" / "annotations").rename(tmp_path / name)
    for view in ("latest", "annotations"):
        query = f"SELECT DISTINCT unit_id FROM {view} ORDER BY 1"
        wanted = [(k,) for k in EVERYTHING]
        with duckdb.connect() as db:
            assert db.execute(text).execute(query).fetchall() == wanted
        with connect(str(tmp_path), STORAGE) as db:
            assert db.sql(query).fetchall() == wanted
    read = read_annotations(Selection(uri=str(tmp_path)), STORAGE).rows
    assert sorted(one["unit_id"] for one in read) == EVERYTHING


def test_a_name_that_looks_like_a_pattern(tmp_path):
    output = tmp_path / "it's [1]*?"
    at_work(output)
    query = "SELECT unit_id FROM latest ORDER BY 1"
    with duckdb.connect() as db:
        found = db.execute(latest_sql(output)).execute(query).fetchall()
    assert found == [(k,) for k in EVERYTHING]
    with connect(str(output), STORAGE) as db:
        assert db.sql(query).fetchall() == found


def test_after_a_run_no_piece_is_needed(tmp_path):
    """DuckDB refuses a pattern that matches nothing: `latest.sql` comes with a file for it."""
    commit_rows([ok("a")], str(tmp_path), KEY, STORAGE)
    text = latest_sql(tmp_path)
    (empty,) = (tmp_path / PIECES).rglob("*.parquet")
    before = empty.stat().st_mtime_ns
    with duckdb.connect() as db:
        assert db.execute(text).execute("SELECT unit_id FROM latest").fetchall() == [("a",)]
    latest_sql(tmp_path)
    assert empty.stat().st_mtime_ns == before
    assert table.table_files(str(tmp_path / PIECES), STORAGE) == []


def test_an_output_without_rows_cannot_be_connected_to(tmp_path):
    with pytest.raises(StorageError, match="at least one file"):
        connect(str(tmp_path), STORAGE)


def test_on_s3_sizes_come_from_the_listing(s3_env, monkeypatch):
    """DuckDB asks for them whenever it opens a file: twice a file in each of several passes."""
    output = s3_env.uri("out")
    for k in EVERYTHING:
        commit_rows([ok(k)], output, KEY, STORAGE)
    requests: list[str] = []
    call = s3fs.S3FileSystem._call_s3

    async def counted(fs, method, *args, **options):
        requests.append(method)
        return await call(fs, method, *args, **options)

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", counted)
    with connect(output, STORAGE) as db:
        assert len(db.sql("SELECT unit_id FROM latest").fetchall()) == len(EVERYTHING)
    assert requests.count("get_object") >= len(EVERYTHING)
    assert requests.count("head_object") < len(EVERYTHING)
