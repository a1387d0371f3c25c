"""`reelscribe retry`: failed units again, in the same run and the same table, none twice."""

import io
import json
from pathlib import Path

import pyarrow.dataset as ds
import pytest
from PIL import Image
from rich.console import Console

from jobs.plan import plan
from jobs.run import annotate, retry
from pipeline.output.table import commit_rows
from pipeline.storage.storage import Storage
from schemas.errors import JobFileError
from schemas.job.job import Job, check_job
from schemas.tables.annotation import PIECES

pytestmark = pytest.mark.usefixtures("no_ray")


def console() -> Console:
    return Console(file=io.StringIO(), width=200)


def rows_of(output: Path) -> dict[str, dict]:
    rows = ds.dataset(output / "annotations", partitioning="hive").to_table().to_pylist()
    found = {Path(row["uri"]).name: row for row in rows}
    assert len(found) == len(rows)
    return found


def paint(path: Path, color: str) -> None:
    Image.new("RGB", (64, 64), color).save(path)


@pytest.fixture(scope="module")
def damaged(checkpoint: Path, tmp_path_factory) -> tuple[Job, Path]:
    """A finished run of four items, of which one is missing and two are broken."""
    folder = tmp_path_factory.mktemp("damaged")
    paint(folder / "whole.png", "red")
    (folder / "page.jpg").write_bytes(b"<html>404</html>")
    paint(folder / "cut.png", "blue")
    content = (folder / "cut.png").read_bytes()
    (folder / "cut.png").write_bytes(content[:60])  # its header is read, its pixels are not
    names = ["whole.png", "page.jpg", "cut.png", "late.png"]
    lines = [json.dumps({"uri": name, "media_id": name}) + "\n" for name in names]
    (folder / "manifest.jsonl").write_text("".join(lines))
    spec = {"input": {"manifest": str(folder / "manifest.jsonl")}, "output": str(folder / "out")}
    simulated = {"speed": 1000.0, "output_tokens": 8}  # answers follow from the unit's id
    model = {"source": str(checkpoint), "engine": "simulated", "simulated": simulated}
    job = check_job(spec | {"name": "mine", "model": model}, "test")
    output = console()
    annotate.run(job, output)
    hint = "1 units failed with errors that may be gone by now: `reelscribe retry`"
    assert hint in output.file.getvalue()
    return job, folder


def test_failed_units_are_done_again_into_the_same_table(damaged):
    job, folder = damaged
    before = rows_of(folder / "out")
    assert {name: row["error"]["type"] for name, row in before.items() if row["error"]} == {
        "page.jpg": "media_unreadable",
        "cut.png": "media_unreadable",
        "late.png": "media_missing",
    }

    # Still missing: tried once more, and nothing else is touched.
    retry.run(job, console())
    missing = rows_of(folder / "out")
    assert missing["late.png"]["error"]["attempts"] == 2
    assert {k: v for k, v in missing.items() if k != "late.png"} == {
        k: v for k, v in before.items() if k != "late.png"
    }

    # Restored, and replaced by other content, which is planned anew: other units.
    for name in ("late.png", "page.jpg", "cut.png"):
        paint(folder / name, "green")
    output = console()
    run = retry.run(job, output, error_types=["media_unreadable", "media_missing"])
    assert "failed units again: media_missing, media_unreadable" in output.file.getvalue()
    rows = rows_of(folder / "out")
    assert {row["run_id"] for row in rows.values()} == {run.run_id}
    assert {row["status"] for row in rows.values()} <= {"ok", "partial"}
    assert run.counts["units"] == len(rows)
    written = json.loads((folder / "out/runs" / run.run_id / "run.json").read_text())
    assert written["starts"] == 3

    # What this start did, for its throughput: three of the units, and their tokens.
    done_again = [row for name, row in rows.items() if before[name]["error"]]
    assert written["num_units"] == 3 < written["counts"]["units"]
    assert written["num_output_tokens"] == sum(
        response["num_output_tokens"] for row in done_again for response in row["responses"]
    )
    assert written["machines"][0]["num"] == 1 and written["actors"]["engines"] == 1
    assert written["created_at"] <= written["finished_at"]

    # The same units and answers as of a run to which nothing happened.
    whole = folder / "whole"
    annotate.run(job.model_copy(update={"output": str(whole)}), console())
    assert {k: texts(row) for k, row in rows.items()} == {
        k: texts(row) for k, row in rows_of(whole).items()
    }

    output = console()
    assert retry.run(job, output).run_id == run.run_id
    assert "has no rows that failed by" in output.file.getvalue()


