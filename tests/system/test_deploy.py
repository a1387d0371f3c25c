"""What stands in deploy/ is what a cluster takes: manifests by their schemas, images by files."""

import functools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml
from click.testing import CliRunner

from jobs.cli.main import main
from pipeline.stages.pools import READER
from schemas.job.job import check_job
from tests.support.images.dockerfile import copied, dockerfile, steps
from tests.support.kubernetes import built, one, ray_job
from tests.support.paths import ROOT

CRDS = ROOT.parent / "shared" / "crds"
OVERLAYS = ["no-gpu", "one-gpu", "many-gpus", "nightly"]


def strict(schema: dict) -> dict:
    """A CRD's schema in which unknown fields are errors: the API server would prune them."""
    is_loose = schema.get("x-kubernetes-preserve-unknown-fields")
    schema = {key: value for key, value in schema.items() if not key.startswith("x-")}
    if is_loose:
        return schema
    if "properties" in schema:
        schema["properties"] = {k: strict(v) for k, v in schema["properties"].items()}
        schema.setdefault("additionalProperties", False)
    if isinstance(schema.get("items"), dict):
        schema["items"] = strict(schema["items"])
    return schema


@functools.cache
def crd_schema(plural: str) -> dict:
    file = CRDS / f"ray.io_{plural}.yaml"
    if not file.exists():
        pytest.skip(f"KubeRay's CRDs are not here ({file})")
    versions = yaml.load(file.read_text(), yaml.CSafeLoader)["spec"]["versions"]
    schema = next(v for v in versions if v["name"] == "v1")["schema"]["openAPIV3Schema"]
    schema["properties"]["metadata"] = {
        "type": "object",
        "x-kubernetes-preserve-unknown-fields": True,
    }
    return schema


def problems(schema: dict, manifest: dict) -> list[str]:
    return [e.message for e in jsonschema.Draft202012Validator(schema).iter_errors(manifest)]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kuberays_resources_by_their_crds(overlay: str):
    plural = "raycronjobs" if overlay == "nightly" else "rayjobs"
    schema = strict(crd_schema(plural))
    kind = "RayCronJob" if overlay == "nightly" else "RayJob"
    assert problems(schema, one(overlay, kind)) == []


def test_the_check_by_crds_can_fail():
    schema = strict(crd_schema("rayjobs"))
    job = yaml.safe_load(yaml.safe_dump(one("one-gpu", "RayJob")))
    job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplica"] = 3
    (problem,) = problems(schema, job)
    assert "maxReplica" in problem


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kubernetes_resources_by_their_schemas(overlay: str):
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    plain = [manifest for manifest in built(overlay) if "ray.io" not in manifest["apiVersion"]]
    kinds = {manifest["kind"] for manifest in plain}
    assert kinds >= {"Namespace", "ServiceAccount", "NetworkPolicy", "ConfigMap"}
    for manifest in [*plain, *built("weights")]:
        kubernetes_validate.validate(manifest, "1.34", strict=True)
    # A pod inside a RayJob is a pod.
    for group in groups(overlay):
        pod = {"apiVersion": "v1", "kind": "Pod", **group["template"]}
        kubernetes_validate.validate(pod, "1.34", strict=True)


