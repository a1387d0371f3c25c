"""Fixtures that several test modules use."""

import io
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec

import pytest
from fsspec.implementations.http import HTTPFileSystem
from hypothesis import HealthCheck, settings

from tests.support.job_files import SMALL, hide_ray
from tests.support.media_server import Handler, Server
from tests.support.paths import ROOT
from tests.support.s3 import S3Server

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported; see start_ray
# With Ray's default of 15, actors get 3 % of a core beside one busy test process, and 120 s are too
# short for one to start.
os.environ.setdefault("RAY_worker_niceness", "5")

# Hypothesis tries the same examples in each run, so that a change fails for what it changes;
# `make fuzz` tries new ones. No deadlines: these tests run beside Ray and models.
for name, derandomize in (("fixed", True), ("search", False)):
    settings.register_profile(
        name,
        derandomize=derandomize,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))

collect_ignore = (
    []
    if find_spec("ray") and find_spec("torch")
    else [
        "cost/test_cost.py",
        "media/test_decode.py",
        "images/test_read_image.py",
        "model/test_checkpoint_kinds.py",
        "model/test_frame_size.py",
        "model/test_memory.py",
        "model/test_positions.py",
        "model/test_prompter.py",
        "model/test_reasoning.py",
        "model/test_tiny_checkpoint.py",
        "plan/test_plan.py",
        "run/test_cluster.py",
        "run/test_items.py",
        "run/test_kept_rows.py",
        "workers/test_engine_guard.py",
    ]
)
"""Files that import Ray or torch are left out where those are not installed (make test-fast)."""

NEEDS_RAY = {"ray_session", "annotated"}
NEEDS_A_MODEL = {"checkpoint", "demonstrated", "annotated"}
SHARED = ("demonstrated", "annotated")
"""Costly fixtures: all tests that use one of them run in one worker, which makes it once."""
LONG_FILES = ("test_finetune", "test_annotate", "test_engine_guard", "test_small_jobs")
"""Test files that take minutes; they start first, so that no worker runs one alone at the end."""


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Iterator[None]:
    """Mark slow tests, and keep tests of one file, or of one costly fixture, in one worker.

    Groups with slow tests come first: short ones at the end fill both workers.
    """

    def group(item: pytest.Item) -> str:
        if own := item.get_closest_marker("xdist_group"):
            return str(own.args[0])
        fixtures = getattr(item, "fixturenames", ())
        return next((name for name in SHARED if name in fixtures), item.path.stem)

    for item in items:
        if (NEEDS_RAY | NEEDS_A_MODEL) & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)
        if not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group(group(item)))
    yield  # tests are selected by their marks, and shuffled
    first = {group(item) for item in items if item.path.stem in LONG_FILES} | {*SHARED}
    slow = {group(item) for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: 0 if group(item) in first else 1 if group(item) in slow else 2)
    if "PYTEST_XDIST_WORKER" in os.environ:
        assert all("@" in item.nodeid for item in items), "pytest-xdist does not see the groups"


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[object]:
    """Run small jobs without Ray in a test that has no ``ray_session``, and in its fixtures.

    Otherwise they would join the session of an earlier test: by chance, and ten times slower.
    """
    with pytest.MonkeyPatch.context() as patch:
        if "ray_session" not in getattr(item, "fixturenames", ()):
            hide_ray(patch)
        return (yield)


@pytest.fixture(scope="session", autouse=True)
def apart_from_other_rays() -> Iterator[None]:
    """Give each worker its own Ray folder, so that no test joins the Ray of another worker."""
    with tempfile.TemporaryDirectory(prefix="ray") as folder:  # paths of sockets must be short
        os.environ["RAY_TMPDIR"] = folder
        yield


@pytest.fixture(scope="session")
def s3(tmp_path_factory):
    """S3 for the whole session. Set endpoint_url in ``storage_options``, or use ``s3_env``."""
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
    """A fresh bucket, and environment variables that direct every S3 client to it."""
    import s3fs

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test-secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint_url)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    s3fs.S3FileSystem.clear_instance_cache()  # cached clients keep their environment
    yield s3.new_bucket()
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="session")
def media_server():
    """A web server of media for the whole session; tests use ``http``."""
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
    """The web server, with empty records of requests."""
    HTTPFileSystem.clear_instance_cache()  # its clients have the settings of other tests
    media_server.requests, media_server.bad_ranges, media_server.num_bytes = [], [], 0
    media_server.targets, media_server.headers = [], []
    return media_server


@pytest.fixture(scope="session")
def archive(tmp_path_factory):
    """The demo's archive: real images and clips, made once for the session."""
    from jobs.demo.archive import render_archive

    folder = tmp_path_factory.mktemp("archive")
    render_archive(folder)
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A tiny Qwen3-VL with random weights, in the layout of the published checkpoints."""
    from scripts.demo_model.tiny_checkpoint import write_tiny_checkpoint

    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="session")
def ray_session():
    """One Ray session for the whole test run."""
    import ray

    from jobs.cluster.start import start_ray

    # Some tests hand their own classes to the workers.
    folders = [str(ROOT), os.environ.get("PYTHONPATH")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, folders))
    assert not ray.is_initialized(), "an earlier test has started Ray without this fixture"
    start_ray(num_cpus=3)
    yield
    ray.shutdown()


@pytest.fixture
def no_ray(monkeypatch):
    """Small jobs of this test run without Ray, also where another fixture has started it."""
    hide_ray(monkeypatch)


@pytest.fixture(scope="session")
def demonstrated(archive, tmp_path_factory):
    """A folder in which `reelscribe demo` was run: demo/archive, demo/output, said.txt."""
    from rich.console import Console

    from jobs.demo import demo

    folder = tmp_path_factory.mktemp("demonstrated")
    (folder / "demo").mkdir()
    (folder / "demo" / "archive").symlink_to(archive)
    (folder / "jobs").symlink_to(ROOT / "jobs")
    (archive / ".rendered").touch()
    console = Console(file=io.StringIO(), width=160)
    with pytest.MonkeyPatch.context() as patch:
        hide_ray(patch)
        demo.run(folder / "demo", console)
    (folder / "said.txt").write_text(console.file.getvalue())
    return folder


@pytest.fixture(scope="session")
def annotated(archive, checkpoint, tmp_path_factory, ray_session):
    """The archive, annotated once for the session: the job, its output folder, the finished run."""
    from rich.console import Console

    from jobs.run import annotate
    from schemas.job.job import check_job

    output = tmp_path_factory.mktemp("annotated")
    spec = {"name": "archive", "input": {"scan": str(archive)}, "output": str(output)}
    job = check_job(SMALL | spec | {"model": {"source": str(checkpoint)}}, "test")
    return job, output, annotate.run(job, Console(file=io.StringIO(), width=120))
