"""A whole run of questions with names of their own: plan, annotate, retry, only_new."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from jobs.plan import plan
from jobs.run import annotate, retry
from pipeline.output.views import connect
from pipeline.storage.storage import Storage
from schemas.errors import JobFileError, ManifestError
from schemas.job.job import Job, check_job
from tests.support.job_files import SIMULATED

SCENE = {
    "type": "object",
    "properties": {"people": {"type": "integer"}, "mood": {"type": "string"}},
    "required": ["people", "mood"],
}


def console() -> Console:
    return Console(file=io.StringIO(), width=200)


def make(checkpoint: Path, folder: Path, *tasks: dict[str, Any], **given: Any) -> Job:
    spec = {
        "name": "named",
        "input": {"manifest": str(folder / "manifest.jsonl")} | given,
        "output": str(folder / "out"),
        "model": {"source": str(checkpoint), **SIMULATED},
        "tasks": list(tasks),
    }
    return check_job(spec, "test")


def write_manifest(folder: Path, *rows: dict[str, Any]) -> None:
    lines = [json.dumps(row | {"media_id": row["uri"]}) + "\n" for row in rows]
    (folder / "manifest.jsonl").write_text("".join(lines))


def latest(output: Path, columns: str) -> list[tuple[Any, ...]]:
    with connect(str(output), Storage()) as db:
        return db.execute(f"SELECT {columns} FROM latest ORDER BY media_id").fetchall()


SCENE_TASK = {"name": "scene", "task": "custom", "prompt": "What?", "json_schema": SCENE}
SEASON = {"name": "season", "task": "custom", "prompt": "Which season?"}
INVOICE = {"name": "invoice", "task": "fields", "keys": ["total"]}


def test_a_run_knows_questions_by_their_names(checkpoint, tmp_path, no_ray):
    job = make(checkpoint, tmp_path, SCENE_TASK, SEASON, INVOICE)
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    write_manifest(tmp_path, {"uri": "a.png"}, {"uri": "b.png", "tasks": ["invoice", "season"]})
    planned = {row["media_id"]: row["prompts"] for row in plan.run(job, console()).to_pylist()}
    assert [each["task"] for each in planned["a.png"]] == ["scene", "season", "invoice"]

    annotate.run(job, console())
    status = "status, scene IS NULL, season IS NULL, invoice IS NULL"
    expected = [("ok", False, False, False), ("failed", True, True, True)]
    assert latest(tmp_path / "out", status) == expected

    Image.new("RGB", (64, 64), "blue").save(tmp_path / "b.png")
    retry.run(job, console())
    expected[1] = ("ok", True, False, False)  # as its manifest row says
    assert latest(tmp_path / "out", status) == expected
    types = "typeof(scene), typeof(season), typeof(invoice)"
    found = ("STRUCT(people BIGINT, mood VARCHAR)", "VARCHAR", "MAP(VARCHAR, VARCHAR)")
    assert latest(tmp_path / "out", types) == [found] * 2

    whole = "unit_id, scene, season, invoice, epoch(timings.finished_at)"
    before = latest(tmp_path / "out", whole)
    annotate.run(make(checkpoint, tmp_path, SCENE_TASK, SEASON, INVOICE, only_new=True), console())
    assert latest(tmp_path / "out", whole) == before

    # Another name is another question, in another column of the same table.
    write_manifest(tmp_path, {"uri": "a.png"})
    renamed = SEASON | {"name": "time_of_year"}
    annotate.run(make(checkpoint, tmp_path, SCENE_TASK, renamed, only_new=True), console())
    found = latest(tmp_path / "out", "season IS NULL, time_of_year IS NULL, invoice IS NULL")
    assert found == [(True, False, True), (False, True, False)]

    with pytest.raises(JobFileError, match="season has answers of type struct<people: int64"):
        annotate.run(make(checkpoint, tmp_path, SEASON | {"json_schema": SCENE}), console())


def test_the_manifest_asks_for_names_of_the_job(checkpoint, tmp_path):
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    write_manifest(tmp_path, {"uri": "a.png", "tasks": ["seasons", "caption"]})
    with pytest.raises(ManifestError, match=r"asks for \['caption', 'seasons'\], which the job"):
        plan.run(make(checkpoint, tmp_path, SEASON), console())
