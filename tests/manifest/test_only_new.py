"""only_new takes media that the table lacks, by content, not by name, and loses none."""

import io
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from rich.console import Console

from jobs.plan import plan as plan_job
from jobs.run import annotate
from pipeline.manifest.existing import ExistingMedia
from pipeline.manifest.select import since_time
from pipeline.output.rows import ANNOTATION
from pipeline.output.table import file_name
from pipeline.storage.parquet import write_parquet
from pipeline.storage.storage import Storage
from schemas.errors import JobFileError
from schemas.job.job import check_job
from schemas.tables.manifest import MediaItem
from tests.support.annotation_rows import row
from tests.support.job_files import SIMULATED, SMALL

STORAGE = Storage()
ETAG = "0123456789abcdef0123456789abcdef"


def new_of(tmp_path, rows, items):
    table = pa.Table.from_pylist(rows, schema=ANNOTATION)
    name = file_name(table["unit_id"].to_pylist(), "r", "abc")
    write_parquet(table, f"{tmp_path}/annotations/run_date=2026-01-01/{name}", STORAGE)
    with ExistingMedia(str(tmp_path), "abc", STORAGE) as known:
        return [item.media_id for item in known.new_items(items)]


def item(media_id, version, **fields):
    return MediaItem(media_id=media_id, uri=media_id, content_version=version, **fields)


def test_a_renamed_object_is_known_and_a_changed_one_is_new(tmp_path):
    items = [item("a", ETAG), item("renamed", ETAG), item("a", ETAG[::-1]), item("c", None)]
    assert new_of(tmp_path, [row("1", "a", ETAG)], items) == ["a", "c"]


def test_size_and_time_do_not_identify_content_under_another_name(tmp_path):
    items = [item("a", "5-17"), item("b", "5-17")]
    assert new_of(tmp_path, [row("1", "a", "5-17")], items) == ["b"]


def test_a_video_is_known_if_its_spans_leave_no_gap(tmp_path):
    rows = [
        row("1", "whole", "v1", video=(0.0, 10.0, 0.0, 6.0)),
        row("2", "whole", "v1", video=(0.0, 10.0, 5.0, 10.0)),
        row("3", "gap", "v2", video=(0.0, 60.0, 0.0, 40.0)),
        row("4", "gap", "v2", video=(0.0, 60.0, 35.0, 50.0)),
        row("5", "gap", "v2", video=(0.0, 60.0, 51.0, 60.0)),
        row("6", "killed", "v3", video=(1.5, 10.0, 1.5, 6.0)),
    ]
    items = [item("whole", "v1"), item("gap", "v2"), item("killed", "v3")]
    span = item("whole", "v1", start_seconds=2.0, end_seconds=3.0)
    assert new_of(tmp_path, rows, [*items, span]) == ["gap", "killed", "whole"]


def test_broken_media_are_known_and_transient_errors_are_tried_again(tmp_path):
    rows = [
        row("1", "broken", "v1", error="media_unreadable", readable=False),
        row("2", "away", "v2", error="storage_failed", readable=False),
    ]
    items = [item("broken", "v1"), item("away", "v2"), item("broken", "mended")]
    assert new_of(tmp_path, rows, items) == ["away", "broken"]


def test_a_span_outside_the_video_leaves_the_video_new(tmp_path):
    """A row for seconds after the end does not mean that the rest was annotated."""
    failed = row("1", "a", "v1", error="bad_request", readable=False)
    assert new_of(tmp_path, [failed], [item("a", "v1")]) == ["a"]


def test_since():
    from datetime import UTC, datetime

    now = datetime(2026, 11, 24, 12, tzinfo=UTC)
    assert since_time("24h", now) == datetime(2026, 11, 23, 12, tzinfo=UTC)
    assert since_time("2026-11-22", now) == datetime(2026, 11, 22, tzinfo=UTC)
    with pytest.raises(JobFileError, match="such as 24h"):
        since_time("yesterday", now)


