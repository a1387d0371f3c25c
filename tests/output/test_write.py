"""Rows of the output table, and the files they are committed in."""

import dataclasses
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from pipeline.output.duplicates import remove_duplicates
from pipeline.output.rows import ANNOTATION, annotation_row
from pipeline.output.table import read_committed
from pipeline.storage.storage import Storage
from schemas.errors import StorageError
from schemas.tables.error import ErrorRecord
from tests.support.run_key import run_key
from tests.support.sealed import commit_rows
from tests.support.units import KEY, QUESTIONS, answer, unit


def test_answers_become_typed_columns_in_pixels_and_seconds():
    row = annotation_row(
        unit(
            answer("caption", "A red car."),
            answer("events", '[{"start": "00:01.00", "end": "00:04.50", "caption": "it turns"}]'),
            answer(
                "objects", '[{"time": 5.1, "bbox_2d": [100, 200, 500, 1000], "label": "red car"}]'
            ),
        ),
        QUESTIONS,
        KEY,
    )
    assert row["status"] == "ok"
    assert row["caption"] == "A red car."
    assert row["events"] == [{"start_seconds": 1.0, "end_seconds": 4.5, "caption": "it turns"}]
    (found,) = row["objects"]
    assert found["box"] == {"x1": 192.0, "y1": 216.0, "x2": 960.0, "y2": 1080.0}
    assert found["box_1000"] == {"x1": 100, "y1": 200, "x2": 500, "y2": 1000}
    assert found["pts_seconds"] == 5.0  # the sampled frame nearest to the answered 5.1 s
    assert row["responses"][0]["raw_text"] == "A red car."


def test_answers_on_a_units_own_clock_become_pts():
    answered = unit(
        answer("events", '[{"start": "00:01.00", "end": "00:04.50", "caption": "it turns"}]'),
        answer("objects", '[{"time": 5.1, "bbox_2d": [1, 2, 5, 10], "label": "red car"}]'),
    )
    moved = dataclasses.replace(
        answered.sampling,
        start_seconds=3600.0,
        end_seconds=3610.0,
        origin_seconds=3600.0,
        pts_seconds=tuple(3600.0 + t for t in answered.sampling.pts_seconds),
    )
    row = annotation_row(dataclasses.replace(answered, sampling=moved), QUESTIONS, KEY)
    (event,), (found,) = row["events"], row["objects"]
    assert (event["start_seconds"], event["end_seconds"]) == (3601.0, 3604.5)
    assert found["pts_seconds"] == 3605.0
    assert found["box_1000"] == {"x1": 1, "y1": 2, "x2": 5, "y2": 10}


def test_one_answer_that_cannot_be_read_makes_the_row_partial_and_keeps_the_text():
    row = annotation_row(
        unit(answer("caption", "fine"), answer("objects", "I see no boxes, sorry")), QUESTIONS, KEY
    )
    assert row["status"] == "partial"
    assert row["caption"] == "fine"
    assert row["objects"] is None
    assert row["responses"][1]["status"] == "unparsed"
    assert row["responses"][1]["raw_text"] == "I see no boxes, sorry"


def test_a_cut_answer_is_truncated():
    row = annotation_row(unit(answer("caption", "A red", "length")), QUESTIONS, KEY)
    assert (row["status"], row["responses"][0]["status"]) == ("partial", "truncated")


def test_reasoning_is_kept_apart():
    text = "They ask for a caption.</think>\nA red car."
    thought = answer("caption", text, opens_reasoning=True)
    row = annotation_row(unit(thought), QUESTIONS, KEY)
    assert row["caption"] == "A red car."
    assert row["responses"][0]["reasoning"] == "They ask for a caption."


def test_reasoning_that_was_cut_is_no_caption():
    thought = answer("caption", "They ask for a", "length", opens_reasoning=True)
    row = annotation_row(unit(thought), QUESTIONS, KEY)
    assert row["caption"] is None
    assert row["responses"][0]["status"] == "truncated"


