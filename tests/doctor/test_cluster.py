"""The nodes of a cluster: each reports for itself, in a small task."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.doctor.cluster import collect_nodes, node_findings
from jobs.doctor.finding import State
from pipeline.workers.code_version import code_digest
from tests.support.paths import ROOT
from tests.support.ray_cluster import TOKEN, running_cluster


def test_the_node_of_a_session(ray_session: None, tmp_path: Path):
    asked = {
        "steps": ["python", "code", "source", "read"],  # to import torch costs seconds
        "uri": str(tmp_path / "gone.mp4"),
        "source": str(tmp_path),
    }
    ((address, facts),) = collect_nodes(asked).items()
    assert (facts.python, facts.code) == (platform.python_version(), code_digest())
    assert (facts.torch, facts.end) == (None, "")
    assert facts.read_problem == f"{tmp_path}/gone.mp4 does not exist"
    (line,) = node_findings({address: facts}, "other", None)
    assert line.state == State.TO_DO
    assert line.text.startswith(f"other code ({code_digest()}) than the driver (other): install")
    assert f"there is no checkpoint {tmp_path} here" in line.text


@pytest.mark.slow
def test_a_cluster_of_two_nodes(tmp_path: Path):
    """The command on a cluster that is of others: its nodes, its CPUs, nothing started on it."""
    (tmp_path / "a.mp4").write_bytes(b"x")
    job = {
        "input": {"scan": str(tmp_path)},
        "output": str(tmp_path / "out"),
        "model": {"source": str(ROOT / "jobs" / "demo_model")},
    }
    (tmp_path / "job.yaml").write_text(json.dumps(job))
    with running_cluster({"num_cpus": 2}, {"num_cpus": 3}) as cluster:
        env = {"RAY_ADDRESS": cluster.head, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
        done = subprocess.run(
            [sys.executable, "-m", "jobs.cli", "doctor", str(tmp_path / "job.yaml"), "--json"],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=os.environ | env,
            timeout=300,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    content = json.loads(done.stdout)
    found = {f"{each['topic']} {each['name']}": each["text"] for each in content["findings"]}
    assert found["cluster Ray"].endswith("answers; its living nodes: 2")
    assert found["job actors"] == "they fit into 5 CPUs and 0 GPUs"
    assert len(content["machines"]) == 3  # both nodes, and the driver
    assert content["machines"]["this machine"]["torch"] is None
    assert TOKEN not in done.stdout
