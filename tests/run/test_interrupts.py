"""Ctrl-C in a real process: the first stops the command, the second leaves at once."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest
from PIL import Image

from tests.support.paths import ROOT

WAITS = """
import threading
import jobs.results.sql
from jobs.cli.main import main

def wait(*args, **kwargs):
    try:
        print("working", flush=True)
        threading.Event().wait()
    finally:
        {cleanup}

jobs.results.sql.run = wait
main(["sql", "out", "SELECT 1"], prog_name="reelscribe")
"""
"""A command that works until it is interrupted, and then does what ``cleanup`` is."""

KEEPS = 'print("cleaning up", flush=True); threading.Event().wait()'
FAILS = "raise RuntimeError('a worker is gone')"
LEAVES_A_THREAD = (
    "threading.Thread(target=lambda: [print('a thread', flush=True), threading.Event().wait()])"
    ".start()"
)


def start(arguments: list[str], folder: Path, **variables: str) -> subprocess.Popen[str]:
    """Start Python as a terminal does: in a process group of its own, with SIGINT not ignored."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def interrupt_at(process: subprocess.Popen[str], *texts: str) -> tuple[str, list[psutil.Process]]:
    """Send Ctrl-C to the whole group when a line has each text.

    Returns all that was printed, and the processes that there were at the first Ctrl-C.
    """
    lines, waiting, children = [], list(texts), []
    with process:
        for line in process.stdout or ():
            lines.append(line)
            if waiting and waiting[0] in line:
                waiting.pop(0)
                children = children or psutil.Process(process.pid).children(recursive=True)
                os.killpg(process.pid, signal.SIGINT)
    said = "".join(lines)
    assert not waiting, said
    return said, children


def test_the_first_stops_the_command_and_says_so_at_once(tmp_path: Path):
    process = start(["-c", WAITS.format(cleanup="print('cleaned up', flush=True)")], tmp_path)
    said, _ = interrupt_at(process, "working")
    assert process.returncode == 130
    assert [line for line in said.splitlines() if line] == [
        "working",
        "stopping; Ctrl-C again leaves at once",
        "cleaned up",
        "interrupted; run the same command again to continue",
    ]


@pytest.mark.parametrize(
    ("cleanup", "second"), [(KEEPS, "cleaning up"), (LEAVES_A_THREAD, "interrupted; ")]
)
def test_the_second_leaves_at_once(tmp_path: Path, cleanup: str, second: str):
    """While the command stops, and while the interpreter waits for a thread that does not end."""
    process = start(["-c", WAITS.format(cleanup=cleanup)], tmp_path)
    said, _ = interrupt_at(process, "working", second)
    assert process.returncode == 130
    assert said.endswith("left at once; run the same command again to continue\n")
    assert "Traceback" not in said


def test_an_error_of_what_was_stopped_is_no_traceback(tmp_path: Path):
    process = start(["-c", WAITS.format(cleanup=FAILS)], tmp_path)
    said, _ = interrupt_at(process, "working")
    assert process.returncode == 130
    assert "Traceback" not in said and "a worker is gone" not in said


def test_a_background_job_that_ignores_it_goes_on(tmp_path: Path):
    """Shells start background jobs with SIGINT ignored; then it is no business of the command."""
    code = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n" + WAITS.format(
        cleanup="pass"
    ).replace("threading.Event().wait()", 'threading.Event().wait(0); print("done", flush=True)')
    process = start(["-c", code], tmp_path)
    assert "done" in interrupt_at(process, "working")[0] and process.returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("texts", [("annotating",), ("annotating", "stopping Ray")])
def test_a_run_on_ray(tmp_path: Path, texts: tuple[str, ...]):
    with tempfile.TemporaryDirectory(prefix="ray") as folder:  # no other test's Ray is joined
        said = _interrupt_a_run(tmp_path, "always", texts, RAY_TMPDIR=folder)
    assert "stopping Ray; committed rows are kept" in said
    assert ("left at once" in said) == (len(texts) == 2)


@pytest.mark.slow
@pytest.mark.parametrize("texts", [("annotating",), ("annotating", "stopping")])
def test_a_run_without_ray(tmp_path: Path, texts: tuple[str, ...]):
    """The engine's process would answer for hours."""
    said = _interrupt_a_run(tmp_path, "auto", texts, RAY_ADDRESS="local")
    assert "stopping Ray" not in said and "started again" not in said


def _interrupt_a_run(folder: Path, ray: str, texts: tuple[str, ...], **variables: str) -> str:
    (folder / "media").mkdir()
    for k in range(4):
        Image.new("RGB", (64, 64), "red").save(folder / "media" / f"{k}.png")
    simulated = "model.simulated={speed: 0.001, output_tokens: 1000}"  # hours
    command = [*("-m", "jobs.cli", "annotate", "-i", "media", "-o", "out")]
    command += ["-m", str(ROOT / "jobs" / "demo_model"), "--set", "model.engine=simulated"]
    command += ["--set", simulated, "--set", f"resources.ray={ray}"]
    process = start(command, folder, **variables)
    said, children = interrupt_at(process, *texts)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    _, alive = psutil.wait_procs(children, timeout=120)
    assert children and not alive
    return said
