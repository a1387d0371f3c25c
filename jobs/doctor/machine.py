"""Collect the facts of a machine, in a child process that may hang or die."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.doctor import facts

SECONDS = 120.0
"""Deadline of all facts of a machine: a cold disk or a busy machine takes a minute for torch."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A GPU, as its driver names it. used_bytes: by all programs."""

    name: str
    memory_bytes: int
    used_bytes: int


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a machine has; None is what is not known.

    code: hash of the code that runs in actors. versions: of some packages, by name.
    driver: version of the GPUs' driver. torch_gpus: GPUs that torch can use.
    ``..._problem``: "" if there is none.
    failures: by step, why it failed. end: why the process ended before its last step, or "".
    """

    host: str = "?"
    python: str | None = None
    version: str | None = None
    code: str | None = None
    num_packages: int = 0
    wrong_packages: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    memory_bytes: int | None = None
    shm_bytes: int | None = None
    shm_free_bytes: int | None = None
    tmp_folder: str = ""
    tmp_bytes: int | None = None
    tmp_free_bytes: int | None = None
    driver: str | None = None
    gpus: tuple[Gpu, ...] = ()
    torch: str | None = None
    cuda: str | None = None
    torch_gpus: int | None = None
    torch_warning: str = ""
    pyav: str | None = None
    libavcodec: str | None = None
    torchcodec_problem: str | None = None
    vllm: str | None = None
    vllm_problem: str | None = None
    source_problem: str = ""
    read_problem: str = ""
    failures: Mapping[str, str] = field(default_factory=dict)
    end: str = ""


def program() -> str:
    """The text of the child's program, which any Python runs with ``-c``."""
    return Path(facts.__file__).read_text(encoding="utf-8") + "\nreport()\n"


def collect(steps: Sequence[str] | None = None) -> Facts:
    """Return the facts of this machine; of some steps of ``facts`` only, if they are named."""
    return facts_of(*run_program()(program(), json.dumps({"steps": steps}), SECONDS))


def run_program() -> Callable[[str, str, float], tuple[str, str]]:
    """Return the function that runs the program: its lines, and why it ended early.

    It is made inside of a function, so that Ray sends it as it is, also to a machine that has no
    such module.
    """

    def run(text: str, given: str, seconds: float) -> tuple[str, str]:
        folders = os.pathsep.join(os.path.abspath(folder) for folder in sys.path)
        command = [sys.executable, "-P", "-c", text]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"PYTHONPATH": folders},
            start_new_session=True,
        )
        end = ""
        try:
            out, _ = process.communicate(given, timeout=seconds)
        except subprocess.TimeoutExpired:
            end = f"no answer within {seconds:g} s"
            os.killpg(process.pid, signal.SIGKILL)
            out, _ = process.communicate()
        except BaseException:  # such as Ctrl-C, which another session does not get
            os.killpg(process.pid, signal.SIGKILL)
            raise
        if not end and process.returncode < 0:
            end = f"the process died by signal {-process.returncode}"
        elif not end and process.returncode:
            end = f"the process ended with {process.returncode}"
        return out, end

    return run


def facts_of(lines: str, end: str) -> Facts:
    """Read the program's lines; unknown facts, as of another version, are left out."""
    found: dict[str, Any] = {}
    failures: dict[str, str] = {}
    at = ""
    for line in lines.splitlines():
        try:
            part = json.loads(line)
        except ValueError:
            continue  # cut, as the process was
        at = part.pop("at", at)
        failures |= part.pop("failures", {})
        found |= part
    if end and at:
        end = f"{end}, at the step {at!r}"
    # In a container the driver's program may be missing; on AMD's GPUs it is.
    gpus = found.get("gpus") or found.get("gpus_of_torch") or ()
    found["gpus"] = tuple(Gpu(**gpu) for gpu in gpus)
    found["wrong_packages"] = tuple(found.get("wrong_packages", ()))
    known = {each.name for each in dataclasses.fields(Facts)}
    given = {key: value for key, value in found.items() if key in known}
    return Facts(**given | {"failures": failures, "end": end})
