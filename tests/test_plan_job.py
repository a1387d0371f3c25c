"""A plan is the same, whether this process makes it or Ray's actors do."""

import io
import subprocess
import sys
from pathlib import Path

import yaml
from conftest import SMALL
from rich.console import Console

from jobs import plan
from schemas.job import check_job

ROOT = Path(__file__).parents[1]


def test_few_files_are_planned_as_actors_would(
    archive: Path, checkpoint: Path, tmp_path: Path, ray_session, monkeypatch
):
    spec = SMALL | {"input": {"scan": str(archive)}, "output": str(tmp_path / "out")}
    job = check_job(spec | {"model": {"source": str(checkpoint)}}, "test")
    console = Console(file=io.StringIO(), width=120)
    here = plan.run(job, console, dry_run=True)
    asked = []
    monkeypatch.setattr(plan, "PLAN_BATCH_ITEMS", 10)
    there = plan.build_plan
    monkeypatch.setattr(plan, "build_plan", lambda *args: asked.append(args) or there(*args))
    assert plan.run(job, console, dry_run=True).equals(here)
    assert len(asked) == 1
    assert 0 < here["error"].null_count < here.num_rows


def test_few_files_are_planned_without_ray_and_broken_ones_print_nothing(
    archive: Path, checkpoint: Path, tmp_path: Path
):
    spec = SMALL | {"input": {"scan": str(archive)}, "output": str(tmp_path / "out")}
    (tmp_path / "job.yaml").write_text(
        yaml.safe_dump(spec | {"model": {"source": str(checkpoint)}})
    )
    code = "import jobs.cluster as c; c.start_ray = None; from jobs.cli import main; main()"
    command = [sys.executable, "-c", code, "plan", str(tmp_path / "job.yaml"), "--dry-run"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "media_unreadable" in done.stdout
    assert "starting Ray" not in done.stdout
    assert "planning: " in done.stdout
    assert done.stderr == ""
