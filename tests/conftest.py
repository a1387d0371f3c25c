"""Fixtures of several test modules."""

import io
import os
import re
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from dataclasses import dataclass
from pathlib import Path

import pytest
from fsspec.implementations.http import HTTPFileSystem
from media_server import Handler, Server

SMALL = {
    "tasks": ["caption", "events", "ocr", "text_spans", "objects"],
    "budget": {"image_tokens": [4, 64], "frame_tokens": [4, 16], "unit_tokens": 256},
    "generation": {"max_new_tokens": 6},
    "sampling": {"segmentation": {"kind": "window", "seconds": 6}},
}


@dataclass(frozen=True, kw_only=True)
class S3Server:
    """A moto server: S3 as a process of its own, with one empty bucket to start with."""

    endpoint_url: str
    bucket: str

    def new_bucket(self) -> "S3Server":
        """Make a fresh, empty bucket."""
        bucket = f"bucket-{uuid.uuid4().hex[:12]}"
        request = urllib.request.Request(f"{self.endpoint_url}/{bucket}", method="PUT")
        urllib.request.urlopen(request, timeout=10).close()
        return S3Server(endpoint_url=self.endpoint_url, bucket=bucket)

    def uri(self, key: str = "") -> str:
        """The s3:// uri of a key in the bucket."""
        return f"s3://{self.bucket}/{key}"


@pytest.fixture(scope="session")
def s3(tmp_path_factory):
    """S3 for the whole session. Set ``storage_options`` to its endpoint_url, or use ``s3_env``."""
    log = tmp_path_factory.mktemp("s3") / "moto.log"
    with log.open("wb") as out:
        server = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"],
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        yield S3Server(endpoint_url=_moto_url(server, log), bucket="").new_bucket()
    finally:
        server.terminate()
        server.wait(10)


def _moto_url(server, log):
    for _ in range(600):
        found = re.search(r"Running on (http://127\.0\.0\.1:\d+)", log.read_text())
        if found:
            return found[1]
        if server.poll() is not None:
            break
        time.sleep(0.1)
    raise RuntimeError(f"moto did not start:\n{log.read_text()}")


@pytest.fixture
def s3_env(s3, monkeypatch):
    """A fresh bucket, and the environment variables that lead every S3 client to it."""
    import s3fs

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test-secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint_url)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    s3fs.S3FileSystem.clear_instance_cache()  # they keep their environment
    yield s3.new_bucket()
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="session")
def media_server():
    """A web server of media, for the whole session; ``http`` is it, without a past."""
    server = Server(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def http(media_server):
    """The web server, which has been asked for nothing yet."""
    HTTPFileSystem.clear_instance_cache()  # with the connections that another test was allowed
    media_server.requests, media_server.bad_ranges, media_server.num_bytes = [], [], 0
    return media_server


@pytest.fixture(scope="session")
def archive(tmp_path_factory):
    """The demo's archive: real images and clips, made once for the session."""
    from jobs.render_archive import render_archive

    folder = tmp_path_factory.mktemp("archive")
    render_archive(folder)
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A tiny Qwen3-VL with random weights, in the layout of the published checkpoints."""
    from jobs.tiny_checkpoint import write_tiny_checkpoint

    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="session")
def ray_session():
    """One Ray session for the whole test run."""
    import ray

    from jobs.cluster import start_ray

    # Some tests hand their own classes to the workers.
    folders = [os.path.dirname(__file__), os.environ.get("PYTHONPATH")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, folders))
    start_ray(num_cpus=3)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def demonstrated(archive, tmp_path_factory, ray_session):
    """A folder in which `reelscribe demo` was run: demo/archive, demo/output, and what it said."""
    from rich.console import Console

    from jobs import demo

    folder = tmp_path_factory.mktemp("demonstrated")
    (folder / "demo").mkdir()
    (folder / "demo" / "archive").symlink_to(archive)
    (folder / "jobs").symlink_to(Path(__file__).parents[1] / "jobs")
    (archive / ".rendered").touch()
    console = Console(file=io.StringIO(), width=160)
    demo.run(folder / "demo", console)
    (folder / "said.txt").write_text(console.file.getvalue())
    return folder


@pytest.fixture(scope="session")
def annotated(archive, checkpoint, tmp_path_factory, ray_session):
    """The archive, annotated once for the session: the job, its output folder, the finished run."""
    from rich.console import Console

    from jobs import annotate
    from schemas.job import check_job

    output = tmp_path_factory.mktemp("annotated")
    spec = {"name": "archive", "input": {"scan": str(archive)}, "output": str(output)}
    job = check_job(SMALL | spec | {"model": {"source": str(checkpoint)}}, "test")
    return job, output, annotate.run(job, Console(file=io.StringIO(), width=120))
