"""only_new takes media that the table lacks, by content, not by name, and loses none."""

import io
import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from rich.console import Console

from jobs.api import read
from jobs.plan import plan as plan_job
from jobs.run import annotate
from pipeline.manifest.existing import ExistingMedia
from pipeline.manifest.select import since_time
from pipeline.output.file_names import file_name
from pipeline.output.rows import ANNOTATION
from pipeline.storage.ids import digest
from pipeline.storage.parquet import write_parquet
from pipeline.storage.storage import Storage
from schemas.errors import JobFileError
from schemas.job.job import check_job
from schemas.tables.manifest import MediaItem
from schemas.tables.unit import UNIT
from tests.support.annotation_rows import row as any_row
from tests.support.job_files import SIMULATED, SMALL
from tests.support.run_key import run_key

STORAGE = Storage()
ETAG = "0123456789abcdef0123456789abcdef"


def row(media_id, version, *, video=None, **fields):
    """A row with the unit_id of an image, of a video's span, or of media that cannot be read."""
    span = [None if t is None else f"{t:.6f}" for t in (video or (None,) * 4)[2:]]
    return any_row(digest(media_id, None, *span), media_id, version, video=video, **fields)


def new_of(tmp_path, rows, items):
    table = pa.Table.from_pylist(rows, schema=ANNOTATION)
    name = file_name("r", "abc")
    write_parquet(table, f"{tmp_path}/annotations/run_date=2026-01-01/{name}", STORAGE)
    with ExistingMedia(str(tmp_path), run_key("r", "abc").recipe_ids, STORAGE) as known:
        return [item.media_id for item in known.new_items(items)[0]]


def item(media_id, version, **fields):
    return MediaItem(media_id=media_id, uri=media_id, content_version=version, **fields)


def test_a_renamed_object_is_known_and_a_changed_one_is_new(tmp_path):
    items = [item("a", ETAG), item("renamed", ETAG), item("a", ETAG[::-1]), item("c", None)]
    assert new_of(tmp_path, [row("a", ETAG)], items) == ["a", "c"]


def test_size_and_time_do_not_identify_content_under_another_name(tmp_path):
    items = [item("a", "5-17"), item("b", "5-17")]
    assert new_of(tmp_path, [row("a", "5-17")], items) == ["b"]


def test_a_video_is_known_if_its_spans_leave_no_gap(tmp_path):
    rows = [
        row("whole", "v1", video=(0.0, 10.0, 0.0, 6.0)),
        row("whole", "v1", video=(0.0, 10.0, 5.0, 10.0)),
        row("gap", "v2", video=(0.0, 60.0, 0.0, 40.0)),
        row("gap", "v2", video=(0.0, 60.0, 35.0, 50.0)),
        row("gap", "v2", video=(0.0, 60.0, 51.0, 60.0)),
        row("killed", "v3", video=(1.5, 10.0, 1.5, 6.0)),
    ]
    items = [item("whole", "v1"), item("gap", "v2"), item("killed", "v3")]
    span = item("whole", "v1", start_seconds=2.0, end_seconds=3.0)
    assert new_of(tmp_path, rows, [*items, span]) == ["gap", "killed", "whole"]


def test_broken_media_are_known_and_transient_errors_are_tried_again(tmp_path):
    rows = [
        row("broken", "v1", error="media_unreadable", readable=False),
        row("away", "v2", error="storage_failed", readable=False),
    ]
    items = [item("broken", "v1"), item("away", "v2"), item("broken", "mended")]
    assert new_of(tmp_path, rows, items) == ["away", "broken"]


def test_a_span_outside_the_video_leaves_the_video_new(tmp_path):
    """A row for seconds after the end does not mean that the rest was annotated."""
    failed = any_row("a span", "a", "v1", error="bad_request", readable=False)
    assert new_of(tmp_path, [failed], [item("a", "v1")]) == ["a"]


def units_of(name, version, *spans, further=()):
    """Planned units of an image, or of the spans of a video."""
    table = []
    for start, end in spans or [(None, None)]:
        times = [None if t is None else f"{t:.6f}" for t in (start, end)]
        table.append(
            {
                "unit_id": digest(name, version, *times, *further),
                "media_id": name,
                "uri": name,
                "content_version": version,
                "media": {"media_type": "video" if spans else "image", "content_version": version},
                "sampling": {"start_seconds": start, "end_seconds": end},
            }
        )
    return pa.Table.from_pylist(table, schema=UNIT)


HALVES = [(0.0, 5.0), (5.0, 10.0)]


def probed(tmp_path, rows, units):
    """The media of units that are new, and of other ones whose answers are the newest."""
    folder = f"{tmp_path}/{len(list(tmp_path.iterdir()))}"  # an output of its own
    table = pa.Table.from_pylist(rows, schema=ANNOTATION)
    name = file_name("r", "abc")
    write_parquet(table, f"{folder}/annotations/run_date=2026-01-01/{name}", STORAGE)
    with ExistingMedia(folder, run_key("r", "abc").recipe_ids, STORAGE) as known:
        new, listing = known.new_units(units)
    changed = {r["media_id"]: r["answers_of"] for r in listing.to_pylist()}
    return sorted(set(new["media_id"].to_pylist())), changed


def of_unit(units, hour=1):
    """Rows of planned units."""
    rows = []
    for unit in units.to_pylist():
        span = (unit["sampling"]["start_seconds"], unit["sampling"]["end_seconds"])
        video = None if span[0] is None else (0.0, 10.0, *span)
        one = any_row(unit["unit_id"], unit["media_id"], unit["content_version"], video=video)
        one["media"]["content_version"] = unit["content_version"]
        one["timings"] = {"finished_at": datetime(2026, 1, 1, hour, tzinfo=UTC)}
        rows.append(one)
    return rows


