"""The RayJob's entrypoint through Ray's Jobs API, on a cluster of several nodes on one machine.

Each node is a `ray start --block`, as KubeRay starts them: a head without CPUs, which holds the
driver, and three workers of one CPU, so that two decoders and an engine are on a node each.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow.dataset as ds
import pytest
import yaml
from conftest import SMALL

ROOT = Path(__file__).parent.parent
DEADLINE_SECONDS = 480

SUBMIT = """
import json, sys, time
from ray.job_submission import JobStatus, JobSubmissionClient

address, entrypoint, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
client, until = None, time.monotonic() + seconds
while client is None:
    try:
        client = JobSubmissionClient(address)
    except (ConnectionError, RuntimeError):
        if time.monotonic() > until:
            raise
        time.sleep(1)
job = client.submit_job(entrypoint=entrypoint)
while not client.get_job_status(job).is_terminal() and time.monotonic() < until:
    time.sleep(1)
info = client.get_job_info(job)
print(json.dumps({
    "status": str(info.status), "message": info.message, "exit_code": info.driver_exit_code,
    "node": info.driver_node_id, "log": client.get_job_logs(job),
}))
"""


def manifest() -> dict:
    return yaml.safe_load((ROOT / "deploy" / "kubernetes" / "base" / "rayjob.yaml").read_text())


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


@pytest.fixture
def cluster(tmp_path: Path):
    """A head and three workers: the address of its Jobs API, and the environment that knows it."""
    binaries = tmp_path / "bin"
    binaries.mkdir()
    command = binaries / "reelscribe"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m jobs.cli "$@"\n')
    command.chmod(0o755)
    short = Path(tempfile.mkdtemp(prefix="rj", dir="/tmp"))  # sockets' names may not be long
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {
        "PATH": f"{binaries}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "RAY_TMPDIR": str(short),
        "RAY_AUTH_TOKEN": "0123456789abcdef" * 4,
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    gcs, dashboard = free_port(), free_port()
    head = [
        "--head", f"--port={gcs}", "--node-ip-address=127.0.0.1", "--include-dashboard=true",
        "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
        f"--ray-client-server-port={free_port()}",
    ]  # fmt: skip
    params = manifest()["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]
    head += [f"--{name}={value}" for name, value in params.items()]
    worker = [f"--address=127.0.0.1:{gcs}", "--node-ip-address=127.0.0.1", "--num-cpus=1"]
    nodes: list[subprocess.Popen] = []

    def start(name: str, options: list[str]) -> None:
        own = [
            f"--dashboard-agent-listen-port={free_port()}", f"--metrics-export-port={free_port()}",
            "--min-worker-port=0", "--max-worker-port=0", "--object-store-memory=200000000",
            "--disable-usage-stats", "--block",
        ]  # fmt: skip
        with (tmp_path / f"{name}.log").open("wb") as log:
            nodes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "ray.scripts.scripts", "start", *options, *own],
                    env=environment,
                    cwd=tmp_path,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )

    try:
        start("head", head)
        _listens(gcs, nodes[0], tmp_path / "head.log")
        for k in range(3):
            start(f"worker-{k}", worker)
        yield f"http://127.0.0.1:{dashboard}", environment
    finally:
        for node in reversed(nodes):
            node.terminate()
        for node in nodes:
            try:
                node.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(node.pid, signal.SIGKILL)
                node.wait(30)
        shutil.rmtree(short, ignore_errors=True)


def _listens(port: int, process: subprocess.Popen, log: Path) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until and process.poll() is None:
        with socket.socket() as one:
            if one.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.3)
    raise RuntimeError(f"the head did not start:\n{log.read_text()}")


@pytest.mark.long
@pytest.mark.timeout(DEADLINE_SECONDS + 240)
def test_the_rayjobs_entrypoint_by_the_jobs_api(cluster, archive, checkpoint, tmp_path: Path):
    pytest.importorskip("aiohttp_cors", reason="the Jobs API needs reelscribe[cluster]")
    address, environment = cluster
    spec = manifest()["spec"]
    head = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    (mount,) = [m for m in head["containers"][0]["volumeMounts"] if m["name"] == "job"]
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    media = tmp_path / "media"
    media.mkdir()
    for path in [*sorted(archive.glob("images/*.png")), *sorted(archive.glob("clips/*.mp4"))[:4]]:
        shutil.copy(path, media)
    job = SMALL | {
        "name": "ray-job",
        "input": {"scan": str(media)},
        "output": str(tmp_path / "out"),
        "model": {"source": str(checkpoint)},
        "resources": {"replicas": 1, "decoders": 2, "wait_seconds": 120},
    }
    (mounted / "job.yaml").write_text(yaml.safe_dump(job))
    # The manifest's own, but that the folder of the config map is another here.
    entrypoint = spec["entrypoint"].replace(mount["mountPath"], str(mounted))
    assert entrypoint != spec["entrypoint"]
    done = subprocess.run(
        [sys.executable, "-c", SUBMIT, address, entrypoint, str(DEADLINE_SECONDS)],
        env=environment,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["status"] == "SUCCEEDED", found
    assert found["exit_code"] == 0
    logged = [json.loads(line) for line in found["log"].splitlines() if line.startswith("{")]
    assert "annotated" in {line.get("event") for line in logged} or logged
    rows = ds.dataset(tmp_path / "out" / "annotations", partitioning="hive").to_table()
    rows = rows.select(["uri", "unit_id", "status", "caption"]).to_pylist()
    assert len({row["unit_id"] for row in rows}) == len(rows)
    assert {Path(row["uri"]).name for row in rows} == {path.name for path in media.iterdir()}
    assert sum(row["caption"] is not None for row in rows) > len(rows) / 2
