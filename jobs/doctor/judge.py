"""Make findings of a machine's facts: what is good, and what is to be done for the job."""

from collections.abc import Iterator

from jobs.doctor.finding import Finding, State, finding
from jobs.doctor.machine import Facts
from schemas.extras import install_command
from schemas.job.job import Job

_GIB = 1 << 30
_SHM_BYTES = 2 * _GIB
"""Ray keeps prepared frames there: 0.7 GiB in the runs that docs/performance.md has."""

_FULL_SHARE = 0.05
"""Share of a disk that must be free: Ray stops to write to one that is 95% full."""


def gib(num_bytes: int) -> str:
    """Write a number of bytes in GiB, or MiB if it is small."""
    if num_bytes < _GIB // 10:
        return f"{num_bytes / (1 << 20):,.1f} MiB"
    return f"{num_bytes / _GIB:,.1f} GiB"


def machine_findings(facts: Facts, job: Job | None, topic: str = "machine") -> list[Finding]:
    """Judge what is known of a machine.

    job: what it is to run; None: any.
    """
    found = [
        *_python(facts),
        *_packages(facts),
        *_torch(facts),
        *_gpus(facts, job),
        *_vllm(facts, job),
        *_decoders(facts, job),
        *_memory(facts),
        *_job(facts),
    ]
    if facts.end:
        text = f"{facts.end}: what follows it could not be checked; try that step by hand"
        found.append(("probe", State.TO_DO, text))
    return [finding(topic, name, state, text) for name, state, text in found]


_Line = tuple[str, State, str]


def _python(facts: Facts) -> Iterator[_Line]:
    if facts.python:
        yield "Python", State.OK, facts.python
    if problem := facts.failures.get("code"):
        yield (
            *("reelscribe", State.TO_DO),
            f"cannot be imported ({problem}): install the same version as on the driver",
        )
    elif facts.code:
        version = facts.version or "run from its source folder"
        yield "reelscribe", State.OK, f"{version}, code {facts.code}"


def _packages(facts: Facts) -> Iterator[_Line]:
    if problem := facts.failures.get("packages"):
        yield "packages", State.WARNING, f"versions are not known ({problem})"
    elif facts.wrong_packages:
        lines = "; ".join(facts.wrong_packages)
        yield "packages", State.TO_DO, f"{lines}: install these versions"
    elif facts.num_packages:
        shown = ", ".join(f"{name} {version}" for name, version in facts.versions.items())
        text = f"{facts.num_packages} required ones, in the known ranges: {shown} and others"
        yield "packages", State.OK, text


def _torch(facts: Facts) -> Iterator[_Line]:
    if problem := facts.failures.get("torch"):
        yield "torch", State.TO_DO, f"cannot be imported ({problem}): install it again"
    elif facts.torch:
        build = f"built for CUDA or ROCm {facts.cuda}" if facts.cuda else "built for the CPU"
        yield "torch", State.OK, f"{facts.torch}, {build}"


def _gpus(facts: Facts, job: Job | None) -> Iterator[_Line]:
    on_cpu = job is not None and (job.model.device == "cpu" or job.model.engine == "simulated")
    if problem := facts.failures.get("driver"):
        state = State.WARNING if on_cpu else State.TO_DO
        yield "GPU", state, f"the driver does not answer ({problem}): restart it, or the machine"
    for number, gpu in enumerate(facts.gpus):
        used = f", {gib(gpu.used_bytes)} of it in use by other programs"
        is_shared = gpu.used_bytes > max(0.1 * gpu.memory_bytes, _GIB)
        memory = gib(gpu.memory_bytes) if gpu.memory_bytes else "memory shared with the machine"
        text = (
            f"{gpu.name}, {memory}{used if is_shared else ''}, driver {facts.driver or 'unknown'}"
        )
        state = State.WARNING if is_shared and not on_cpu else State.OK
        yield f"GPU {number}", state, text
    num_gpus = len(facts.gpus)
    if facts.torch_gpus is not None and facts.torch_gpus < num_gpus:
        # Some may be hidden on purpose.
        state = State.WARNING if on_cpu or facts.torch_gpus else State.TO_DO
        said = f" ({facts.torch_warning})" if facts.torch_warning else ""
        yield (
            *("GPU", state),
            f"torch can use {facts.torch_gpus} of {num_gpus} GPUs{said}: install a torch that is "
            f"built for CUDA and for driver {facts.driver}, and look at CUDA_VISIBLE_DEVICES",
        )
    if facts.torch_gpus == 0 and not num_gpus and "driver" not in facts.failures:
        if job is not None and job.model.device == "cuda":
            text = "model.device is cuda, but there is no GPU here: set auto or cpu"
            yield "GPU", State.TO_DO, text
        elif on_cpu:
            yield "GPU", State.OK, "none, and none is needed"
        else:
            yield "GPU", State.WARNING, "none: engines compute on the CPU, which suits small models"