def test_probed_units_with_earlier_content_are_known_and_are_the_latest(tmp_path):
    before, after = units_of("a", "v1", *HALVES), units_of("a", "v2", *HALVES)
    rows = [*of_unit(before), *of_unit(after, hour=2)]
    assert probed(tmp_path, rows, after) == ([], {})
    assert probed(tmp_path, rows, before) == ([], {"a": "a"})
    assert probed(tmp_path, rows, units_of("a", "v3", *HALVES)) == (["a"], {})
    assert probed(tmp_path, rows[1:], before) == (["a"], {})


def test_probed_units_are_known_under_another_name_by_md5(tmp_path):
    rows = of_unit(units_of("a", ETAG, *HALVES))
    assert probed(tmp_path, rows, units_of("b", ETAG, *HALVES)) == ([], {"b": "a"})
    assert probed(tmp_path, rows, units_of("b", ETAG, HALVES[0])) == (["b"], {})
    assert probed(tmp_path, rows[1:], units_of("b", ETAG, *HALVES)) == (["b"], {})
    other = of_unit(units_of("a", "5-17"))
    assert probed(tmp_path, other, units_of("b", "5-17")) == (["b"], {})


def test_another_question_is_new_under_each_name(tmp_path):
    """The manifest's own tasks or messages for an item are part of its unit_id."""
    rows = of_unit(units_of("a", ETAG, further=["tasks=['ocr']"]))
    units = units_of("a", ETAG)
    assert probed(tmp_path, rows, units) == (["a"], {})
    assert probed(tmp_path, rows, units_of("b", ETAG)) == (["b"], {})
    assert new_of(tmp_path / "own", rows, [item("a", ETAG), item("b", ETAG)]) == ["a", "b"]
    simple = of_unit(units)
    asks = item("a", ETAG, tasks=("ocr",))
    assert new_of(tmp_path / "simple", simple, [item("a", ETAG), asks]) == ["a"]


def test_since():
    now = datetime(2026, 11, 24, 12, tzinfo=UTC)
    assert since_time("24h", now) == datetime(2026, 11, 23, 12, tzinfo=UTC)
    assert since_time("2026-11-22", now) == datetime(2026, 11, 22, tzinfo=UTC)
    with pytest.raises(JobFileError, match="such as 24h"):
        since_time("yesterday", now)


def put(bucket, key: str, path: Path) -> None:
    STORAGE.write_bytes(bucket.uri(key), path.read_bytes())


def rows_of(output) -> list[dict]:
    return ds.dataset(output / "annotations", partitioning="hive").to_table().to_pylist()


def latest(output) -> dict[str, tuple]:
    """The name of each file in `latest`: its caption, and the file of which it is a copy."""
    with duckdb.connect() as db:
        db.execute((output / "latest.sql").read_text())
        found = db.sql("SELECT uri, caption, copied_from.uri FROM latest").fetchall()
    return {Path(uri).name: (caption, of and Path(of).name) for uri, caption, of in found}


def test_nights_in_s3(s3_env, archive: Path, checkpoint: Path, tmp_path: Path, no_ray):
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
    captions = {row["unit_id"]: row["caption"] for row in rows}
    first_b, second_b = (row["caption"] for row in sorted(
        (row for row in rows if row["uri"].endswith("/b.jpg")),
        key=lambda row: row["timings"]["finished_at"],
    ))  # fmt: skip
    found = latest(tmp_path / "out")
    assert sorted(found) == ["a.jpg", "b.jpg", "broken.jpg", "renamed.jpg"]
    assert found["renamed.jpg"] == (found["a.jpg"][0], "a.jpg")
    assert found["b.jpg"] == (second_b, None) and first_b != second_b
    put(s3_env, "media/b.jpg", images / "scene-1.jpg")  # as it was
    put(s3_env, "media/broken.jpg", images / "scene-0.jpg")  # as another one
    STORAGE.remove(s3_env.uri("media/a.jpg"))
    assert "3 media are in the table already, 0 are taken as new" in night()
    a = found["a.jpg"][0]
    assert latest(tmp_path / "out") == {
        "b.jpg": (first_b, None), "broken.jpg": (a, "a.jpg"), "renamed.jpg": (a, "a.jpg"),
    }  # fmt: skip
    table = read(tmp_path / "out").table.to_pylist()
    shown = {Path(row["uri"]).name: row["caption"] for row in table}
    assert shown == {"b.jpg": first_b, "broken.jpg": a, "renamed.jpg": a}
    assert {row["unit_id"]: row["caption"] for row in rows_of(tmp_path / "out")} == captions
    spec["tasks"] = [{"caption": {"style": "short"}}]
    assert "0 media are in the table already, 3 are taken as new" in night(limit=4)


def test_media_without_versions_are_found_by_their_plan(
    archive: Path, checkpoint: Path, tmp_path: Path, no_ray
):
    def put(name: str, scene: int) -> None:
        shutil.copy2(archive / "images" / f"scene-{scene}.jpg", tmp_path / name)

    put("a.jpg", 0)
    put("b.jpg", 1)
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
    before = latest(output)
    put("b.jpg", 2)
    assert annotate.run(job, quiet).counts["units"] == 1
    assert latest(output)["b.jpg"] != before["b.jpg"]
    put("b.jpg", 1)  # as it was, with its time
    assert annotate.run(job, quiet).counts["units"] == 0
    assert latest(output) == before
    assert len(rows_of(output)) == 3