def test_one_span_that_cannot_be_done_costs_no_other_its_row(archive, checkpoint, tmp_path):
    clip, out = str(archive / "clips" / "long-audio.mp4"), tmp_path / "out"
    spans = [(0, 2), (1000, 1010)]
    rows = [{"uri": clip, "start_seconds": start, "end_seconds": end} for start, end in spans]
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = {"source": str(checkpoint), "engine": "simulated", "simulated": {"speed": 1000.0}}
    spec = {"input": {"manifest": str(manifest)}, "output": str(out), "model": model}
    job = check_job(spec, "test")

    def statuses() -> list[str]:
        table = ds.dataset(out / "annotations", partitioning="hive").to_table()
        return sorted(table["status"].to_pylist())

    plan.run(job, console())  # what could not be planned is looked at again
    annotate.run(job, console())
    assert statuses() == ["failed", "ok"]
    run = retry.run(job, console(), error_types=["bad_request"])
    assert run.status == "complete"
    assert statuses() == ["failed", "ok"]


def texts(row: dict) -> tuple[str, list[str]]:
    return row["unit_id"], [response["raw_text"] for response in row["responses"]]


def test_what_cannot_be_retried_is_said(damaged):
    job, _ = damaged
    with pytest.raises(JobFileError, match="no error type typo; there are bad_request, "):
        retry.run(job, console(), error_types=["typo"])
    with pytest.raises(JobFileError, match=r"no run of the job `mine`, x: .*; there are mine-"):
        retry.run(job, console(), run_id="x")
    other = job.model_copy(update={"name": "never"})
    with pytest.raises(JobFileError, match="no run of the job `never`: `reelscribe annotate`"):
        retry.run(other, console())
    changed = job.model_copy(
        update={"generation": job.generation.model_copy(update={"seed": 1, "temperature": 1.0})}
    )
    with pytest.raises(JobFileError, match=r"other settings than this job: recipe\.generation"):
        retry.run(changed, console())


def test_the_earlier_run_that_has_such_units_is_named(checkpoint: Path, tmp_path: Path):
    paint(tmp_path / "a-whole.png", "red")
    for name in ("page.jpg", "page2.jpg"):
        (tmp_path / name).write_bytes(b"<html>404</html>")
    spec = {"input": {"scan": str(tmp_path), "glob": "*.*"}, "output": str(tmp_path / "out")}
    model = {"source": str(checkpoint), "engine": "simulated", "simulated": {"speed": 1000.0}}
    job = check_job(spec | {"name": "mine", "model": model}, "test")
    first = annotate.run(job, console())
    newest_job = job.model_copy(update={"input": job.input.model_copy(update={"limit": 1})})
    newest = annotate.run(newest_job, console())
    assert newest.run_id != first.run_id and not newest.counts["errors"]

    def retried(error_type: str) -> str:
        output = console()
        retry.run(newest_job, output, error_types=[error_type])
        return output.file.getvalue()

    found = retried("media_unreadable")
    assert f"{newest.run_id} has no rows that failed by media_unreadable" in found
    assert f"the earlier run {first.run_id} has 2: retry it with --run {first.run_id}" in found
    assert "earlier run" not in retried("media_missing")
    for name in ("page.jpg", "page2.jpg"):
        paint(tmp_path / name, "green")
    retry.run(job, console(), run_id=first.run_id, error_types=["media_unreadable"])
    assert "earlier run" not in retried("media_unreadable")


def test_what_a_killed_retry_answered_is_in_the_table_at_every_moment(
    checkpoint: Path, tmp_path: Path, monkeypatch
):
    """Its answer is in a piece, the row that failed in the table; the next retry goes on."""
    paint(tmp_path / "whole.png", "red")
    lines = [json.dumps({"uri": name, "media_id": name}) for name in ("whole.png", "late.png")]
    (tmp_path / "manifest.jsonl").write_text("\n".join(lines))
    spec = {"input": {"manifest": str(tmp_path / "manifest.jsonl")}, "output": str(tmp_path / "o")}
    model = {"source": str(checkpoint), "engine": "simulated", "simulated": {"speed": 1000.0}}
    job = check_job(spec | {"name": "mine", "model": model}, "test")
    run = annotate.run(job, console())
    late = rows_of(tmp_path / "o")["late.png"] | {"status": "ok", "error": None}
    late = {name: value for name, value in late.items() if name != "run_date"}
    commit_rows([late], str(tmp_path / "o" / PIECES), run.key, Storage())

    seen = []
    remove = Storage.remove

    def watched(storage: Storage, uri: str) -> None:
        remove(storage, uri)
        table = ds.dataset(tmp_path / "o" / "annotations").to_table(["unit_id"])
        seen.append(set(table["unit_id"].to_pylist()))

    monkeypatch.setattr(Storage, "remove", watched)
    retry.run(job, console())
    assert len(seen) > 2 and all(late["unit_id"] in found for found in seen)
    assert rows_of(tmp_path / "o")["late.png"]["status"] == "ok"
