"""What `latest` shows where clocks of writers differ: the view and the reader in Python agree."""

import dataclasses
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from jobs.results.read import Selection, read_annotations
from pipeline.manifest.existing import ExistingMedia
from pipeline.output.compact import find_superseded_rows, join_listing
from pipeline.output.file_names import file_name
from pipeline.output.listing import write_listing
from pipeline.output.rows import ANNOTATION, annotation_row
from pipeline.storage.ids import digest
from pipeline.storage.parquet import write_parquet
from pipeline.storage.storage import Storage
from schemas.tables.listing import LISTING, MAX_AHEAD_SECONDS
from schemas.tables.manifest import MediaItem
from tests.support.annotation_rows import row
from tests.support.latest_sql import latest_sql
from tests.support.run_key import run_key
from tests.support.sealed import commit_rows
from tests.support.units import QUESTIONS, answer, unit

STORAGE = Storage()
NOW = datetime.now(UTC)
FUTURE = datetime(2099, 1, 1, tzinfo=UTC)
V1, V2 = "1" * 32, "2" * 32


def commit(output: Path, content: str, at: datetime | None, run_id: str, **fields: object) -> None:
    one = row(digest("a", content, None, None), "a", content) | fields
    one |= {"timings": {"finished_at": at}, "media": one["media"] | {"content_version": content}}
    key = run_key(run_id, str(one["recipe_id"]), run_date="2026-01-01")
    commit_rows([one | {"run_id": run_id}], str(output), key, STORAGE)


def mark(output: Path, at: datetime, content: str | None) -> None:
    """A listing's word on the name: its content, or that it is gone."""
    known = {"content_version": content, "answers_of": content and "a", "is_gone": content is None}
    one = {"media_id": "a", "uri": "a", "run_id": "", "recipe_id": "abc", "listed_at": at} | known
    key = run_key("l", "abc", run_date="2026-01-01")
    write_listing(pa.Table.from_pylist([one], schema=LISTING), str(output), key, STORAGE)


def latest(output: Path) -> list[str]:
    """The contents that `latest` shows; the same by SQL and by Python."""
    with duckdb.connect() as db:
        db.execute(latest_sql(output))
        by_sql = [version for (version,) in db.sql("SELECT content_version FROM latest").fetchall()]
    rows = read_annotations(Selection(uri=str(output), recipe_id="abc"), STORAGE).rows
    assert [row["content_version"] for row in rows] == by_sql
    return by_sql


@pytest.mark.parametrize("run_of_future", ["a", "z"])
def test_a_row_from_the_future_loses_to_a_row_of_today(tmp_path: Path, run_of_future: str):
    commit(tmp_path, V1, FUTURE, run_of_future)
    assert latest(tmp_path) == [V1]  # alone it is shown
    commit(tmp_path, V2, NOW, "m")
    assert latest(tmp_path) == [V2]


def test_a_clock_that_is_a_little_ahead_keeps_its_order(tmp_path: Path):
    commit(tmp_path, V1, NOW, "a")
    commit(tmp_path, V2, NOW + timedelta(seconds=MAX_AHEAD_SECONDS / 2), "b")
    assert latest(tmp_path) == [V2]


def test_a_mark_from_the_future_does_not_hide_what_came_after_it(tmp_path: Path):
    commit(tmp_path, V1, NOW - timedelta(hours=2), "a")
    mark(tmp_path, FUTURE, None)
    assert latest(tmp_path) == [V1]
    mark(tmp_path, NOW - timedelta(hours=1), None)
    assert latest(tmp_path) == []
    commit(tmp_path, V2, NOW, "b")
    assert latest(tmp_path) == [V2]


def test_rows_from_the_future_are_what_compaction_removes(tmp_path: Path):
    commit(tmp_path, V1, FUTURE, "a")
    commit(tmp_path, V2, NOW, "b")
    old = find_superseded_rows(str(tmp_path), "2026-02-01", STORAGE)
    assert old["unit_id"].to_pylist() == [digest("a", V1, None, None)]
    mark(tmp_path, FUTURE, None)
    mark(tmp_path, NOW, V2)
    join_listing(str(tmp_path), STORAGE)
    assert latest(tmp_path) == [V2]


def test_a_night_sees_the_content_that_latest_shows(tmp_path: Path):
    """The name has V1 again: the row of V2, from the future, does not say that it has V2."""
    commit(tmp_path, V2, FUTURE, "a")
    commit(tmp_path, V1, NOW, "b")
    with ExistingMedia(str(tmp_path), run_key("r", "abc").recipe_ids, STORAGE) as existing:
        for content, num_changes in ((V1, 0), (V2, 1)):
            item = MediaItem(media_id="a", uri="a", content_version=content)
            new, changes = existing.new_items([item])
            assert (len(new), changes.num_rows) == (0, num_changes)


def test_of_two_answers_to_a_unit_both_readers_take_the_same(tmp_path: Path):
    """Same status, several runs and attempts: no clock decides, and no name of a run."""
    for k, (run_id, attempts) in enumerate((("z", 3), ("a", 1), ("m", 2))):
        failed = row("u", "a", V1, error="engine_failed")
        failed["error"] |= {"attempts": attempts, "message": run_id}
        times = {"timings": {"finished_at": NOW - timedelta(hours=k)}}
        table = pa.Table.from_pylist([failed | times | {"run_id": run_id}], schema=ANNOTATION)
        folder = f"{tmp_path}/annotations/run_date=2026-01-01"
        write_parquet(table, f"{folder}/{file_name(run_id, 'abc')}", STORAGE)
    with duckdb.connect() as db:
        db.execute(latest_sql(tmp_path))
        assert db.sql("SELECT run_id FROM latest").fetchall() == [("z",)]
    (found,) = read_annotations(Selection(uri=str(tmp_path)), STORAGE).rows
    assert found["run_id"] == "z"


def test_a_committer_whose_clock_is_slow_writes_no_row_before_its_start():
    started_at = datetime.now(UTC) + timedelta(days=2)  # by the driver's clock
    key = dataclasses.replace(run_key("r", "abc"), started_at=started_at)
    made = annotation_row(unit(answer("caption", "x")), QUESTIONS, key)
    assert made["timings"]["finished_at"] == started_at
