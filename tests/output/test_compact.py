"""Small files become large ones, and SQL sees one row for each unit, before, during and after."""

import io
import shutil
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from click.testing import CliRunner
from rich.console import Console

from jobs.cli.main import main
from jobs.results import compact, sql
from pipeline.output import compact as steps
from pipeline.output.duplicates import remove_duplicates, remove_rows
from pipeline.output.file_names import file_name
from pipeline.output.rows import ANNOTATION
from pipeline.output.table import read_committed
from pipeline.storage.parquet import read_parquet, write_parquet
from pipeline.storage.storage import Storage
from schemas.errors import UserError
from tests.support.annotation_rows import row
from tests.support.latest_sql import latest_sql

OPTIONS = compact.CompactOptions(target_bytes=128_000_000)
STORAGE = Storage()


def quiet() -> Console:
    return Console(file=io.StringIO(), width=160)


def write(output, rows, run_id="r1", day="2026-01-01") -> str:
    rows = [r | {"run_id": run_id} for r in rows]
    table = pa.Table.from_pylist(rows, schema=ANNOTATION)
    name = file_name(run_id, rows[0]["recipe_id"])
    uri = f"{output}/annotations/run_date={day}/{name}"
    write_parquet(table, uri, STORAGE)
    return uri


def rows_of(output, view="annotations") -> list[tuple]:
    """unit_id, recipe_id and content_version of each row of a view."""
    with duckdb.connect() as db:
        db.execute(latest_sql(output))
        found = db.sql(f"SELECT unit_id, recipe_id, content_version FROM {view} ORDER BY ALL")
        return found.fetchall()


def many(output, count=20):
    for k in range(count):
        spans = [(0.0, 9.0, 3.0 * i, 3.0 * i + 3) for i in range(3)]
        rows = [row(f"u{k}-{i}", f"m{k}", "v1", video=v) for i, v in enumerate(spans)]
        write(output, rows)


def joined(output):
    for some in steps.find_bins(str(output), STORAGE, 128_000_000):
        steps.join_files(some, STORAGE)


def test_files_become_one_and_rows_stay_the_same(tmp_path: Path):
    many(tmp_path)
    before = rows_of(tmp_path)
    console = quiet()
    compact.run(str(tmp_path), OPTIONS, STORAGE, console)
    assert "joined 20 files" in console.file.getvalue()
    (file,) = tmp_path.glob("annotations/*/*.parquet")
    assert file.name.startswith("part-compacted-abc-")
    assert rows_of(tmp_path) == before
    media = read_parquet(str(file), STORAGE)["media_id"].to_pylist()
    assert media == sorted(media)
    assert (tmp_path / "latest.sql").read_text() == latest_sql(tmp_path)
    compact.run(str(tmp_path), OPTIONS, STORAGE, quiet())  # nothing to do
    assert [*tmp_path.glob("annotations/*/*.parquet")] == [file]


def test_partitions_recipes_and_large_files_stay_apart(tmp_path: Path):
    write(tmp_path, [row("1", "a", "v")])
    write(tmp_path, [row("2", "b", "v")])
    write(tmp_path, [row("3", "c", "v")], day="2026-01-02")
    write(tmp_path, [row("4", "d", "v") | {"recipe_id": "def"}])
    joined(tmp_path)
    files = [file.relative_to(tmp_path / "annotations") for file in tmp_path.rglob("*.parquet")]
    found = Counter(file.parent.name for file in files)
    assert found == {"run_date=2026-01-01": 2, "run_date=2026-01-02": 1}
    many(tmp_path)
    assert list(steps.find_bins(str(tmp_path), STORAGE, 100)) == []


