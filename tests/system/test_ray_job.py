"""The RayJob's own entrypoint, by Ray's Jobs API, on a cluster of several nodes on this machine."""

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.dataset as ds
import pytest
import s3fs
import yaml

from tests.support.kubernetes import ray_job

pytestmark = pytest.mark.timeout(600)

MOUNTED = "/etc/reelscribe/job.yaml"


@pytest.fixture(scope="module")
def jobs_api(s3_for_jobs) -> Iterator[str]:
    """A head without CPUs, as the RayJob has it, and two workers; the Jobs API's address."""
    from ray.cluster_utils import Cluster

    head = {
        "num_cpus": 0,
        "num_gpus": 0,
        "include_dashboard": True,
        # Else a fixed one, which the agent of another test's Ray may hold.
        "dashboard_agent_listen_port": 0,
    }
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=2, num_gpus=0)
        # The dashboard takes the next free port if its own is held.
        yield f"http://{cluster.head_node.webui_url}"
    finally:
        cluster.shutdown()


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


def submit(jobs_api: str, job_file: Path) -> tuple[str, str]:
    """Run the entrypoint of the RayJob to its end; returns its status, and what it printed."""
    from ray.job_submission import JobSubmissionClient

    entrypoint = ray_job("no-gpu")["entrypoint"]
    assert entrypoint.endswith(f" annotate {MOUNTED}")
    client, job_id = JobSubmissionClient(jobs_api), None
    give_up = time.monotonic() + 300
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
    jobs_api: str, s3_for_jobs, archive: Path, checkpoint: Path, tmp_path: Path
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

    status, printed = submit(jobs_api, job_file)
    assert status == "SUCCEEDED", printed
    rows = ds.dataset(f"{s3_for_jobs.bucket}/archive/annotations", filesystem=fs).to_table()
    uris = {uri.partition("/clips/")[2] for uri in rows["uri"].to_pylist()}
    assert uris == set(names)
    events = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    assert events

    status, printed = submit(jobs_api, job_file)  # the night after: nothing is new
    assert status == "SUCCEEDED", printed
    again = ds.dataset(f"{s3_for_jobs.bucket}/archive/annotations", filesystem=fs)
    assert again.count_rows() == rows.num_rows

    job_file.write_text(yaml.safe_dump(spec | {"output": s3_for_jobs.uri("other"), "tasks": ["x"]}))
    status, printed = submit(jobs_api, job_file)
    assert status == "FAILED"
    assert "tasks" in printed