def _vllm(facts: Facts, job: Job | None) -> Iterator[_Line]:
    problem = facts.failures.get("vllm") or facts.vllm_problem
    if problem is None:
        return
    if not problem:
        yield "vLLM", State.OK, f"{facts.vllm}, a known version"
    elif job is not None and job.model.engine == "vllm":
        yield "vLLM", State.TO_DO, f"{problem}: {install_command('vllm')}"
    elif facts.gpus and job is None:
        yield "vLLM", State.WARNING, f"{problem}: {install_command('vllm')}"
    else:
        there = f"{facts.vllm} is not a known version" if facts.vllm else "not installed"
        yield "vLLM", State.OK, f"{there}, and not needed here"


def _decoders(facts: Facts, job: Job | None) -> Iterator[_Line]:
    if problem := facts.failures.get("decoders"):
        yield "decoders", State.TO_DO, f"PyAV cannot be imported ({problem}): install it again"
        return
    if facts.pyav is None:
        return
    yield "PyAV", State.OK, f"{facts.pyav}, with FFmpeg's libavcodec {facts.libavcodec}"
    if not facts.torchcodec_problem:
        yield "torchcodec", State.OK, "loads, with FFmpeg's libraries of this machine"
    elif job is not None and job.sampling.decoder == "torchcodec":
        yield (
            *("torchcodec", State.TO_DO),
            f"{facts.torchcodec_problem}: install FFmpeg's libraries (apt-get install ffmpeg), or "
            "set sampling.decoder to auto",
        )
    else:
        text = f"does not load ({facts.torchcodec_problem}), and is not needed: PyAV decodes"
        yield "torchcodec", State.OK, text


def _memory(facts: Facts) -> Iterator[_Line]:
    if facts.memory_bytes:
        yield "memory", State.OK, gib(facts.memory_bytes)
    if facts.shm_free_bytes is not None and facts.shm_bytes is not None:
        text = f"{gib(facts.shm_free_bytes)} of {gib(facts.shm_bytes)} free"
        if facts.shm_free_bytes < _SHM_BYTES:
            text += (
                f", less than {gib(_SHM_BYTES)}: Ray keeps frames on the disk then, which is slow; "
                "remove files there, or start the container with a larger --shm-size"
            )
        state = State.WARNING if facts.shm_free_bytes < _SHM_BYTES else State.OK
        yield "/dev/shm", state, text
    if facts.tmp_free_bytes is not None and facts.tmp_bytes:
        text = f"{gib(facts.tmp_free_bytes)} of {gib(facts.tmp_bytes)} free in {facts.tmp_folder}"
        is_full = facts.tmp_free_bytes < _FULL_SHARE * facts.tmp_bytes
        if is_full:
            text += ": Ray stops to write where less than 5% is free; remove files, or set TMPDIR"
        yield "disk", State.TO_DO if is_full else State.OK, text


def _job(facts: Facts) -> Iterator[_Line]:
    """What the job names, as this machine sees it: a node may lack credentials or a folder."""
    if facts.source_problem:
        text = f"{facts.source_problem}: bring it to every node, a folder to the same path"
        yield "model", State.TO_DO, text
    if problem := facts.read_problem or facts.failures.get("read"):
        if facts.gpus:  # on purpose, where engines have no keys
            yield "input", State.WARNING, f"{problem}; decoders must not run here"
        else:
            yield "input", State.TO_DO, problem
