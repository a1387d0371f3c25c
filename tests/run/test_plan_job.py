"""A plan is the same, whether this process makes it or Ray's actors do."""

import io
import logging
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from jobs.console import waiting
from jobs.plan import open_job, plan, probe
from schemas.errors import UserError
from schemas.job.job import check_job
from tests.support.job_files import SMALL, hide_ray
from tests.support.paths import ROOT


def test_few_files_are_planned_as_actors_would(
    archive: Path, checkpoint: Path, tmp_path: Path, ray_session, monkeypatch
):
    spec = SMALL | {"input": {"scan": str(archive)}, "output": str(tmp_path / "out")}
    job = check_job(spec | {"model": {"source": str(checkpoint)}}, "test")
    console = Console(file=io.StringIO(), width=120)
    with monkeypatch.context() as patch:
        hide_ray(patch)
        here = plan.run(job, console, dry_run=True)
    calls = []
    build_plan = probe.build_plan
    monkeypatch.setattr(probe, "build_plan", lambda *args: calls.append(args) or build_plan(*args))
    assert plan.run(job, console, dry_run=True).equals(here)
    assert len(calls) == 1
    assert 0 < here["error"].null_count < here.num_rows


def test_few_files_are_planned_without_ray_and_broken_ones_print_nothing(
    archive: Path, checkpoint: Path, tmp_path: Path
):
    media = tmp_path / "media"
    shutil.copytree(archive, media)
    shutil.copy(media / "images" / "tiny.png", media / os.fsdecode(b"Z\xfcrich.png"))
    (media / "notes.txt").write_bytes(b"")
    (media / "gone.mp4").symlink_to("nowhere.mp4")
    spec = SMALL | {"input": {"scan": str(media)}, "output": str(tmp_path / "out")}
    (tmp_path / "job.yaml").write_text(
        yaml.safe_dump(spec | {"model": {"source": str(checkpoint)}})
    )
    code = (
        "import jobs.cluster.session as c; c.start_ray = None\n"
        "from jobs.cli.main import main; main()"
    )
    command = [sys.executable, "-c", code, "plan", str(tmp_path / "job.yaml"), "--dry-run"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "media_unreadable" in done.stdout
    assert "rich.png" not in done.stdout  # the image whose name is not UTF-8 is planned like others
    assert "1 x .txt" in done.stdout
    assert (
        "left out: links to files that do not exist: 1 (1 x .mp4), such as gone.mp4" in done.stdout
    )
    assert "starting Ray" not in done.stdout
    assert "planning: " in done.stdout
    assert done.stderr == ""


def test_a_storage_that_is_slow_is_named_while_one_waits(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The server answers only once the message was logged, so the test has no clock."""
    said = threading.Event()
    lines = []

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())
            said.set()

    class Slow(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert said.wait(120)
            self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, *args: object) -> None:
            pass

    handler = Lines()
    logging.getLogger(waiting.__name__).addHandler(handler)
    monkeypatch.setattr(waiting, "SECONDS", 0.0)
    with HTTPServer(("127.0.0.1", 0), Slow) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        uri = f"http://127.0.0.1:{server.server_port}/list.jsonl?token=secret"
        spec = SMALL | {"input": {"manifest": uri}, "output": str(tmp_path / "out")}
        job = check_job(spec | {"model": {"source": str(checkpoint)}}, "test")
        with pytest.raises(UserError):
            open_job.open_job(job)
        server.shutdown()
    logging.getLogger(waiting.__name__).removeHandler(handler)
    shown = f"http://127.0.0.1:{server.server_port}/list.jsonl?..."
    assert lines == [f"still waiting for the list of media: {shown}"]
