"""The RayJob's own entrypoint, by Ray's Jobs API, on a cluster of several nodes on this machine."""

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pyarrow.dataset as ds
import pytest
import s3fs
import yaml

from pipeline.stages.pools import WRITER
from tests.support.faulty_s3 import FaultyS3
from tests.support.kubernetes import ray_job
from tests.support.paths import ROOT
from tests.support.ray_cluster import TOKEN, RayCluster, running_cluster

pytestmark = pytest.mark.timeout(1800)

MOUNTED = "/etc/reelscribe/job.yaml"


@pytest.fixture(scope="module")
def cluster(s3_for_jobs) -> Iterator[RayCluster]:
    """A head without CPUs, as the RayJob has it, and two workers whose keys only read."""
    with FaultyS3(s3_for_jobs.endpoint_url) as keys_that_read:
        keys_that_read.read_only = True
        head = {"num_cpus": 0, "num_gpus": 0, "resources": {WRITER: 1}}
        env = {"AWS_ENDPOINT_URL": keys_that_read.url}
        worker = {"num_cpus": 2, "num_gpus": 0, "env_vars": env}
        with running_cluster(head, worker, worker) as found:
            yield found
        assert keys_that_read.denied == []  # nobody there even tried to write


@pytest.fixture(scope="module")
def s3_for_jobs(s3) -> Iterator[object]:
    """What the pods have of the secret, and `reelscribe` on their path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test-key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test-secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_ENDPOINT_URL", s3.endpoint_url)
        yield s3.new_bucket()


def authorization(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def submit(cluster: RayCluster, job_file: Path) -> tuple[str, str]:
    """Run the entrypoint of the RayJob to its end; returns its status, and what it printed."""
    from ray.job_submission import JobSubmissionClient

    entrypoint = ray_job("no-gpu")["entrypoint"]
    assert entrypoint.endswith(f" annotate {MOUNTED}")
    client, job_id = JobSubmissionClient(cluster.dashboard, headers=authorization(TOKEN)), None
    give_up = time.monotonic() + 900
    while job_id is None:  # a head's agent comes up some seconds after it, as in a pod
        try:
            job_id = client.submit_job(entrypoint=entrypoint.replace(MOUNTED, str(job_file)))
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > give_up:
                raise
            time.sleep(1)
    while not (status := client.get_job_status(job_id)).is_terminal():
        assert time.monotonic() < give_up, client.get_job_logs(job_id)
        time.sleep(0.5)
    return status.value, client.get_job_logs(job_id)


def test_the_entrypoint_runs_on_the_workers_and_its_end_tells_how_it_went(
    cluster: RayCluster, s3_for_jobs, archive: Path, checkpoint: Path, tmp_path: Path
):
    spec = {
        "name": "nightly",
        "input": {"scan": s3_for_jobs.uri("clips/"), "only_new": True},
        "output": s3_for_jobs.uri("archive"),
        "model": {"source": str(checkpoint), "engine": "simulated"},
        "sampling": {"max_frames": 8},
        "budget": {"image_tokens": [4, 64], "frame_tokens": [4, 30], "unit_tokens": 256},
        "resources": {"replicas": 1, "decoders": 1, "wait_seconds": 60},
    }
    spec["model"]["simulated"] = {"speed": 1000.0, "output_tokens": 8}
    fs = s3fs.S3FileSystem(endpoint_url=os.environ["AWS_ENDPOINT_URL"])
    names = sorted(path.relative_to(archive).as_posix() for path in archive.glob("*/*.*"))[::6]
    for name in names:
        fs.put(str(archive / name), f"{s3_for_jobs.bucket}/clips/{name}")
    job_file = tmp_path / "job.yaml"
    job_file.write_text(yaml.safe_dump(spec))

    status, printed = submit(cluster, job_file)
    assert status == "SUCCEEDED", printed
    rows = ds.dataset(f"{s3_for_jobs.bucket}/archive/annotations", filesystem=fs).to_table()
    uris = {uri.partition("/clips/")[2] for uri in rows["uri"].to_pylist()}
    assert uris == set(names)
    events = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    assert events

    status, printed = submit(cluster, job_file)  # the night after: nothing is new
    assert status == "SUCCEEDED", printed
    again = ds.dataset(f"{s3_for_jobs.bucket}/archive/annotations", filesystem=fs)
    assert again.count_rows() == rows.num_rows

    job_file.write_text(yaml.safe_dump(spec | {"output": s3_for_jobs.uri("other"), "tasks": ["x"]}))
    status, printed = submit(cluster, job_file)
    assert status == "FAILED"
    assert "tasks" in printed


def test_kuberays_operator_is_let_in_by_its_own_header(cluster: RayCluster):
    headers = {"X-Ray-Authorization": f"Bearer {TOKEN}"}
    request = urllib.request.Request(f"{cluster.dashboard}/api/jobs/", headers=headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert answer.status == 200


@pytest.mark.parametrize(("headers", "status"), [({}, 401), (authorization("another"), 403)])
def test_nobody_submits_a_job_without_the_token(cluster: RayCluster, headers: dict, status: int):
    for path in ("/api/jobs/", "/nodes?view=summary", "/api/cluster_status"):
        request = urllib.request.Request(f"{cluster.dashboard}{path}", headers=headers)
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request, timeout=60)
        assert caught.value.code == status
        caught.value.close()


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"RAY_AUTH_MODE": "disabled"},
        {"RAY_AUTH_MODE": "token"},
        {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "another"},
        {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "/nowhere/token"},
    ],
)
def test_a_driver_without_the_token_is_refused_and_told_so(
    cluster: RayCluster, env: dict[str, str], tmp_path: Path
):
    code = "from jobs.cluster.start import start_ray; start_ray()"
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=kept | {"RAY_ADDRESS": cluster.head, "HOME": str(tmp_path)} | env,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    (message,) = [line for line in done.stderr.splitlines() if "ResourceError" in line]
    assert "token" in message and "RAY_AUTH_TOKEN" in message and "another" not in message
    assert "does not answer" not in message
