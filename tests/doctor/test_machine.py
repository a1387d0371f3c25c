"""What a machine has: compared with the libraries themselves; and machines that hang, die, lack."""

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import av
import pytest
import torch

from jobs.doctor.machine import Facts, Gpu, collect, facts_of, program, run_program
from pipeline.workers.code_version import code_digest
from tests.support.waiting import wait_until

MIB = 1 << 20


@pytest.fixture(scope="module")
def here() -> Facts:
    return collect()


def test_this_machine(here: Facts):
    assert (here.python, here.torch) == (platform.python_version(), torch.__version__)
    assert (here.cuda, here.torch_gpus) == (torch.version.cuda, torch.cuda.device_count())
    assert (here.code, here.pyav) == (code_digest(), av.__version__)
    assert here.shm_bytes == shutil.disk_usage("/dev/shm").total
    assert here.memory_bytes == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert (here.wrong_packages, here.failures, here.end) == ((), {}, "")
    assert here.num_packages > 20


def test_some_steps_only():
    found = collect(["python", "code"])
    assert (found.python, found.code, found.torch) == (
        platform.python_version(),
        code_digest(),
        None,
    )


def with_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> Facts:
    """The driver's facts on a machine whose nvidia-smi is ``script``."""
    smi = folder / "nvidia-smi"
    smi.write_text(f"#!/bin/sh\n{script}\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return collect(["driver"])


def test_gpus_as_the_driver_names_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """In the form that nvidia-smi's own --help-query-gpu describes: csv, without units, in MiB."""
    line = "echo '550.54.15, NVIDIA H100 80GB HBM3, 81559, 1021'"
    shared = "echo '580.1, NVIDIA GB10, [N/A], [N/A]'"
    found = with_smi(tmp_path, monkeypatch, f"{line}\n{line}\n{shared}")
    h100 = Gpu(name="NVIDIA H100 80GB HBM3", memory_bytes=81559 * MIB, used_bytes=1021 * MIB)
    assert found.gpus == (h100, h100, Gpu(name="NVIDIA GB10", memory_bytes=0, used_bytes=0))
    assert found.driver == "550.54.15"


def test_gpus_without_the_drivers_program():
    """As in a container that has only CUDA's libraries, or with AMD's GPUs."""
    gpu = {"name": "AMD Instinct MI300X", "memory_bytes": 192 << 30, "used_bytes": 0}
    step = {"torch": "2.13.0+rocm", "torch_gpus": 1, "gpus_of_torch": [gpu]}
    assert facts_of(json.dumps(step), "").gpus == (Gpu(**gpu),)


def test_a_driver_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    said = "NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver."
    found = with_smi(tmp_path, monkeypatch, f"echo '{said}'; exit 9")
    assert found.gpus == ()
    assert found.failures["driver"] == f"RuntimeError: nvidia-smi ended with 9: {said}"


def test_a_machine_without_reelscribe_and_without_torch(monkeypatch: pytest.MonkeyPatch):
    """The interpreter below the virtual environment: it has Python's library only."""
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", os.path.realpath(sys.executable))
        patch.setattr(sys, "path", [])
        lines = run_program()(program(), "{}", 60.0)
    found = facts_of(*lines)
    assert found.python == platform.python_version()
    assert "_reelscribe" in found.failures["code"]
    assert "torch" in found.failures["torch"]
    assert found.end == ""


BEGIN = 'import os, time\nos.write(1, b\'{"python": "3.12.4"}\\n{"at": "torch"}\\n\')\n'
"""A program that has begun with torch."""


@pytest.mark.parametrize(
    ("last", "end"),
    [
        ("os.kill(os.getpid(), 4)", "the process died by signal 4, at the step 'torch'"),
        ("os._exit(7)", "the process ended with 7, at the step 'torch'"),
        ('os.write(1, b\'{"python": "9\'); os._exit(7)', "the process ended with 7, at the step"),
    ],
)
def test_a_step_that_dies_is_named_and_the_rest_is_kept(last: str, end: str):
    """As torch does on a processor that it was not built for."""
    found = facts_of(*run_program()(BEGIN + last, "{}", 300.0))
    assert found.python == "3.12.4"
    assert found.end.startswith(end)


def test_a_step_that_hangs_is_named_and_the_rest_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As torch does with a driver that hangs. The deadline begins when the step has begun."""
    begun = tmp_path / "begun"

    class Slow(subprocess.Popen):
        def communicate(self, *args, **kwargs):
            wait_until(begun.exists)
            return super().communicate(*args, **kwargs)

    monkeypatch.setattr("jobs.doctor.machine.subprocess.Popen", Slow)
    hang = f"os.mkdir({str(begun)!r}); time.sleep(1000)"
    found = facts_of(*run_program()(BEGIN + hang, "{}", 0.2))
    assert found.python == "3.12.4"
    assert found.end.startswith("no answer within 0.2 s, at the step 'torch'")


def test_facts_of_another_version_are_left_out():
    assert facts_of('{"python": "3.12.4", "colour": "blue"}\n{"at": ""}\n', "") == Facts(
        python="3.12.4"
    )


def test_secrets_are_not_on_the_command_line():
    """Every user of a machine sees command lines, and the environment of his own processes."""
    text = (
        "import sys; given = sys.stdin.read()\n"
        "for name in ('cmdline', 'environ'): print(open(f'/proc/self/{name}').read().count(given))"
    )
    lines, end = run_program()(text, "PLANTED-5EC12E7", 30.0)
    assert (lines, end) == ("0\n0\n", "")


@pytest.mark.parametrize("is_offline", ["0", "1"])
def test_a_node_looks_into_its_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_offline: str
):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", is_offline)
    snapshot = tmp_path / "models--org--there" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("0" * 40)
    for source, is_there in (("org/there", True), ("org/gone", False)):
        asked = json.dumps({"steps": ["source"], "source": source, "revision": None})
        problem = facts_of(*run_program()(program(), asked, 60.0)).source_problem
        assert bool(problem) == (is_offline == "1" and not is_there)
        assert not problem or "HF_HUB_OFFLINE is set" in problem


def test_a_node_tries_the_jobs_checkpoint_and_media(tmp_path: Path):
    asked = {
        "steps": ["source", "read"],
        "source": str(tmp_path / "gone"),
        "uri": str(tmp_path / "gone.mp4"),
    }
    found = facts_of(*run_program()(program(), json.dumps(asked), 60.0))
    assert found.source_problem == f"there is no checkpoint {tmp_path}/gone here"
    assert found.read_problem == f"{tmp_path}/gone.mp4 does not exist"
