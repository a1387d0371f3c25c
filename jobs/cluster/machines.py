"""The machines of the Ray session, or this one without it: what fits, and for ``run.json``."""

import math
import os
import sys
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

_GIB = 2**30
_GPU_DEVICES = ("nvidia[0-9]*", "kfd", "dxg")
"""Files in /dev of machines with GPUs: of NVIDIA, of AMD, and of Windows' subsystem for Linux."""


def has_session() -> bool:
    """Whether this process has a Ray session."""
    return "ray" in sys.modules and sys.modules["ray"].is_initialized()


def nodes() -> list[Mapping[str, float]]:
    """Resources of each node of the Ray session, by Ray's names; without one, of this machine."""
    if not has_session():
        return [_this_machine()]
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def machines() -> list[dict[str, Any]]:
    """Return the machines that a run has now: alike ones once, with their number.

    Keys: ``num``, ``cpus``, ``gpus``, ``memory_gib``, and ``gpu`` with its name if there is one.
    """
    kinds = Counter(map(_kind, nodes()))
    names = ("cpus", "gpus", "memory_gib", "gpu")
    return [
        {"num": count} | {k: v for k, v in zip(names, kind, strict=True) if v is not None}
        for kind, count in sorted(kinds.items(), key=str)
    ]


def _kind(resources: Mapping[str, float]) -> tuple[float, float, int, str | None]:
    gpu = [name for name in resources if name.startswith("accelerator_type:")]
    return (
        resources.get("CPU", 0.0),
        resources.get("GPU", 0.0),
        round(resources.get("memory", 0.0) / _GIB),
        gpu[0].partition(":")[2] if gpu else None,
    )


def _this_machine() -> dict[str, float]:
    found_gpus = num_gpus()
    found = {
        "CPU": _num_cpus(),
        "GPU": float(found_gpus),
        "memory": float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")),
    }
    # CUDA's own functions would take memory of the GPU.
    for file in Path("/proc/driver/nvidia/gpus").glob("*/information") if found_gpus else ():
        with suppress(OSError):
            name = file.read_text().partition("Model:")[2].partition("\n")[0].strip()
            found[f"accelerator_type:{name}"] = 1.0
    return found


def _num_cpus() -> float:
    """CPUs that this process may use: of the machine, of its affinity, and of its container."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    limits = [float(allowed or 1)]
    with suppress(OSError, ValueError):  # no control groups, or "max"
        quota, period = map(int, Path("/sys/fs/cgroup/cpu.max").read_text().split())
        limits.append(math.floor(quota / period))
    return max(1.0, min(limits))


def may_have_gpu() -> bool:
    """Whether this machine has the device file of a GPU."""
    return any(True for name in _GPU_DEVICES for _ in Path("/dev").glob(name))


def num_gpus() -> int:
    """Number of GPUs that torch sees on this machine."""
    if not may_have_gpu():
        return 0
    import torch  # takes seconds to import

    return torch.cuda.device_count()