def test_a_failed_unit_is_a_row_with_its_reason():
    error = ErrorRecord(stage="plan", type="media_missing", message="s3://b/a.mp4 does not exist")
    failed = unit(media=None, sampling=None, status="failed", error=error)
    row = annotation_row(failed, QUESTIONS, KEY)
    assert row["status"] == "failed"
    assert row["error"]["type"] == "media_missing"
    assert row["responses"] == []


def test_a_data_uri_is_not_copied_into_the_table():
    row = annotation_row(unit(uri="data:image/png;base64," + "A" * 9999), QUESTIONS, KEY)
    assert row["uri"].startswith("data:image/png;base64,sha256=")
    assert len(row["uri"]) < 100


def rows(*ids: str) -> list[dict]:
    return [annotation_row(unit(answer("caption", i), unit_id=i), QUESTIONS, KEY) for i in ids]


def test_writing_the_same_units_again_is_another_file_and_one_row_each(tmp_path: Path):
    """A committer that Ray starts again repeats its file."""
    for _ in range(3):
        commit_rows(rows("b", "a"), str(tmp_path), KEY, Storage())
    assert len(list(tmp_path.glob("annotations/run_date=2026-11-22/*"))) == 3
    remove_duplicates(read_committed(str(tmp_path), "r1", Storage()), Storage())
    (file,) = tmp_path.glob("annotations/run_date=2026-11-22/*")
    assert file.name.startswith("part-test-20261122-abc-")
    assert sorted(pq.read_table(file)["unit_id"].to_pylist()) == ["a", "b"]
    assert pq.read_schema(file).equals(ANNOTATION, check_metadata=False)


def test_what_is_committed_is_counted_from_the_files(tmp_path: Path):
    commit_rows(rows("a", "b"), str(tmp_path), KEY, Storage())
    commit_rows(rows("c"), str(tmp_path), KEY, Storage())
    (other,) = rows("z")
    commit_rows([other | {"recipe_id": "r2"}], str(tmp_path), KEY, Storage())
    found = read_committed(str(tmp_path), ["r1"], Storage())
    assert sorted(found["unit_id"].to_pylist()) == ["a", "b", "c"]
    assert set(found["status"].to_pylist()) == {"ok"}
    assert {sampling["decoder"] for sampling in found["sampling"].to_pylist()} == {"pyav"}
    responses = found["responses"].to_pylist()
    assert all(r["num_output_tokens"] == 7 for of_row in responses for r in of_row)
    assert {len(file.split("/part-")) for file in found["file"].to_pylist()} == {2}
    assert remove_duplicates(found, Storage()) == found
    nothing = read_committed(str(tmp_path), ["none"], Storage())
    assert (nothing.num_rows, nothing.schema) == (0, found.schema)


def test_a_table_of_before_may_lack_a_column(tmp_path: Path):
    commit_rows(rows("a"), str(tmp_path), KEY, Storage())
    (file,) = tmp_path.rglob("*.parquet")
    pq.write_table(pq.read_table(file).drop_columns(["parts"]), file)
    commit_rows(rows("b"), str(tmp_path), KEY, Storage())
    found = read_committed(str(tmp_path), ["r1"], Storage())
    assert sorted(zip(found["unit_id"].to_pylist(), found["parts"].to_pylist(), strict=True)) == [
        ("a", None),
        ("b", []),
    ]
    assert remove_duplicates(found, Storage()) == found


def test_of_two_rows_of_a_unit_the_better_one_stays(tmp_path: Path):
    """As two drivers of one job, or actors that outlive their driver, may leave them."""
    error = ErrorRecord(stage="decode", type="storage_failed", message="no answer")
    failed = annotation_row(
        unit(answer("caption", ""), unit_id="b", status="failed", error=error), QUESTIONS, KEY
    )
    commit_rows([*rows("a"), failed], str(tmp_path), KEY, Storage())
    later = run_key("test-20261123-def", "r1", "2026-11-23")
    commit_rows(rows("b", "c"), str(tmp_path), later, Storage())
    commit_rows(rows("c"), str(tmp_path), KEY, Storage())
    stay = remove_duplicates(read_committed(str(tmp_path), ["r1"], Storage()), Storage())
    assert sorted((row["unit_id"], row["status"]) for row in stay.to_pylist()) == [
        ("a", "ok"),
        ("b", "ok"),
        ("c", "ok"),
    ]
    again = read_committed(str(tmp_path), ["r1"], Storage())
    assert sorted(again["unit_id"].to_pylist()) == ["a", "b", "c"]
    assert remove_duplicates(again, Storage()) == again
    table = ds.dataset(tmp_path / "annotations", partitioning="hive").to_table()
    assert sorted(table["unit_id"].to_pylist()) == ["a", "b", "c"]


