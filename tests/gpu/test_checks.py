"""Each check of the GPU, on the CPU in a small size; and on a GPU, where there is one."""

import json

import pytest
import torch
from packaging.requirements import Requirement

from tests.gpu.__main__ import main
from tests.gpu.checks import CASES, measure
from tests.gpu.figures import Place
from tests.support.bare_python import link_packages, run_bare
from tests.support.machine import wrong_packages
from tests.support.paths import ROOT

pytestmark = pytest.mark.slow

GIVEN = ("torch", "av", "pyarrow", "pydantic", "numpy", "pillow")
"""Packages of a machine for machine learning; the others are in requirements.txt."""

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here")


@pytest.mark.parametrize(("name", "dtype"), CASES, ids=str)
@pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, needs_gpu])]
)
def test_figures_are_within_their_limits(name, dtype, device, tmp_path):
    is_small = device == "cpu"
    place = Place(device=torch.device(device), dtype=dtype, is_small=is_small, folder=tmp_path)
    figures = measure(name, place)
    assert figures
    assert [figure for figure in figures if not figure.is_right] == []
    assert [figure for figure in figures if figure.minimum == 0] == []  # a share never fails that


def test_the_command_needs_no_ray(tmp_path):
    """All checks that are run are in the JSON file, in a Python with few packages."""
    listed = (ROOT / "tests" / "gpu" / "requirements.txt").read_text().splitlines()
    folder = tmp_path / "packages"
    folder.mkdir()
    names = [Requirement(line).name for line in listed if not line.startswith("#")]
    link_packages(folder, [*GIVEN, *names])
    assert not (folder / "ray").exists() and not (folder / "pandas").exists()
    out = tmp_path / "checks.json"
    command = ["-m", "tests.gpu", "--device", "cpu", "--small", "--out", str(out)]
    done = run_bare(folder, *command, "--only", "inputs,lora_step")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text())
    assert {row["check"] for row in found["figures"]} == {"inputs", "lora_step"}
    assert all(row["is_right"] for row in found["figures"])
    assert found["machine"]["torch"] == torch.__version__


@pytest.mark.parametrize("names", ["answer", "inputs,step", ""])
def test_an_unknown_check_is_a_mistake(names, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["--device", "cpu", "--small", "--out", str(tmp_path / "x.json"), "--only", names])
    assert "there are inputs, vision, answers" in capsys.readouterr().err
    assert not (tmp_path / "x.json").exists()


def test_a_package_that_is_too_old_is_named(tmp_path):
    path = tmp_path / "requirements.txt"
    path.write_text("# old\ntorch>=999\nnumpy>=1\nnot-installed>=1\n")
    (found,) = wrong_packages(path)
    assert found == f"torch is {torch.__version__}, and must be >=999"