@pytest.mark.parametrize("removed", [0, 1, 10, 19])
def test_killed_between_writing_and_removing(tmp_path: Path, monkeypatch, removed: int):
    """SQL over `latest` is right at once, the files are after `remove_duplicates`."""
    many(tmp_path)
    before = rows_of(tmp_path)
    count = 0

    class Killed(Exception):
        pass

    def remove(self, uri):
        nonlocal count
        if count == removed:
            raise Killed
        count += 1
        Path(uri).unlink()

    with monkeypatch.context() as patched:
        patched.setattr(Storage, "remove", remove)
        with pytest.raises(Killed):
            joined(tmp_path)
    assert set(rows_of(tmp_path)) == set(before)  # nothing is missing
    assert rows_of(tmp_path, "latest") == before  # nothing is there twice
    again = tmp_path / "again"
    shutil.copytree(tmp_path / "annotations", again / "annotations")
    joined(again)
    assert rows_of(again) == before
    remove_duplicates(read_committed(str(tmp_path), ["abc"], STORAGE), STORAGE)
    assert rows_of(tmp_path) == before


def test_a_file_that_vanishes_while_the_table_is_read(tmp_path: Path, monkeypatch):
    """A run that reads what is done, while its files are being joined."""
    many(tmp_path)
    real, calls = STORAGE.read_bytes, []

    def read(self, uri):
        if not calls:
            calls.append(uri)
            joined(tmp_path)
        return Path(uri).read_bytes()

    monkeypatch.setattr(Storage, "read_bytes", read)
    assert read_committed(str(tmp_path), ["abc"], STORAGE).num_rows == 60
    assert real


def test_a_file_that_vanishes_before_rows_are_removed_from_it(tmp_path: Path):
    """A run that removes duplicates, while the files are being joined."""
    write(tmp_path, [row("1", "a", "v1"), row("2", "b", "v1")], run_id="r1")
    write(tmp_path, [row("1", "a", "v1")], run_id="r2")
    rows = read_committed(str(tmp_path), ["abc"], STORAGE)
    joined(tmp_path)
    assert remove_duplicates(rows, STORAGE).num_rows == 2
    assert rows_of(tmp_path) == [("1", "abc", "v1"), ("2", "abc", "v1")]


def at(hour: int) -> dict:
    return {"timings": {"finished_at": datetime(2026, 1, 1, hour, tzinfo=UTC)}}


def test_latest_is_the_newest_content_and_recipe_of_each_item(tmp_path: Path):
    write(tmp_path, [row("1", "a", "v1") | at(1), row("2", "b", "v1") | at(1)])
    write(tmp_path, [row("3", "a", "v2") | at(2)], run_id="r2")  # a changed object
    write(tmp_path, [row("2", "b", "v1") | at(3) | {"recipe_id": "def"}], run_id="r3")
    failed = row("4", "a", None, error="storage_failed", readable=False)
    write(tmp_path, [failed | at(4)], run_id="r4")  # and now it cannot be reached
    assert rows_of(tmp_path, "latest") == [("2", "def", "v1"), ("3", "abc", "v2")]
    assert len(rows_of(tmp_path)) == 5


def test_latest_has_the_newest_question_about_a_span(tmp_path: Path):
    """Other tasks of a manifest make another unit of the same time span."""
    first, second = (0.0, 9.0, 0.0, 3.0), (0.0, 9.0, 3.0, 6.0)
    write(tmp_path, [row("caption", "a", "v1", video=first) | at(1)])
    write(tmp_path, [row("caption 2", "a", "v1", video=second) | at(1)])
    write(tmp_path, [row("caption and ocr", "a", "v1", video=first) | at(2)], run_id="r2")
    found = [unit_id for unit_id, *_ in rows_of(tmp_path, "latest")]
    assert found == ["caption 2", "caption and ocr"]


def test_superseded_rows_go_when_they_are_old(tmp_path: Path):
    write(tmp_path, [row("1", "a", "v1") | at(1), row("2", "b", "v1") | at(1)])
    write(tmp_path, [row("3", "a", "v2") | at(2)], run_id="r2", day="2026-03-01")
    assert steps.find_superseded_rows(str(tmp_path), "2026-01-01", STORAGE).num_rows == 0
    old = steps.find_superseded_rows(str(tmp_path), "2026-02-01", STORAGE)
    assert old["unit_id"].to_pylist() == ["1"]
    remove_rows(old, STORAGE)
    assert rows_of(tmp_path) == [("2", "abc", "v1"), ("3", "abc", "v2")]


