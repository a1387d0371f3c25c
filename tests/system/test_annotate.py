"""The whole job: one unit in, one row out, whatever the media, wherever it lies.

On a local Ray, where the subject is not what a later run does with the rows of an earlier one.
"""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import duckdb
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from jobs.api import read
from jobs.plan.open_job import open_job
from jobs.plan.runs import Run
from jobs.run import annotate
from pipeline.output.rows import ANNOTATION
from pipeline.storage.storage import Storage
from schemas.errors import ManifestError, ResourceError, StorageError
from schemas.job.job import Job, check_job
from schemas.tables.unit import UNIT
from tests.support.clips import ffprobe_pts, needs_ffprobe
from tests.support.job_files import SIMULATED, SMALL
from tests.support.waiting import wait_until


def job(checkpoint: Path, output: object, **changes) -> Job:
    spec = SMALL | {"output": str(output), "model": {"source": str(checkpoint)}} | changes
    return check_job(spec, "test")


def simulated(checkpoint: Path, output: object, **changes) -> Job:
    return job(checkpoint, output, model=SIMULATED | {"source": str(checkpoint)}, **changes)


def quiet() -> Console:
    return Console(file=io.StringIO(), width=120)


def rows_of(output: Path) -> list[dict]:
    return ds.dataset(output / "annotations", partitioning="hive").to_table().to_pylist()


def test_one_row_for_each_planned_unit(annotated, archive: Path):
    _, output, run = annotated
    rows = rows_of(output)
    plan = pq.read_table(output / "runs" / run.run_id / "plan" / "part-0.parquet")
    assert plan.schema.equals(UNIT, check_metadata=False)
    assert Counter(row["unit_id"] for row in rows) == Counter(plan["unit_id"].to_pylist())
    media = [path for path in archive.glob("*/*") if not path.name.startswith(".")]
    assert {row["uri"] for row in rows} == {str(path) for path in media}
    assert len(rows) > len(media)  # long clips are several windows
    assert {row["run_id"] for row in rows} == {run.run_id}
    for row in rows:
        kind = row["media"]["media_type"] if row["media"] else "unread"
        assert row["recipe_id"] == getattr(run.recipe_ids, kind)


def test_broken_media_are_rows_that_say_why_and_nothing_else_fails(annotated):
    _, output, run = annotated
    failed = {Path(row["uri"]).name: row["error"] for row in rows_of(output) if row["error"]}
    assert set(failed) == {"truncated.mp4", "unreadable.mp4", "truncated.jpg"}
    assert {error["type"] for error in failed.values()} == {"media_unreadable"}
    assert failed["unreadable.mp4"]["stage"] == "plan"
    assert failed["truncated.jpg"]["stage"] == "decode"
    assert run.counts["errors"] == {"media_unreadable": 4}  # truncated.mp4 is two windows
    assert run.counts["status"]["failed"] == 4


def test_tokens_planned_are_tokens_fed_in_every_row(annotated):
    _, output, run = annotated
    plan = pq.read_table(output / "runs" / run.run_id / "plan" / "part-0.parquet")
    planned = {
        unit["unit_id"]: {p["task"]: p["num_prompt_tokens"] for p in unit["prompts"]}
        for unit in plan.to_pylist()
    }
    checked = 0
    for row in rows_of(output):
        if row["status"] != "failed":
            fed = {r["task"]: r["num_prompt_tokens"] for r in row["responses"]}
            assert fed == planned[row["unit_id"]]
            checked += 1
    assert checked > 40


@needs_ffprobe
def test_times_in_the_table_are_ffprobes(annotated):
    _, output, _ = annotated
    clips = [row for row in rows_of(output) if row["sampling"] and row["sampling"]["pts_seconds"]]
    assert len({row["uri"] for row in clips}) >= 16
    for row in clips:
        truth = [round(t, 6) for t in ffprobe_pts(Path(row["uri"]))]
        sampling = row["sampling"]
        assert len(sampling["pts_seconds"]) == sampling["num_frames"]
        assert len(sampling["pts_seconds"]) % 2 == 0
        for pts, index in zip(sampling["pts_seconds"], sampling["frame_indices"], strict=True):
            assert round(pts, 6) in truth
            assert index is None or truth[index] == round(pts, 6)


