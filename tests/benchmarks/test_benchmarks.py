"""Each benchmark runs in its small form: seconds of work, in this process and on its Ray."""

import importlib
from importlib.util import find_spec

import pytest

from benchmarks.bench_peers import Case
from schemas.job.job import check_job
from tests.support.paths import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SCRIPTS = sorted(
    path.stem
    for pattern in ("bench_*.py", "soak.py")
    for path in (ROOT / "benchmarks").glob(pattern)
)
PACKAGES = {"bench_vllm": "vllm", "bench_fetch_video": "qwen_vl_utils"}
"""The packages that a benchmark compares with, where the tests may lack them."""
NEEDS_RAY = {"bench_balance", "bench_film", "bench_flow", "bench_growth", "bench_peers", "soak"}


@pytest.mark.parametrize("name", sorted(set(SCRIPTS) - NEEDS_RAY))
def test_the_small_form_runs(name, monkeypatch, tmp_path, capsys):
    run_small_form(name, monkeypatch, tmp_path, capsys)


@pytest.mark.parametrize("name", sorted(NEEDS_RAY))
def test_the_small_form_runs_on_ray(name, ray_session, monkeypatch, tmp_path, capsys):
    run_small_form(name, monkeypatch, tmp_path, capsys)


def run_small_form(name, monkeypatch, tmp_path, capsys) -> None:
    if (package := PACKAGES.get(name)) and find_spec(package) is None:
        pytest.skip(f"{package} is not installed, which {name} compares with")
    monkeypatch.setattr("benchmarks.common.ROOT", tmp_path)
    importlib.import_module(f"benchmarks.{name}").main(["--small"])
    assert capsys.readouterr().out
    if name != "bench_only_new":  # it prints its figures, and writes none
        assert list((tmp_path / "build" / "bench" / "small").glob("*.json"))


@pytest.mark.parametrize("name", ["reelscribe", "reelscribe-vllm"])
def test_the_jobs_of_the_peers_are_valid(name, tmp_path):
    """The small form runs without vLLM, and does not meet the job that is for it."""
    case = Case(tmp_path, "images", 3, (1, 1), small=True)
    where = {"input": {"manifest": "unused.jsonl"}, "output": "unused"}
    job = check_job(case.job_of(name) | where, "bench")
    assert (job.model.engine == "vllm") == (name == "reelscribe-vllm")