def test_tables_of_other_versions_are_joined(tmp_path: Path):
    """Of an earlier one, which lacks columns; of a later one, which has more."""
    uri = write(tmp_path, [row("1", "a", "v1")])
    old = read_parquet(uri, STORAGE).drop_columns(["content_version", "document", "objects"])
    sampling = old["sampling"].combine_chunks()
    names = [field.name for field in sampling.type if field.name != "frames"]
    fields = [sampling.type.field(name) for name in names]
    without = pa.StructArray.from_arrays([sampling.field(n) for n in names], fields=fields)
    at = old.column_names.index("sampling")
    old = old.set_column(at, pa.field("sampling", without.type), without)
    write_parquet(old, uri, STORAGE)
    uri = write(tmp_path, [row("2", "b", "v2")])
    new = read_parquet(uri, STORAGE).append_column("mood", pa.array(["calm"]))
    write_parquet(new, uri, STORAGE)
    write(tmp_path, [row("3", "c", "v3")])
    with duckdb.connect() as db:
        db.execute(latest_sql(tmp_path))
        found = db.sql("SELECT sampling.frames, mood FROM latest ORDER BY unit_id").fetchall()
    assert found == [(None, None), ("exact", "calm"), ("exact", None)]
    joined(tmp_path)
    (file,) = tmp_path.rglob("part-*.parquet")
    table = read_parquet(str(file), STORAGE)
    assert table.schema.names == [*ANNOTATION.names, "mood"]
    assert table.select(ANNOTATION.names).schema.equals(ANNOTATION)
    assert table["content_version"].to_pylist() == [None, "v2", "v3"]
    assert table["mood"].to_pylist() == [None, "calm", None]


def test_a_damaged_file_is_named_and_moved_away_it_is_no_more(tmp_path: Path):
    uri = write(tmp_path, [row("1", "a", "v1")])
    whole = write(tmp_path, [row("2", "b", "v2")])
    Path(uri).write_bytes(Path(uri).read_bytes()[:500])
    with pytest.raises(UserError, match=f"{uri}.* docs/operations.md"):
        sql.run(str(tmp_path), "FROM latest", STORAGE, quiet(), form="table", to=None)
    with pytest.raises(UserError, match=f"{uri} is not a readable .* docs/operations.md"):
        joined(tmp_path)
    assert Path(whole).exists()
    Path(uri).unlink()
    assert rows_of(tmp_path) == [("2", "abc", "v2")]


def test_the_commands_in_s3(s3_env):
    many(s3_env.uri("out"), count=4)
    run = CliRunner().invoke
    result = run(main, ["compact", s3_env.uri("out"), "--dry-run"], catch_exceptions=False)
    assert "would join 4 files" in result.output
    assert run(main, ["compact", s3_env.uri("out")], catch_exceptions=False).exit_code == 0
    assert len(STORAGE.list_files(s3_env.uri("out/annotations"), "*/*.parquet")) == 1
    query = "SELECT status, count(*) AS units FROM latest GROUP BY ALL"
    result = run(main, ["sql", s3_env.uri("out"), query], catch_exceptions=False)
    assert "ok" in result.output and "12" in result.output


def test_sql_shows_all_columns(tmp_path: Path):
    """Also times with a zone, for which DuckDB's own Python objects need a package more."""
    write(tmp_path, [row("1", "a", "v1") | at(1)])
    for view in ("annotations", "latest"):
        console = Console(file=io.StringIO(), width=10_000)
        sql.run(str(tmp_path), f"SELECT * FROM {view}", STORAGE, console, form="table", to=None)
        assert "v1" in console.file.getvalue() and "2026" in console.file.getvalue()


def test_sql_says_what_is_wrong(tmp_path: Path):
    with pytest.raises(UserError, match="has no annotations"):
        sql.run(str(tmp_path), "SELECT 1", STORAGE, quiet(), form="table", to=None)
    write(tmp_path, [row("1", "it's", "v")])
    with pytest.raises(UserError, match="captoin"):
        sql.run(
            str(tmp_path), "SELECT captoin FROM latest", STORAGE, quiet(), form="table", to=None
        )
    sql.run(
        str(tmp_path), "FROM latest", STORAGE, quiet(), form="table", to=str(tmp_path / "rows.csv")
    )
    assert "it's" in (tmp_path / "rows.csv").read_text()
