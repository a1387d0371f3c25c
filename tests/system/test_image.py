"""The CPU image: its Dockerfile's steps in a Debian root, and runs in it as a pod has them.

`make rehearsal`; it takes a quarter of an hour, 4 GB of temporary files, root rights, and
Debian's packages.
"""

import json
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow.dataset as ds
import pytest
import yaml

from pipeline.stages.pools import WRITER
from tests.support.images.dockerfile import dockerfile
from tests.support.images.rehearsal import Image, build, run, why_not
from tests.support.kubernetes import ray_job

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600), pytest.mark.xdist_group("test_image")]

MODEL = "/usr/local/lib/python3.11/site-packages/jobs/demo_model"


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    if reason := why_not():
        pytest.skip(reason)
    # Not in the repository, which other tests copy, nor in pytest's folders, which are kept.
    with tempfile.TemporaryDirectory(prefix="reelscribe-image-") as folder:
        yield build(dockerfile("cpu"), Path(folder) / "root")


@pytest.fixture(scope="module")
def demo(image: Image, tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The demo's job in a container of the image; its folder, and what it printed."""
    output = tmp_path_factory.mktemp("output")
    return output, run(image, ["reelscribe", "demo", "/output/demo"], output)


def test_the_demos_job_runs_with_a_read_only_root_and_no_network(demo):
    output, done = demo
    assert done.returncode == 0, done.stdout + done.stderr
    rows = ds.dataset(output / "demo" / "output" / "annotations").to_table().to_pylist()
    answered = [row for row in rows if row["status"] == "ok"]
    assert len(answered) > 30
    captions = [row["caption"] for row in answered if row["caption"]]
    assert any("circle" in str(caption) for caption in captions)
    assert {row["error"]["type"] for row in rows if row["error"]} == {"media_unreadable"}


def test_a_container_can_do_no_more_than_its_pod_allows(image: Image, tmp_path: Path):
    code = """
        id -u; id -G
        grep -E 'Cap(Eff|Bnd)|NoNewPrivs' /proc/self/status
        for path in / /etc /usr/local /opt/reelscribe /home/reelscribe /var/tmp; do
            touch $path/x 2>/dev/null && echo "wrote $path"
        done
        touch $HOME/x /tmp/x /dev/shm/x /output/x && echo home $HOME
        tail -n +3 /proc/net/dev | cut -d: -f1
    """
    done = run(image, ["sh", "-c", code], tmp_path / "output")
    expected = ["1000", "1000", "CapEff: 0000000000000000", "CapBnd: 0000000000000000"]
    expected += ["NoNewPrivs: 1", "home /tmp", "lo"]
    assert [" ".join(line.split()) for line in done.stdout.splitlines()] == expected


def test_what_the_image_starts_by_itself(image: Image, tmp_path: Path):
    health = image.recorded["HEALTHCHECK"].partition(" CMD ")[2]
    assert "ENTRYPOINT" not in image.recorded
    for command in (json.loads(image.recorded["CMD"]), json.loads(health)):
        done = run(image, command, tmp_path / "output")
        assert done.returncode == 0, done.stderr
        assert "reelscribe" in done.stdout.lower()


def test_what_kuberay_and_the_decoders_call_is_there(image: Image, tmp_path: Path):
    """KubeRay: bash, wget. Decoders: FFmpeg's libraries, cuts. Ray: a user with a name."""
    code = """
        set -e
        wget --version > /tmp/wget
        python -c 'import torchcodec, scenedetect, getpass; print(getpass.getuser())'
    """
    done = run(image, ["/bin/bash", "-c", "--", code], tmp_path / "output")
    assert (done.returncode, done.stdout) == (0, "reelscribe\n"), done.stderr


def test_the_rayjobs_entrypoint_runs_on_a_head_that_wants_its_token(image: Image, demo):
    output, _ = demo
    job = {
        "name": "pod",
        "input": {"scan": "/output/demo/archive"},
        "output": "/output/by-ray",
        "model": {"source": MODEL, "engine": "simulated", "simulated": {"speed": 1000.0}},
        "sampling": {"max_frames": 8, "decoder": "torchcodec"},
        "budget": {"image_tokens": [4, 64], "frame_tokens": [4, 30], "unit_tokens": 256},
        "resources": {"replicas": 1, "decoders": 1},
    }
    (output / "job.yaml").write_text(yaml.safe_dump(job))
    entrypoint = ray_job("no-gpu")["entrypoint"].replace(
        "/etc/reelscribe/job.yaml", "/output/job.yaml"
    )
    head = {"num-cpus": "2", "num-gpus": "0", "resources": f"'{json.dumps({WRITER: 1})}'"}
    options = " ".join(f"--{key}={value}" for key, value in head.items())
    code = f"""
        ulimit -n 65536  # as KubeRay does, which goes on where it may not
        set -e
        ray start --head --dashboard-host=0.0.0.0 {options} > /output/head.txt
        until ray health-check --address 127.0.0.1:6379; do sleep 1; done
        env -u RAY_AUTH_TOKEN ray job list --address http://127.0.0.1:8265 && exit 9
        ray job submit --address http://127.0.0.1:8265 -- {entrypoint}
    """
    env = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a-token-of-the-rehearsal"}
    done = run(image, ["/bin/bash", "-c", "--", code], output, env)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = ds.dataset(output / "by-ray" / "annotations").to_table(columns=["status"])
    assert rows["status"].to_pylist().count("ok") > 30
