"""An engine that dies or hangs is an error of the GPU benchmark, which measures the others."""

import importlib
import json
import time

import psutil
import torch

from benchmarks import bench_gpu

CHILD = """
import os, signal, subprocess, sys, time

def measure(engine, size, small):
    if engine == "transformers":  # as the system does when memory is used up
        os.kill(os.getpid(), signal.SIGKILL)
    own = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    with open(__file__ + ".pid", "w") as file:
        file.write(str(own.pid))
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
    started = time.monotonic()
    options = ["--engines", "transformers,bare", "--sizes", "2B,4B", "--minutes", "0.05"]
    bench_gpu.main(options)
    assert time.monotonic() - started < 30
    found = json.loads((tmp_path / "build" / "bench" / "gpu.json").read_text())
    assert "SIGKILL" in found["transformers, 2B"]["error"]
    assert "SIGKILL" in found["transformers, 4B"]["error"]
    assert "timed out" in found["bare, 2B"]["error"]
    assert "nothing is started" in found["bare, 4B"]["missing"]
    assert "not measured" in capsys.readouterr().out
    pid = int((tmp_path / "dying_child.py.pid").read_text())
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
