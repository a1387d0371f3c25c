"""Small jobs run without Ray, by the same rules and with the same rows as on Ray."""

import io
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pyarrow.dataset as ds
import pytest
from PIL import Image
from rich.console import Console

from jobs.cluster import machines
from jobs.cluster.small import MAX_SMALL, why_ray
from jobs.cluster.start import running_ray
from jobs.run import annotate
from schemas.job.job import Job, check_job
from tests.support.faulty_engine import DEADLY, Deadly
from tests.support.job_files import SIMULATED, hide_ray, make_job
from tests.support.misbehave import Trap
from tests.support.paths import ROOT

MODEL = {"source": str(ROOT / "jobs" / "demo_model"), "dtype": "float32", "device": "cpu"}
IN_ANOTHER_PROCESS = """
import io, os, psutil, signal, sys
from pathlib import Path
from rich.console import Console
import jobs.plan.open_job, pipeline.stages.here
from jobs.run import annotate
from schemas.job.job import load_job
from tests.support import faulty_engine, misbehave
jobs.plan.open_job.Storage = misbehave.Trap
pipeline.stages.here.Generate = faulty_engine.Deadly
class Kills(pipeline.stages.here.Commit):
    num_files = 0
    def __call__(self, batch):
        found = super().__call__(batch)
        self.num_files += 1
        if self.num_files == int(sys.argv[2]):
            children = psutil.Process().children(recursive=True)
            print(*(child.pid for child in children), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        return found
pipeline.stages.here.Commit = Kills
annotate.run(load_job(Path(sys.argv[1])), Console(file=io.StringIO()))
assert "ray" not in sys.modules and "torch" not in sys.modules
"""
"""A run in which units kill decoders and engines, and a number of files kills the driver."""


@pytest.mark.parametrize(
    ("sections", "num", "engines", "reason"),
    [
        ({}, MAX_SMALL, 1, None),
        ({}, MAX_SMALL + 1, 1, "257 units are more than 256"),
        ({}, 1, 2, "there is room for 2 engines"),
        ({"resources": {"ray": "always"}}, 1, 1, "resources.ray is always"),
        ({"model": {"engine": "vllm"}}, 1, 1, "model.engine is vllm"),
    ],
)
def test_which_jobs_run_on_ray(
    no_ray,
    monkeypatch: pytest.MonkeyPatch,
    sections: dict[str, Any],
    num: int,
    engines: int,
    reason: str | None,
):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert why_ray(make_job(**sections), num, "units", engines) == reason


@pytest.mark.slow
def test_this_machine_has_the_cpus_that_ray_finds(no_ray, monkeypatch: pytest.MonkeyPatch):
    """So a job has the same pools, and its engine the same threads, either way."""
    from ray._private.utils import get_num_cpus

    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(os.cpu_count() or 1))
    assert [node["CPU"] for node in machines.nodes()] == [get_num_cpus()]


def test_a_cluster_or_a_session_is_used(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("jobs.cluster.small.has_session", lambda: True)
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert why_ray(make_job(), 1, "units") == "this process has a Ray session"
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    assert why_ray(make_job(), 1, "units") == "RAY_ADDRESS is ray://head:10001"


def test_a_test_without_a_session_joins_none_of_another_test(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: True))
    assert why_ray(make_job(), 1, "units") is None


def test_a_ray_on_this_machine_is_joined_if_it_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Not one that was killed, whose address Ray finds in a file."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr("jobs.cluster.small.running_ray", running_ray)
    assert why_ray(make_job(), 1, "units") is None
    (tmp_path / "ray").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        (tmp_path / "ray" / "ray_current_cluster").write_text(address)
        found = why_ray(make_job(), 1, "units")
        assert found == f"a Ray runs on this machine, at {address}"
        monkeypatch.setenv("RAY_ADDRESS", "local")
        assert why_ray(make_job(), 1, "units") is None
        monkeypatch.delenv("RAY_ADDRESS")
    assert why_ray(make_job(), 1, "units") is None


