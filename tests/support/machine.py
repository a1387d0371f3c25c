"""What a measurement ran on: card, driver, versions."""

import importlib.metadata
import platform
import subprocess

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


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.splitlines()[0].strip()