def put(bucket, key: str, path: Path) -> None:
    STORAGE.write_bytes(bucket.uri(key), path.read_bytes())


def rows_of(output) -> list[dict]:
    return ds.dataset(output / "annotations", partitioning="hive").to_table().to_pylist()


def test_nights_in_s3(s3_env, archive: Path, checkpoint: Path, tmp_path: Path, ray_session):
    images = archive / "images"
    spec = SMALL | {"tasks": ["caption"], "name": "nightly", "output": str(tmp_path / "out")}
    # By the job file: the workers may have started before the test's environment.
    options = {"endpoint_url": s3_env.endpoint_url, "key": "test-key", "secret": "test-secret"}
    spec |= {"model": SIMULATED | {"source": str(checkpoint)}, "storage_options": {"s3": options}}
    spec |= {"input": {"scan": s3_env.uri("media/"), "only_new": True}}

    def night(**changes) -> str:
        console = Console(file=io.StringIO(), width=120)
        job = check_job(spec | {"input": spec["input"] | changes}, "test")
        annotate.run(job, console)
        return console.file.getvalue()

    put(s3_env, "media/a.jpg", images / "scene-0.jpg")
    put(s3_env, "media/b.jpg", images / "scene-1.jpg")
    put(s3_env, "media/broken.jpg", archive / "clips" / "unreadable.mp4")
    dry = Console(file=io.StringIO(), width=120)
    plan_job.run(check_job(spec, "test"), dry, dry_run=True)
    assert "nothing was written" in dry.file.getvalue()
    assert not (tmp_path / "out").exists()

    assert "2 are taken as new" in night(limit=2)
    first = {row["media_id"]: row["run_id"] for row in rows_of(tmp_path / "out")}
    assert len(first) == 2
    assert "1 are taken as new" in night(limit=2)  # the same listing: the next two
    assert len(rows_of(tmp_path / "out")) == 3
    output = night()
    assert "3 media are in the table already, 0 are taken as new" in output

    put(s3_env, "media/renamed.jpg", images / "scene-0.jpg")
    put(s3_env, "media/b.jpg", images / "scene-2.jpg")
    put(s3_env, "media/broken.jpg", images / "scene-3.jpg")
    assert "2 media are in the table already, 2 are taken as new" in night()
    rows = rows_of(tmp_path / "out")
    versions = [(Path(r["uri"]).name, r["error"]) for r in rows]
    # b.jpg in both versions; broken.jpg as it is now
    assert sorted(versions, key=str) == [
        ("a.jpg", None), ("b.jpg", None), ("b.jpg", None), ("broken.jpg", None),
    ]  # fmt: skip
    spec["tasks"] = [{"caption": {"style": "short"}}]
    assert "0 media are in the table already, 4 are taken as new" in night(limit=4)


def test_media_without_versions_are_found_by_their_plan(
    archive: Path, checkpoint: Path, tmp_path: Path, ray_session
):
    shutil.copy(archive / "images" / "scene-0.jpg", tmp_path / "a.jpg")
    shutil.copy(archive / "images" / "scene-1.jpg", tmp_path / "b.jpg")
    manifest, output = tmp_path / "m.jsonl", tmp_path / "out"
    spec = SMALL | {"tasks": ["caption"], "output": str(output)}
    spec |= {"input": {"manifest": str(manifest), "only_new": True}}
    job = check_job(spec | {"model": SIMULATED | {"source": str(checkpoint)}}, "test")
    manifest.write_text(json.dumps({"uri": "a.jpg"}) + "\n")
    quiet = Console(file=io.StringIO(), width=120)
    assert annotate.run(job, quiet).counts["units"] == 1
    with manifest.open("a") as file:
        file.write(json.dumps({"uri": "b.jpg"}) + "\n")
    assert annotate.run(job, quiet).counts["units"] == 1
    assert annotate.run(job, quiet).counts["units"] == 0
    assert len(rows_of(output)) == 2
