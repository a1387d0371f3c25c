"""An engine that dies or hangs is an error of the GPU benchmark, which measures the others."""

import importlib
import json
import subprocess
from types import SimpleNamespace

import psutil
import torch

from benchmarks import bench_gpu
from tests.support.waiting import wait_until

CHILD = """
import os, signal, subprocess, sys, time

def measure(engine, size, small):
    if engine == "transformers":  # as the system does when memory is used up
        os.kill(os.getpid(), signal.SIGKILL)
    own = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    with open(__file__ + ".new", "w") as file:
        file.write(str(own.pid))
    os.rename(file.name, __file__ + ".pid")
    time.sleep(300)

if __name__ == "__main__":
    measure(*sys.argv[3:])
"""


def test_an_engine_that_is_killed_or_hangs_is_an_error(tmp_path, monkeypatch, capsys):
    (tmp_path / "dying_child.py").write_text(CHILD)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(bench_gpu, "measure", importlib.import_module("dying_child").measure)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("tests.support.machine.machine", lambda device: {"device": device})
    monkeypatch.setattr("benchmarks.common.ROOT", tmp_path)
    # At its start, at and in the calls of two that die and of one that hangs, and after these.
    clock = iter([0.0, 0.0, 0.0, 0.0, 0.0, 59.8, 59.8, 61.0])
    monkeypatch.setattr(bench_gpu, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    pid_file = tmp_path / "dying_child.py.pid"

    class Begun(subprocess.Popen):
        """Its deadline begins when it hangs, or has died."""

        def communicate(self, *args, **kwargs):
            wait_until(lambda: pid_file.exists() or self.poll() is not None)
            return super().communicate(*args, **kwargs)

    monkeypatch.setattr("benchmarks.common.subprocess.Popen", Begun)
    options = ["--engines", "transformers,bare", "--sizes", "2B,4B", "--minutes", "1"]
    bench_gpu.main(options)
    found = json.loads((tmp_path / "build" / "bench" / "gpu.json").read_text())
    assert "SIGKILL" in found["transformers, 2B"]["error"]
    assert "SIGKILL" in found["transformers, 4B"]["error"]
    assert "timed out" in found["bare, 2B"]["error"]
    assert "nothing is started" in found["bare, 4B"]["missing"]
    assert "not measured" in capsys.readouterr().out
    pid = int(pid_file.read_text())
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
