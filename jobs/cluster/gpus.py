"""The GPUs of a job: by name, of this machine, or of the Ray session."""

import shutil
import subprocess
from collections.abc import Mapping

from jobs.cluster.machines import nodes
from pipeline.model.frame_size import MERGE_SIZE
from pipeline.model.memory import (
    CPU_BATCH_TOKENS,
    VISION_PASS_PATCHES,
    ModelMemory,
    usable_bytes,
)
from pipeline.model.sizes import GPUS, Gpu
from schemas.errors import JobFileError
from schemas.job.job import Job

_SMALLEST = "rtx4090"
"""Taken for a GPU of unknown name."""


def gpu_by_name(name: str) -> Gpu:
    """The GPU that ``--gpu`` names: ``h100``, or the gigabytes of its memory, such as ``40``.

    Raises:
        JobFileError: there is no such GPU.
    """
    key = name.strip().lower()
    if key in GPUS:
        return GPUS[key]
    gigabytes = key.removesuffix("gb").strip()
    if not gigabytes.isdecimal() or not int(gigabytes):
        raise JobFileError(
            f"--gpu {name}: no such GPU; known are {', '.join(GPUS)}, or give the gigabytes of its "
            "memory, such as 40"
        )
    return Gpu(memory_bytes=int(gigabytes) * 10**9, operations=0.0, bytes_per_second=0.0)


def local_gpu() -> tuple[str, Gpu] | None:
    """The name and size of this machine's first GPU of NVIDIA; None without one.

    Its driver's own tool is asked: CUDA's functions would take memory of the GPU.
    """
    if (tool := shutil.which("nvidia-smi")) is None:
        return None
    query = [tool, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
        name, mebibytes = found.stdout.splitlines()[0].rsplit(",", 1)
        memory_bytes = int(mebibytes) * 2**20
    except (OSError, ValueError, IndexError, subprocess.SubprocessError):
        return None
    return name.strip(), Gpu(memory_bytes=memory_bytes, operations=0.0, bytes_per_second=0.0)


def batch_tokens(job: Job, memory: ModelMemory) -> int:
    """Tokens of a usual batch of the job's engine: its own number, or by the GPUs that are there.

    The engine counts again when the model is loaded; this divides the work before that.
    """
    given = job.resources.max_batch_tokens
    if given != "auto":
        return given
    gpus = [_known(node) for node in nodes() if node.get("GPU")]
    if not gpus or job.model.device == "cpu" or job.model.engine != "transformers":
        return CPU_BATCH_TOKENS
    return min(_usual_batch_tokens(memory, gpu) for gpu in gpus)


def _usual_batch_tokens(memory: ModelMemory, gpu: Gpu) -> int:
    """Tokens of a usual batch on a GPU, to divide work before the engines have started."""
    left = usable_bytes(gpu.memory_bytes) - memory.weight_bytes
    left -= memory.vision_bytes(VISION_PASS_PATCHES)
    of_token = memory.token_bytes + memory.feature_bytes(MERGE_SIZE**2)
    return max(CPU_BATCH_TOKENS, left // of_token)


def _known(node: Mapping[str, float]) -> Gpu:
    """The GPU of a node, by Ray's name of it."""
    names = [name.lower() for name in node if name.startswith("accelerator_type:")]
    known = (gpu for key, gpu in GPUS.items() if any(key in name for name in names))
    return next(known, GPUS[_SMALLEST])