def planned(unread_ids: dict[str, str]) -> pa.Table:
    """The columns of a plan that ``remove_duplicates`` reads: unit_id -> unread_id."""
    versions = pa.array([None] * len(unread_ids), pa.string())
    return pa.table(
        {
            "unit_id": list(unread_ids),
            "unread_id": list(unread_ids.values()),
            "content_version": versions,
        }
    )


def test_media_that_could_be_read_later_replace_their_error_row(tmp_path: Path):
    error = ErrorRecord(stage="plan", type="media_missing", message="not there")
    gone = unit(unit_id="no version", media=None, sampling=None, status="failed", error=error)
    commit_rows([annotation_row(gone, QUESTIONS, KEY)], str(tmp_path), KEY, Storage())
    commit_rows(rows("with version"), str(tmp_path), KEY, Storage())
    plan = planned({"with version": "no version"})
    stay = remove_duplicates(read_committed(str(tmp_path), ["r1"], Storage()), Storage(), plan)
    assert stay["unit_id"].to_pylist() == ["with version"]
    assert len(list(tmp_path.rglob("*.parquet"))) == 1


def test_a_span_that_failed_by_itself_keeps_its_row(tmp_path: Path):
    def failed(unit_id: str, kind: str) -> dict:
        error = ErrorRecord(stage="plan", type=kind, message="no")
        fields = {"media": None, "sampling": None, "status": "failed", "error": error}
        return annotation_row(unit(unit_id=unit_id, **fields), QUESTIONS, KEY)

    parts = [failed("beyond the end", "bad_request"), failed("storage away", "storage_failed")]
    commit_rows([*parts, *rows("a")], str(tmp_path), KEY, Storage())
    found = read_committed(str(tmp_path), ["r1"], Storage())
    ids = found["unit_id"].to_pylist()
    assert remove_duplicates(found, Storage(), planned(dict(zip(ids, ids, strict=True)))) == found
    other = planned({"a": "of a"})
    assert remove_duplicates(found, Storage(), other) == found
    now = planned({"a": "of a", "now": "storage away"})
    stay = remove_duplicates(found, Storage(), now)
    assert sorted(stay["unit_id"].to_pylist()) == ["a", "beyond the end"]


def test_of_two_failed_rows_the_one_that_was_tried_more_often_stays(tmp_path: Path):
    def failed(message: str, attempts: int) -> dict:
        error = ErrorRecord(
            stage="engine", type="engine_failed", message=message, attempts=attempts
        )
        return annotation_row(unit(unit_id="a", status="failed", error=error), QUESTIONS, KEY)

    commit_rows([failed("later", 2), *rows("b")], str(tmp_path), KEY, Storage())
    commit_rows([failed("earlier", 1)], str(tmp_path), KEY, Storage())
    remove_duplicates(read_committed(str(tmp_path), ["r1"], Storage()), Storage())
    table = ds.dataset(tmp_path / "annotations", partitioning="hive").to_table().to_pylist()
    assert sorted((row["unit_id"], (row["error"] or {}).get("message")) for row in table) == [
        ("a", "later"),
        ("b", None),
    ]


def test_a_file_that_is_being_written_is_no_parquet_file_to_others(tmp_path: Path, monkeypatch):
    """DuckDB's **/*.parquet finds hidden files too."""
    seen = []
    replace = os.replace
    monkeypatch.setattr("os.replace", lambda a, b: (seen.append(a), replace(a, b)))
    commit_rows(rows("a"), str(tmp_path), KEY, Storage())
    assert seen
    assert not any(name.endswith(".parquet") for name in seen)


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(StorageError, match="No space left on device"):
        commit_rows(rows("a"), str(tmp_path), KEY, Storage())
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
