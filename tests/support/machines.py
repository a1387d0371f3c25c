"""Facts of machines, as the doctor collects them."""

from typing import Any

from jobs.doctor.machine import Facts, Gpu

GIB = 1 << 30
H100 = Gpu(name="NVIDIA H100 80GB HBM3", memory_bytes=80 * GIB, used_bytes=0)


def good_facts(**changed: Any) -> Facts:
    """A machine with two GPUs, on which nothing is wrong."""
    facts: dict[str, Any] = {
        "host": "gpu-1",
        "python": "3.12.4",
        "version": "0.2.0",
        "code": "c0de",
        "num_packages": 24,
        "versions": {"ray": "2.60.0"},
        "memory_bytes": 256 * GIB,
        "shm_bytes": 128 * GIB,
        "shm_free_bytes": 120 * GIB,
        "tmp_folder": "/tmp",
        "tmp_bytes": 1000 * GIB,
        "tmp_free_bytes": 500 * GIB,
        "driver": "550.54.15",
        "gpus": (H100, H100),
        "torch": "2.13.0",
        "cuda": "12.8",
        "torch_gpus": 2,
        "pyav": "18.1.0",
        "libavcodec": "62.28.102",
        "torchcodec_problem": "",
        "vllm": "0.33.0",
        "vllm_problem": "",
    }
    return Facts(**facts | changed)
