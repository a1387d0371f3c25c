"""What each container of deploy/ may do: as little as its work needs."""

import json
import re
import subprocess

import pytest

from pipeline.stages.pools import WRITER
from tests.support.kubernetes import built, group_templates, one, ray_job, weights_template

OVERLAYS = ["no-gpu", "one-gpu", "many-gpus", "nightly"]
RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
API_TOKEN = "/var/run/secrets/kubernetes.io/serviceaccount"
UNITS = {"Mi": 1 << 20, "Gi": 1 << 30}


def pods(overlay: str) -> dict[str, dict]:
    """Specifications of the pods, with the autoscaler that KubeRay adds to the head.

    Source: BuildAutoscalerContainer and mergeAutoscalerOverrides in KubeRay's pod.go.
    """
    templates = group_templates(overlay) | {"weights": weights_template()}
    found = {name: dict(template["spec"]) for name, template in templates.items()}
    options = ray_job(overlay)["rayClusterSpec"]["autoscalerOptions"]
    keys = ("securityContext", "resources", "volumeMounts", "env", "envFrom")
    autoscaler = {key: options[key] for key in keys if key in options}
    containers = [*found["head"]["containers"], {"name": "autoscaler", **autoscaler}]
    return found | {"head": found["head"] | {"containers": containers}}


def containers(pod: dict) -> list[dict]:
    return [*pod.get("initContainers", []), *pod["containers"]]


def size(quantity: str) -> int:
    number, unit = re.fullmatch(r"(\d+)(Mi|Gi)", quantity).groups()
    return int(number) * UNITS[unit]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_container_is_privileged_or_writes_its_root(overlay: str):
    for name, pod in pods(overlay).items():
        context = pod["securityContext"]
        assert context["runAsNonRoot"] and context["runAsUser"] == 1000, name
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not pod.keys() & {"hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"}
        assert all(not volume.keys() & {"hostPath"} for volume in pod["volumes"])
        for container in containers(pod):
            assert container["securityContext"] == RESTRICTED, (name, container["name"])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_a_container_writes_is_bounded(overlay: str):
    for name, pod in pods(overlay).items():
        folders = {v["name"]: v["emptyDir"] for v in pod["volumes"] if "emptyDir" in v}
        on_disk = [size(f["sizeLimit"]) for f in folders.values() if f.get("medium") != "Memory"]
        limits = [size(c["resources"]["limits"]["ephemeral-storage"]) for c in containers(pod)]
        # Kubernetes counts a pod's folders against the sum of its containers' limits.
        assert sum(on_disk) <= sum(limits), name
        for container in pod["containers"]:
            paths = {m["mountPath"]: m["name"] for m in container["volumeMounts"]}
            needed = {"/tmp"} if name == "weights" else {"/tmp", "/tmp/ray"}
            assert all(paths.get(path) in folders for path in needed), (name, container["name"])
            memory = size(container["resources"]["limits"]["memory"])
            if shm := paths.get("/dev/shm"):
                assert size(folders[shm]["sizeLimit"]) < memory


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_only_the_autoscaler_has_a_token_for_the_api_server(overlay: str):
    for account in (m for m in built(overlay) if m["kind"] == "ServiceAccount"):
        assert account["automountServiceAccountToken"] is False
    for name, pod in pods(overlay).items():
        assert pod["automountServiceAccountToken"] is False, name
        tokens = {
            volume["name"]
            for volume in pod["volumes"]
            for source in volume.get("projected", {}).get("sources", [])
            if "serviceAccountToken" in source
        }
        holders = [
            container["name"]
            for container in containers(pod)
            for mount in container["volumeMounts"]
            if mount["name"] in tokens or mount["mountPath"].startswith("/var/run/secrets")
        ]
        assert holders == (["autoscaler"] if name == "head" else [])
        assert len(tokens) == len(holders)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_keys_and_roles_are_only_where_they_are_needed(overlay: str):
    """The head writes the output; decoders and the copying read; engines do neither."""
    secrets = {
        "ray-head": ["reelscribe-s3"],
        "decoders": ["reelscribe-s3-read"],
        "copy": ["reelscribe-s3-read"],
    }
    accounts = {m["metadata"]["name"] for m in built(overlay) if m["kind"] == "ServiceAccount"}
    for name, pod in pods(overlay).items():
        account = pod.get("serviceAccountName")
        reads = name in ("decoders", "weights")
        assert account == {"head": "reelscribe"}.get(name, "reelscribe-reader" if reads else None)
        assert account in {*accounts, None}
        for container in containers(pod):
            who = name if container["name"] == "ray-worker" else container["name"]
            found = [each["secretRef"]["name"] for each in container.get("envFrom", [])]
            assert found == secrets.get(who, []), who
            assert not any("secret" in volume for volume in pod["volumes"])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_committer_runs_where_the_keys_for_writing_are(overlay: str):
    cluster = ray_job(overlay)["rayClusterSpec"]
    given = cluster["headGroupSpec"]["rayStartParams"]["resources"]
    # KubeRay puts the text into a command of bash.
    shown = subprocess.run(
        ["bash", "-c", f"printf %s {given}"], capture_output=True, text=True, check=True
    )
    assert json.loads(shown.stdout) == {WRITER: 1}
    workers = [group["rayStartParams"] for group in cluster["workerGroupSpecs"]]
    assert all(WRITER not in params.get("resources", "") for params in workers)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_ray_wants_a_token(overlay: str):
    assert ray_job(overlay)["rayClusterSpec"]["authOptions"] == {"mode": "token"}


def test_the_namespace_takes_restricted_pods_only():
    for manifests in ("one-gpu", "weights"):
        labels = one(manifests, "Namespace")["metadata"]["labels"]
        assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
