"""CPU seconds of all processes that a benchmark starts, also of those that nobody waits for."""

import subprocess
import sys

from benchmarks.common import counting

BURN = "import time\nwhile time.process_time() < 2: pass"
# As Ray's raylet: ended children vanish, and no parent is charged with their time.
START = f"""
import os, signal, subprocess, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for _ in range(2):
    subprocess.Popen([sys.executable, "-c", {BURN!r}], start_new_session=True)
try:
    os.wait()
except ChildProcessError:
    pass
"""


def test_processes_that_nobody_waits_for_count():
    with counting() as spent:
        subprocess.run([sys.executable, "-c", START], check=True)
        subprocess.run([sys.executable, "-c", BURN], check=True)
    assert len(spent.by_process) == 4
    assert 3 * (2 - 0.6) < spent.cpu < 3 * 2 + 2
    assert spent.wall >= 2


def test_processes_from_before_do_not_count():
    older = subprocess.Popen([sys.executable, "-c", BURN])
    with counting() as spent:
        older.wait()
    assert spent.cpu == 0
