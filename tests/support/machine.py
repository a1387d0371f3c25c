"""What a measurement ran on: card, driver, versions."""

import importlib.metadata
import platform
import subprocess
from pathlib import Path

from packaging.requirements import Requirement

from tests.support.paths import ROOT

NEEDED = ROOT / "tests" / "gpu" / "requirements.txt"
PACKAGES = ("torch", "transformers", "vllm", "accelerate", "peft")


def machine(device: str) -> dict[str, str]:
    """Name of the card or processor, and versions of what computes."""
    import torch

    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    if device != "cuda":
        return {"device": "cpu"} | found
    properties = torch.cuda.get_device_properties(0)
    gib = properties.total_memory / 2**30
    return {
        "device": f"{properties.name}, {gib:.0f} GiB",
        "driver": _driver(),
        "cuda": str(torch.version.cuda),
    } | found


def wrong_packages(requirements: Path = NEEDED) -> list[str]:
    """Installed packages whose version is not the one that a file requires, with both."""
    wrong = []
    for line in requirements.read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        needed = Requirement(line)
        try:
            found = importlib.metadata.version(needed.name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if found not in needed.specifier:
            wrong.append(f"{needed.name} is {found}, and must be {needed.specifier}")
    return wrong


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.splitlines()[0].strip()