def groups(overlay: str) -> list[dict]:
    cluster = ray_job(overlay)["rayClusterSpec"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_have_their_priority_and_mount_their_volumes(overlay: str):
    priority = one(overlay, "PriorityClass")["metadata"]["name"]
    autoscaler = ray_job(overlay)["rayClusterSpec"]["autoscalerOptions"]["volumeMounts"]
    for pod in (group["template"]["spec"] for group in groups(overlay)):
        assert pod["priorityClassName"] == priority
        (container,) = pod["containers"]
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        volumes = {volume["name"] for volume in pod["volumes"]}
        assert mounted <= volumes
        if volumes - mounted:  # for the container that KubeRay adds to the head
            assert volumes - mounted <= {mount["name"] for mount in autoscaler} <= volumes


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_ray_is_the_same_on_all_nodes(overlay: str):
    """Ray lets no node join that has another Python, to the patch level: one image has one."""
    pods = [group["template"]["spec"] for group in groups(overlay)]
    images = {c["image"] for pod in pods for c in (*pod["containers"], *pod["initContainers"])}
    assert images == {"reelscribe:cpu" if overlay == "no-gpu" else "reelscribe:gpu"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_weights_are_there_before_a_run_and_outlive_it(overlay: str):
    """They are copied apart from it; each pod waits for the mark that they are complete."""
    weights = {manifest["kind"]: manifest for manifest in built("weights")}
    claim = weights["PersistentVolumeClaim"]["metadata"]
    assert not {"PersistentVolumeClaim", "Job"} & {m["kind"] for m in built(overlay)}
    (copies,) = weights["Job"]["spec"]["template"]["spec"]["containers"]
    assert ".complete" in copies["args"][0]
    for group in groups(overlay):
        pod = group["template"]["spec"]
        assert pod["initContainers"][0]["command"][-1].startswith("until ls /weights/*/.complete")
        claims = [v["persistentVolumeClaim"] for v in pod["volumes"] if v["name"] == "weights"]
        assert claims == [{"claimName": claim["name"], "readOnly": True}]
    source = yaml.safe_load(one(overlay, "ConfigMap")["data"]["job.yaml"])["model"]["source"]
    (name,) = [env["value"] for env in copies["env"] if env["name"] == "NAME"]
    assert source == f"/weights/{name}"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_decoders_at_their_limits_fit_into_a_pod(overlay: str):
    """Else hostile media end the pod before our own bound ends the decoder."""
    resources = check_job(
        yaml.safe_load(one(overlay, "ConfigMap")["data"]["job.yaml"]), ""
    ).resources
    (container,) = groups(overlay)[1]["template"]["spec"]["containers"]
    limits = container["resources"]["limits"]
    gib = float(limits["memory"].removesuffix("Gi"))
    assert int(limits["cpu"]) / resources.cpus_per_decoder * resources.decode_memory_gib < gib


def test_the_job_file_is_the_one_that_is_mounted():
    for overlay in OVERLAYS:
        config = one(overlay, "ConfigMap")
        job = check_job(yaml.safe_load(config["data"]["job.yaml"]), overlay)
        head = ray_job(overlay)["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
        mounted = [v["configMap"]["name"] for v in head["volumes"] if "configMap" in v]
        assert mounted == [config["metadata"]["name"]]
        assert job.resources.wait_seconds > 0  # nodes come only when they are asked for


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_jobs_actors_fit_into_the_nodes(overlay: str):
    """Or the run would wait for nodes that never come."""
    resources = check_job(
        yaml.safe_load(one(overlay, "ConfigMap")["data"]["job.yaml"]), ""
    ).resources
    workers = ray_job(overlay)["rayClusterSpec"]["workerGroupSpecs"]
    has_gpus = len(workers) == 2
    decoders = workers[0]
    cpus = int(decoders["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
    room = decoders["maxReplicas"] * cpus
    need = resources.decoders * resources.cpus_per_decoder
    if has_gpus:
        assert resources.replicas <= workers[1]["maxReplicas"]
        # An engine takes the one CPU of its node, so that no decoder is counted there.
        assert workers[1]["rayStartParams"]["num-cpus"] == "1"
        assert READER not in workers[1]["rayStartParams"].get("resources", "")
    else:
        need += resources.replicas
    assert json.loads(json.loads(decoders["rayStartParams"]["resources"])) == {READER: 1}
    assert need <= room


def test_the_entrypoint_is_a_command_of_ours(monkeypatch: pytest.MonkeyPatch):
    entrypoint = ray_job("one-gpu")["entrypoint"].replace("--log-format json ", "").split()
    assert entrypoint[0] == "reelscribe"
    called = []
    annotate = main.commands["annotate"]
    monkeypatch.setattr(annotate, "callback", lambda **options: called.append(options))
    result = CliRunner().invoke(main, entrypoint[1:], catch_exceptions=False)
    assert result.exit_code == 0
    assert str(called[0]["job_file"]) == "/etc/reelscribe/job.yaml"


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_images_are_pinned_unprivileged_and_made_of_the_repository(name: str):
    found = steps(dockerfile(name))
    (image,) = [rest for step, rest in found if step == "FROM"]
    assert re.search(r":v?\d+\.\d+\.\d+", image)
    assert ("USER", "1000") in found
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for path in (source for step in found if step.name == "COPY" for source, _ in copied(step)):
        assert (ROOT / path).exists() and f"!{path}" in ignored, path
    ray = re.search(r"^ray==(\S+)", (ROOT / "constraints-cpu.txt").read_text(), re.MULTILINE)
    assert ray_job("one-gpu")["rayClusterSpec"]["rayVersion"] == ray[1]


def test_nodes_with_and_without_gpus_get_the_same_ray():
    """And the same versions by `make gpu` and by the commands for a cluster."""
    pins = [(ROOT / f"constraints-{name}.txt").read_text() for name in ("cpu", "vllm-cpu")]
    versions = {re.search(r"^ray==(\S+)", text, re.MULTILINE)[1] for text in pins}
    assert len(versions) == 1
    texts = [(ROOT / name).read_text() for name in ("Makefile", "deploy/README.md")]
    (left_out,) = {re.search(r"\^(\([\w|-]+\))==", text)[1] for text in texts}
    (vllm,) = {re.search(r"(?:VLLM :=|vllm==) ?([\d.]+)", text)[1] for text in texts}
    assert f"vllm/vllm-openai:v{vllm}\n" in dockerfile("gpu").read_text()
    for package in left_out.strip("()").split("|"):
        assert re.search(rf"^{package}==", pins[1], re.MULTILINE), package


def test_what_images_copy_is_enough_to_install(tmp_path: Path):
    """The Dockerfile's RUN step, without its dependencies: the wheel has all that is imported."""
    copies = [step for step in steps(dockerfile("cpu")) if step.name == "COPY"]
    for source, goal in (pair for step in copies for pair in copied(step)):
        to = tmp_path / "context" / goal
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, to)
        else:
            to.parent.mkdir(exist_ok=True)
            shutil.copy(ROOT / source, to)
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site)]
    offline = ["--no-build-isolation", "--no-index", str(tmp_path / "context")]
    done = subprocess.run([*pip, *offline], capture_output=True, text=True, check=False)
    if "setuptools" in done.stderr and done.returncode:
        pytest.skip("setuptools>=77 is not installed here, and a build needs it")
    assert done.returncode == 0, done.stderr
    code = "import jobs.cli.main, jobs.run.annotate, sys; print(jobs.cli.main.__file__)"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=site
    )
    assert run.stdout.startswith(str(site))
    assert (site / "jobs" / "specs" / "demo.yaml").exists()
    assert (site / "jobs" / "demo_model" / "model.safetensors").exists()
