"""A user's files that are named like our packages take their place nowhere."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.cluster import start
from schemas.errors import ResourceError
from tests.support.paths import ROOT

NAMES = ("pipeline", "jobs", "schemas")
OWN = [str(ROOT / name / "__init__.py") for name in NAMES]
ASK_EVERYWHERE = f"""
import json
import sys

# Python puts the script's folder first, and finds the package jobs elsewhere in an environment.
sys.path.append(sys.path.pop(0))
import jobs
sys.path.insert(0, sys.path.pop())
import ray
from jobs.cluster.start import start_ray
from pipeline.workers.child_limits import ChildLimits
from pipeline.workers.child_process import Isolated

where = "[__import__(name).__file__ for name in {NAMES}]"
start_ray(num_cpus=1)
limits = ChildLimits(timeout_seconds=300, max_resident_bytes=2**30)
found = dict(
    driver=eval(where),
    worker=ray.get(ray.remote(lambda: eval(where)).remote()),
    child=Isolated("pipeline.media.decode").call(eval, where, limits=limits),
)
cwd = ray.get(ray.remote(lambda: __import__("os").getcwd()).remote())
assert cwd == __import__("os").getcwd(), cwd  # where relative paths of settings start
print(json.dumps(found))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's folder with a file or a package of each name."""
    for name in ("pipeline", "jobs"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the file of the user')\n")
    (tmp_path / "schemas").mkdir()
    (tmp_path / "schemas" / "__init__.py").write_text("raise SystemExit('the user has it')\n")
    return tmp_path


def run(command: list[str], folder: Path, path: str | Path = ROOT) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(path), "RAY_ADDRESS": "local"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_driver_workers_and_children_have_ours(folder: Path):
    """A user's script lies beside the files, so Python and Ray look there first."""
    (folder / "mine.py").write_text(ASK_EVERYWHERE)
    done = run([sys.executable, "mine.py"], folder)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"driver": OWN, "worker": OWN, "child": OWN}


def test_a_users_module_that_came_first_is_one_message(folder: Path):
    (folder / "schemas" / "__init__.py").write_text("MINE = 1\n")
    code = "import sys; sys.path.insert(0, '.'); import schemas; sys.path.pop(0); import jobs"
    done = run([sys.executable, "-P", "-c", code], folder)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"ImportError: {folder}/schemas/__init__.py has the name of Reelscribe's package 'schemas' "
        "and was imported before it: rename that file"
    )


def test_the_command_has_ours_with_any_path(folder: Path):
    """Here the user's folder comes before ours, as with ``PYTHONPATH=. reelscribe``."""
    code = "import _reelscribe, sys; sys.argv = ['reelscribe', '--help']; _reelscribe.main()"
    done = run([sys.executable, "-c", code], folder, f"{folder}{os.pathsep}{ROOT}")
    assert (done.returncode, done.stderr) == (0, "")
    assert "annotate" in done.stdout


def test_a_path_that_workers_would_search_first_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("RAY_ADDRESS", "local")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{folder}")
    start._check_python_path()
    monkeypatch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{ROOT}")
    with pytest.raises(ResourceError, match=r"pipeline\.py is on PYTHONPATH and has the name"):
        start.start_ray()