def test_the_tables_schema_is_the_published_one(annotated):
    _, output, _ = annotated
    files = sorted((output / "annotations").glob("*/part-*.parquet"))
    recipes = [set(pq.read_table(file)["recipe_id"].to_pylist()) for file in files]
    assert all(len(ids) == 1 for ids in recipes)
    assert len(files) == len(set().union(*recipes)) > 1, "one file of each recipe in a shard"
    for file in files:
        schema = pq.read_schema(file)
        assert schema.equals(ANNOTATION, check_metadata=False)
        assert schema.metadata[b"schema_version"] == b"1"
        pts = schema.field("sampling").type.field("pts_seconds")
        assert pts.metadata[b"unit"] == b"s"


def test_events_are_asked_of_videos_only(annotated):
    _, output, _ = annotated
    for row in rows_of(output):
        if row["media"]:
            asked = [response["task"] for response in row["responses"]]
            assert ("events" in asked) == (row["media"]["media_type"] == "video")
            assert len(asked) == (5 if row["media"]["media_type"] == "video" else 4)


def test_run_json_tells_what_ran(annotated, checkpoint: Path):
    _, output, run = annotated
    told = json.loads((output / "runs" / run.run_id / "run.json").read_text())
    assert told["status"] == "complete"
    assert told["counts"]["units"] == len(rows_of(output))
    assert told["job"]["model"]["source"] == str(checkpoint)
    assert "storage_options" not in told["job"]
    assert set(told["fingerprint"]) == {"manifest", "recipe", "schema_version"}
    assert set(told["recipe_ids"]) == {"image", "video", "messages", "unread"}
    assert {"ray", "torch", "transformers", "code"} <= set(told["versions"])
    assert told["seconds"] > 0


def test_a_finished_job_does_nothing_when_run_again(annotated):
    spec, output, run = annotated
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*.parquet")}
    console = quiet()
    assert annotate.run(spec, console) == run
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*.parquet")} == before
    assert "is complete" in console.file.getvalue()


def test_a_finished_job_whose_plan_was_removed_reads_no_media_again(annotated, tmp_path: Path):
    finished, output, run = annotated
    shutil.copytree(output, tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "runs" / run.run_id / "plan")
    console = quiet()
    again = annotate.run(finished.model_copy(update={"output": str(tmp_path / "out")}), console)
    assert (again.run_id, again.status) == (run.run_id, "complete")
    assert "planning" not in console.file.getvalue()


def test_other_pools_and_batches_are_the_same_run(annotated):
    spec, _, run = annotated
    other = spec.model_dump() | {"resources": {"max_batch_tokens": 999, "units_per_file": 3}}
    other["tasks"] = SMALL["tasks"]
    assert open_job(check_job(other, "test"))[0].run.run_id == run.run_id


def test_another_recipe_is_another_run_and_says_what_changed(annotated):
    spec, _, run = annotated
    other = spec.model_dump() | {"tasks": SMALL["tasks"], "budget": {"unit_tokens": 128}}
    context, _ = open_job(check_job(other, "test"))
    assert context.run.run_id != run.run_id
    assert f"recipe.budget.unit_tokens differs from {run.run_id}" in context.changes


def test_another_rate_of_frames_asks_no_image_again(
    archive: Path, checkpoint: Path, tmp_path: Path
):
    media = tmp_path / "media"
    media.mkdir()
    shutil.copy(archive / "images" / "scene-0.jpg", media)
    shutil.copy(archive / "clips" / "h265.mp4", media)
    output = tmp_path / "out"

    def run(fps: float) -> tuple[Run, str]:
        changes = {"input": {"scan": str(media), "only_new": True}, "sampling": {"fps": fps}}
        console = quiet()
        spec = simulated(checkpoint, output, tasks=["caption"], **changes)
        return annotate.run(spec, console), console.file.getvalue()

    first, _ = run(1.0)
    second, printed = run(2.0)
    assert f"recipe.sampling.fps differs from {first.run_id}" in printed
    assert (first.counts["units"], second.counts["units"]) == (2, 1)
    written = {(Path(row["uri"]).suffix, row["run_id"]) for row in rows_of(output)}
    assert written == {(".jpg", first.run_id), (".mp4", first.run_id), (".mp4", second.run_id)}
    for asked, video_run in ((first.run_id,) * 2, (second.run_id,) * 2, (None, second.run_id)):
        rows = read(output, run_id=asked).to_arrow().to_pylist()
        found = {Path(row["uri"]).suffix: row["run_id"] for row in rows}
        assert found == {".jpg": first.run_id, ".mp4": video_run}
    latest = duckdb.connect()
    latest.execute((output / "latest.sql").read_text())
    by_type = latest.sql("SELECT media.media_type, run_id FROM latest").fetchall()
    assert dict(by_type) == {"image": first.run_id, "video": second.run_id}