@pytest.fixture(scope="module")
def media(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, a clip of two windows, and files that are broken, or kill a child or an engine."""
    folder = tmp_path_factory.mktemp("media")
    images = sorted((archive / "images").iterdir())
    for source in (*images[:6], archive / "clips" / "long-audio.mp4"):
        (folder / source.name).symlink_to(source)
    for name in (DEADLY, "crash decode.png", "crash plan.png"):
        Image.new("RGB", (64, 48), "teal").save(folder / name)
    (folder / "broken.jpg").write_bytes(b"<html>404</html>")
    return folder


def job_of(media: Path, output: Path, model: dict[str, Any]) -> Job:
    spec = {
        "input": {"scan": str(media)},
        "output": str(output),
        "model": MODEL | model,
        "tasks": ["caption", "events", {"objects": {"labels": ["circle", "square"]}}],
        "sampling": {"fps": 4.0, "segmentation": {"kind": "window", "seconds": 6}},
        "budget": {"image_tokens": [4, 64], "frame_tokens": [4, 30], "unit_tokens": 256},
        "generation": {"max_new_tokens": 48},
        "resources": {"decoders": 1, "units_per_file": 2},
        "summary": {"max_new_tokens": 24},
    }
    return check_job(spec, "test")


def rows_of(output: Path, table: str) -> dict[str, dict[str, Any]]:
    """Rows without times and names of runs, by the id of the unit or item."""
    rows = ds.dataset(output / table, partitioning="hive").to_table().to_pylist()
    for row in rows:
        for name in ("timings", "run_id", "run_date", "created_at"):
            row.pop(name, None)
    found = {row["unit_id" if "unit_id" in row else "item_id"]: row for row in rows}
    assert len(found) == len(rows)
    return found


def is_alive(pid: int) -> bool:
    """Whether a process is there after its parent's death, which ends it."""
    try:
        process = psutil.Process(pid)
        process.wait(timeout=120)
    except psutil.NoSuchProcess:
        return False
    except psutil.TimeoutExpired:
        return True
    return False


def run_json(output: Path) -> dict[str, Any]:
    (file,) = output.glob("runs/*/run.json")
    found: dict[str, Any] = json.loads(file.read_text())
    return found


@pytest.mark.slow
def test_the_rows_are_those_of_a_run_on_ray_over_deaths_a_kill_and_a_resume(
    media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_session: None
):
    monkeypatch.setattr("jobs.plan.open_job.Storage", Trap)
    monkeypatch.setattr("pipeline.stages.graph.Generate", Deadly)
    annotate.run(job_of(media, tmp_path / "ray", SIMULATED), Console(file=io.StringIO()))
    assert run_json(tmp_path / "ray")["ray"] == "this process has a Ray session"

    job = job_of(media, tmp_path / "here", SIMULATED)
    (tmp_path / "job.json").write_text(job.model_dump_json(exclude_unset=True))
    command = [sys.executable, "-P", "-c", IN_ANOTHER_PROCESS, str(tmp_path / "job.json")]
    environment = os.environ | {"RAY_ADDRESS": "local", "PYTHONPATH": str(ROOT)}
    killed = subprocess.run([*command, "3"], env=environment, stdout=subprocess.PIPE, text=True)
    assert killed.returncode == -signal.SIGKILL
    children = [int(pid) for pid in killed.stdout.split()]
    assert children and not any(map(is_alive, children))
    assert len(rows_of(tmp_path / "here", "annotations-pieces")) == 3
    assert not (tmp_path / "here" / "annotations").exists()
    assert run_json(tmp_path / "here")["status"] == "running"
    subprocess.run([*command, "0"], env=environment, check=True)

    finished = run_json(tmp_path / "here")
    assert (finished["status"], finished["ray"], finished["starts"]) == ("complete", None, 2)
    assert finished["machines"][0]["num"] == 1 and finished["actors"]["engines"] == 1
    rows = rows_of(tmp_path / "here", "annotations")
    assert rows == rows_of(tmp_path / "ray", "annotations")
    assert rows_of(tmp_path / "here", "items") == rows_of(tmp_path / "ray", "items")
    errors = {Path(row["uri"]).name: row["error"]["type"] for row in rows.values() if row["error"]}
    assert errors == {
        DEADLY: "engine_crashed",
        "crash decode.png": "decoder_crashed",
        "crash plan.png": "decoder_crashed",
        "broken.jpg": "media_unreadable",
    }
    assert any(row["caption"] for row in rows.values())


@pytest.mark.slow
def test_the_answers_of_a_model_are_those_of_a_run_on_ray(
    media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_session: None
):
    """Also the summaries, whose engine starts after the run."""
    ways = {"ray": "this process has a Ray session", "here": None}
    for way, reason in ways.items():
        if way == "here":
            hide_ray(monkeypatch)
        annotate.run(job_of(media, tmp_path / way, {}), Console(file=io.StringIO()))
        assert run_json(tmp_path / way)["ray"] == reason
    for table in ("annotations", "items"):
        assert rows_of(tmp_path / "here", table) == rows_of(tmp_path / "ray", table)
    assert all(row["summary"] for row in rows_of(tmp_path / "here", "items").values())


@pytest.mark.slow
def test_more_units_than_items_can_make_a_job_large(
    archive: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_session
):
    """Planned here, annotated on Ray."""
    hide_ray(monkeypatch)
    monkeypatch.setattr("jobs.cluster.small.MAX_SMALL", 1)
    (tmp_path / "media").mkdir()
    (tmp_path / "media" / "clip.mp4").symlink_to(archive / "clips" / "long-audio.mp4")
    spec = {
        "input": {"scan": str(tmp_path / "media")},
        "output": str(tmp_path / "out"),
        "model": {"source": str(checkpoint)} | SIMULATED,
        "sampling": {"segmentation": {"kind": "window", "seconds": 2}},
        "resources": {"decoders": 1},
    }
    annotate.run(check_job(spec, "test"), Console(file=io.StringIO()))
    found = run_json(tmp_path / "out")
    assert found["counts"]["units"] > 1
    assert found["ray"] == f"{found['counts']['units']} units are more than 1"
