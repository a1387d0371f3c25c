"""Helpers of the benchmarks: the small form, child processes, result files.

With ``--small`` a benchmark runs seconds of work in one process: tests use this to check that
it works. Its figures mean nothing, and do not replace those of the full form.
"""

import argparse
import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
_PR_SET_CHILD_SUBREAPER = 36


def parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser that knows ``--small``, described by the first line of ``doc``."""
    found = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    found.add_argument("--small", action="store_true", help="seconds of work, to test the script")
    return found


def write_results(name: str, results: Any, *, small: bool) -> None:
    """Write results as JSON into build/bench, those of the small form into build/bench/small."""
    folder = ROOT / "build" / "bench" / "small" if small else ROOT / "build" / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(results, indent=2) + "\n")
    print(f"  -> {folder / f'{name}.json'}")


def call(
    function: Callable[..., Any],
    *arguments: str,
    small: bool,
    env: dict[str, str] | None = None,
    timeout: float | None = None,
) -> Any:
    """Call a function of a benchmark in a process of its own; in the small form, in this one.

    The benchmark's file is started with ``--child NAME ARGUMENTS``, see ``is_child``.

    timeout: seconds after which the process is killed.

    Raises:
        subprocess.SubprocessError: the process failed, was killed, or took too long.
    """
    if small:
        return function(*arguments)
    file = sys.modules[function.__module__].__file__
    command = [sys.executable, str(file), "--child", function.__name__, *arguments]
    environment = os.environ | (env or {})
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            output, _ = process.communicate(timeout=timeout)
        finally:  # with all that it has started, which may hold memory of the GPU
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return json.loads(output.splitlines()[-1])


def is_child(functions: dict[str, Any]) -> bool:
    """Run the function for ``call``, if ``call`` started this process; returns whether it did.

    functions: the module's ``globals()``.
    """
    if sys.argv[1:2] != ["--child"]:
        return False
    print(json.dumps(functions[sys.argv[2]](*sys.argv[3:])))
    return True


def start_ray(**options: Any) -> None:
    """Start Ray on this machine, unless this process has a Ray."""
    import ray

    from jobs.cluster import start

    if not ray.is_initialized():
        os.environ["RAY_ADDRESS"] = "local"
        start.start_ray(**options)


@contextmanager
def watching(look: Callable[[], None], interval: float) -> Iterator[None]:
    """Call ``look`` every ``interval`` seconds, in a thread, until the block ends."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(interval):
            look()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@dataclass
class Spent:
    """CPU seconds of processes, by pid and start, and the wall seconds of the block.

    What a process does in the last half second of its life is missing.
    """

    by_process: dict[tuple[int, float], float] = field(default_factory=dict)
    titles: dict[tuple[int, float], str] = field(default_factory=dict)
    wall: float = 0.0

    @property
    def by_title(self) -> dict[str, float]:
        """CPU seconds by the processes' last titles, such as ``ray::MapWorker(...)``."""
        found: dict[str, float] = {}
        for key, seconds in self.by_process.items():
            title = self.titles.get(key, "")
            found[title] = found.get(title, 0.0) + seconds
        return found

    @property
    def cpu(self) -> float:
        """Of all processes together, also of those that have ended."""
        return sum(self.by_process.values())


@contextmanager
def counting() -> Iterator[Spent]:
    """Count the seconds of all processes that this one starts in the block, at any depth."""
    import psutil

    # Processes whose parent ends become children of this one, and not of the system's first.
    prctl = ctypes.CDLL(None).prctl
    prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    this, spent, started = psutil.Process(), Spent(), time.perf_counter()
    older = {process.pid for process in this.children(recursive=True)}

    def look() -> None:
        for process in this.children(recursive=True):
            if process.pid not in older:
                with suppress(psutil.NoSuchProcess):
                    times = process.cpu_times()
                    key = (process.pid, process.create_time())
                    spent.by_process[key] = times.user + times.system
                    if words := process.cmdline():  # none when it has ended
                        spent.titles[key] = " ".join(Path(w).name for w in words[:5])[:60]

    try:
        with watching(look, 0.5):
            yield spent
            spent.wall = time.perf_counter() - started
            look()
    finally:
        prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def annotate(*arguments: str, small: bool, python: Path | str = sys.executable) -> None:
    """Run ``reelscribe annotate`` as a user does; in the small form, in this process.

    python: of the environment to run it in.

    Raises:
        AssertionError: it failed; the message has its output.
    """
    if small:
        from click.testing import CliRunner

        from jobs.cli.main import main

        result = CliRunner().invoke(main, ["annotate", *arguments])
        assert result.exit_code == 0, f"{result.output} {result.exception!r}"
        return
    command = [str(python), "-m", "jobs.cli", "annotate", *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment["PYTHONPATH"] = str(ROOT)  # not another checkout that is installed there
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