def test_the_readmes_questions_in_sql(annotated):
    _, output, _ = annotated
    table = f"read_parquet('{output}/annotations/**/*.parquet', hive_partitioning = true)"
    found = duckdb.sql(
        "SELECT uri, s.text, s.pts_seconds "
        f"FROM (SELECT uri, unnest(text_spans) AS s FROM {table}) "
        "WHERE s.text ILIKE '%exit%' ORDER BY uri, s.pts_seconds"
    )
    assert found.columns == ["uri", "text", "pts_seconds"]
    by_type = duckdb.sql(
        f"SELECT error.type, count(*) FROM {table} WHERE status = 'failed' GROUP BY ALL"
    ).fetchall()
    assert by_type == [("media_unreadable", 4)]


def write_manifest(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_manifest_with_a_missing_object_and_columns_of_its_own(
    archive: Path, checkpoint: Path, tmp_path: Path
):
    shutil.copy(archive / "images" / "scene-0.jpg", tmp_path / "a.jpg")
    manifest = write_manifest(
        tmp_path / "m.jsonl",
        [
            {"uri": "a.jpg", "media_id": "a", "camera": "north", "shelf": 7},
            {"uri": "gone.jpg", "media_id": "b", "camera": "south", "shelf": None},
            {"uri": str(archive / "clips" / "vp9.webm"), "media_id": "c", "start_seconds": 1.0,
             "end_seconds": 3.0, "tasks": ["caption", "ocr"]},
        ],
    )  # fmt: skip
    output = tmp_path / "out"
    annotate.run(simulated(checkpoint, output, input={"manifest": str(manifest)}), quiet())
    rows = {row["media_id"]: row for row in rows_of(output)}
    assert json.loads(rows["a"]["attributes"]) == {"camera": "north", "shelf": 7}
    assert rows["a"]["caption"] is not None
    assert rows["b"]["status"] == "failed"
    assert rows["b"]["error"]["type"] == "media_missing"
    assert [r["task"] for r in rows["c"]["responses"]] == ["caption", "ocr"]
    assert rows["c"]["sampling"]["start_seconds"] == 1.0
    assert min(rows["c"]["sampling"]["pts_seconds"]) >= 1.0 - 0.2


def test_a_duplicate_id_stops_before_work(archive: Path, checkpoint: Path, tmp_path: Path):
    uri = str(archive / "images" / "scene-0.jpg")
    manifest = write_manifest(tmp_path / "m.jsonl", [{"uri": uri}, {"uri": uri}])
    with pytest.raises(ManifestError, match=r"(?i)twice|duplicate|repeat"):
        annotate.run(job(checkpoint, tmp_path / "out", input={"manifest": str(manifest)}), quiet())
    assert not (tmp_path / "out").exists()


def test_a_task_that_the_job_does_not_have_stops_before_work(
    archive: Path, checkpoint: Path, tmp_path: Path
):
    uri = str(archive / "images" / "scene-0.jpg")
    manifest = write_manifest(tmp_path / "m.jsonl", [{"uri": uri, "tasks": ["events"]}])
    spec = job(checkpoint, tmp_path / "o", input={"manifest": str(manifest)}, tasks=["caption"])
    with pytest.raises(ManifestError, match="which the job file does not have"):
        annotate.run(spec, quiet())


def test_actors_that_do_not_fit_say_so(
    archive: Path, checkpoint: Path, tmp_path: Path, ray_session
):
    spec = job(
        checkpoint, tmp_path, input={"scan": str(archive / "images")}, resources={"replicas": 99}
    )
    with pytest.raises(
        ResourceError, match="99 engine replicas .* do not fit into the cluster's 3"
    ):
        annotate.run(spec, quiet())


def place(row: dict) -> tuple[str, float | None]:
    return Path(row["uri"]).name, (row["sampling"] or {}).get("start_seconds")


def raw_texts(row: dict) -> list[str]:
    return [response["raw_text"] for response in row["responses"]]


def test_everything_in_a_bucket(s3, archive: Path, checkpoint: Path, annotated):
    """Manifest, media and output on an S3 server over HTTP, by the job file's storage options."""
    bucket = s3.new_bucket()
    options = {"s3": {"endpoint_url": s3.endpoint_url, "key": "k", "secret": "s3cr3t-value"}}
    storage = Storage(options)
    names = ["images/scene-0.jpg", "images/alpha.webp", "clips/variable.mkv", "clips/broadcast.ts"]
    names += ["clips/h264-bframes.mp4", "clips/truncated.mp4"]
    for name in names:
        storage.write_bytes(bucket.uri(f"media/{name}"), (archive / name).read_bytes())
    rows = [{"uri": f"media/{name}"} for name in [*names, "nothing.png"]]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    storage.write_bytes(bucket.uri("manifest.jsonl"), lines.encode())
    spec = job(
        checkpoint,
        bucket.uri("out"),
        input={"manifest": bucket.uri("manifest.jsonl")},
        storage_options=options,
    )
    run = annotate.run(spec, quiet())
    filesystem, path = storage.filesystem(bucket.uri("out/annotations"))
    table = ds.dataset(path, filesystem=filesystem, partitioning="hive").to_table()
    assert table.num_rows == run.counts["units"]
    rows = table.to_pylist()
    failed = {row["uri"].split("/media/")[1] for row in rows if row["status"] == "failed"}
    assert failed == {"clips/truncated.mp4", "nothing.png"}
    # The same frames, tokens and answers as from local disk.
    local = {place(row): row for row in rows_of(annotated[1])}
    whole = [row for row in rows if row["status"] != "failed"]
    assert len(whole) >= 6
    for row in whole:
        here, there = local[place(row)]["sampling"], row["sampling"]
        for name in ("pts_seconds", "grid_thw", "num_vision_tokens", "start_seconds"):
            assert here[name] == there[name]
        # A window of a remote clip is reached by a seek: an index may then be unknown.
        known = zip(here["frame_indices"] or [], there["frame_indices"] or [], strict=True)
        assert all(b in (a, None) for a, b in known)
        assert raw_texts(row) == raw_texts(local[place(row)])
        assert row["timings"]["bytes_read"] > 0
    # Secrets stay where they were given.
    written = filesystem.find(path.rsplit("/", 1)[0])
    assert len(written) > 5
    assert all(b"s3cr3t-value" not in filesystem.cat_file(name) for name in written)
    assert annotate.run(spec, quiet()).run_id == run.run_id


@pytest.mark.timeout(900)  # starts twice, on any machine
def test_killed_and_run_again_every_unit_has_one_row(
    archive: Path, checkpoint: Path, tmp_path: Path
):
    """SIGKILL to the driver once some files are committed; the same command goes on from there."""
    command = [
        *(sys.executable, "-m", "jobs.cli", "annotate"),
        *(
            "--input",
            str(archive / "images"),
            "--output",
            str(tmp_path),
            "--model",
            str(checkpoint),
        ),
        *("--tasks", "caption,ocr", "--set", "model.engine=simulated"),
        *("--set", "model.simulated={seconds_per_step: 0.02, output_tokens: 20}"),
        *("--set", "resources.units_per_file=1", "--set", "resources.max_batch_tokens=600"),
        *("--set", "resources.ray=always"),
    ]
    environment = os.environ | {"RAY_ADDRESS": "local"}
    first = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )

    def has_three_files() -> bool:
        assert first.poll() is None, first.stdout.read().decode()
        return len(list(tmp_path.glob("annotations-pieces/*/part-*.parquet"))) >= 3

    wait_until(has_three_files)
    first.send_signal(signal.SIGKILL)
    first.wait()
    first.stdout.close()
    kept = [pq.read_table(p) for p in tmp_path.glob("annotations-pieces/*/part-*.parquet")]
    done_before = {row["unit_id"]: row for table in kept for row in table.to_pylist()}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "units are done already" in done.stdout
    rows = rows_of(tmp_path)
    times = {row["unit_id"]: row["timings"] for row in rows}
    assert done_before and all(times[k] == row["timings"] for k, row in done_before.items())
    assert not list(tmp_path.glob("annotations-pieces/*/part-*"))
    assert (
        len(rows)
        == len({row["unit_id"] for row in rows})
        == len(list((archive / "images").glob("[!.]*")))
    )
    (run_json,) = tmp_path.glob("runs/*/run.json")
    assert json.loads(run_json.read_text())["starts"] == 2
    assert not list(tmp_path.glob("annotations*/*/.*"))


def test_one_more_item_is_one_more_row(archive: Path, checkpoint: Path, tmp_path: Path):
    """A changed manifest is a new run; what an earlier one did under the same recipe stays done."""
    (tmp_path / "media").mkdir()
    for name in ("scene-0.jpg", "scene-1.jpg"):
        shutil.copy(archive / "images" / name, tmp_path / "media")
    output = tmp_path / "out"
    media = {"scan": str(tmp_path / "media")}
    spec = simulated(checkpoint, output, input=media, tasks=["caption"])
    first = annotate.run(spec, quiet())
    before = {row["unit_id"]: row["run_id"] for row in rows_of(output)}
    shutil.copy(archive / "images" / "tiny.png", tmp_path / "media")
    console = quiet()
    second = annotate.run(spec, console)
    assert second.run_id != first.run_id
    assert "manifest differs" in console.file.getvalue()
    assert "2 units are done already, 1 to do" in console.file.getvalue()
    rows = rows_of(output)
    assert len(rows) == 3
    assert {row["unit_id"]: row["run_id"] for row in rows if row["unit_id"] in before} == before
    assert second.counts["units"] == 3
    assert second.counts["units_of_earlier_runs"] == 2


def test_what_could_not_be_read_is_tried_again_under_another_name(
    archive: Path, checkpoint: Path, tmp_path: Path
):
    shutil.copy(archive / "images" / "tiny.png", tmp_path / "a.png")
    manifest = write_manifest(tmp_path / "m.jsonl", [{"uri": "a.png"}, {"uri": "late.png"}])
    source = {"input": {"manifest": str(manifest)}, "tasks": ["caption"]}
    console = quiet()
    annotate.run(simulated(checkpoint, tmp_path / "out", **source, name="first"), console)
    assert "1 units failed with errors that may be gone by now" in console.file.getvalue()
    shutil.copy(archive / "images" / "plate-0.png", tmp_path / "late.png")
    annotate.run(simulated(checkpoint, tmp_path / "out", **source, name="again"), quiet())
    rows = rows_of(tmp_path / "out")
    assert sorted((Path(row["uri"]).name, row["error"]) for row in rows) == [
        ("a.png", None),
        ("late.png", None),
    ]
    by_name = {Path(row["uri"]).name: row["run_id"] for row in rows}
    assert by_name["a.png"].startswith("first-")
    assert by_name["late.png"].startswith("again-")


def test_a_storage_that_gives_nothing_is_a_mistake_of_the_job(checkpoint: Path, tmp_path: Path):
    manifest = write_manifest(tmp_path / "m.jsonl", [{"uri": "a.jpg"}, {"uri": "b.mp4"}])
    with pytest.raises(StorageError, match="none of the 2 media can be read, such as .* not exist"):
        annotate.run(job(checkpoint, tmp_path, input={"manifest": str(manifest)}), quiet())


def test_a_worker_that_dies_on_a_row_does_not_go_on_for_ever(ray_session):
    import ray

    from jobs.cluster.session import actor_errors
    from pipeline.stages.graph import stage
    from pipeline.stages.pools import Pool

    class Crash:
        def __call__(self, batch):
            os._exit(1)

    dataset = stage(ray.data.range(1), Crash, (), Pool(num_actors=1, num_cpus=0.1))
    with (
        pytest.raises(ResourceError, match="a worker process died again and again"),
        actor_errors(),
    ):
        dataset.materialize()


def test_a_storage_that_fails_in_a_worker_is_one_message(ray_session):
    import ray

    from jobs.cluster.session import actor_errors
    from pipeline.stages.graph import stage
    from pipeline.stages.pools import Pool

    class Full:
        def __call__(self, batch):
            raise StorageError("s3://b/out: no space left")

    dataset = stage(ray.data.range(1), Full, (), Pool(num_actors=1, num_cpus=0.1))
    with pytest.raises(StorageError, match="^s3://b/out: no space left$"), actor_errors():
        dataset.materialize()
