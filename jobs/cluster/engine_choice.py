"""Choose the engine of a job whose ``model.engine`` is auto: vLLM if machines with GPUs have it.

``chosen_here`` asks this machine, and costs nothing where there is no GPU; ``choose`` asks the
machines on which the actors will run.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from jobs.cluster.machines import has_session, may_have_gpu, num_gpus
from jobs.cluster.start import on_this_machine, running_ray
from pipeline.engines.vllm.args import check_vllm, vllm_problem, vllm_version
from schemas.errors import JobFileError, ResourceError
from schemas.extras import install_command
from schemas.job.engines import Vllm
from schemas.job.job import Job

_ANSWER_SECONDS = 120.0
"""How long the machines of a cluster may take to say whether they have vLLM."""


Engine = Literal["transformers", "vllm"]
"""What ``auto`` may mean."""


class Choice(NamedTuple):
    """An engine, and the reason for it, which stands in the plan and in ``run.json``."""

    engine: Engine
    reason: str


class _State(NamedTuple):
    """Whether a machine can run vLLM. problem: None if it can."""

    problem: str | None
    version: str


def with_engine(job: Job, choice: Choice) -> tuple[Job, str]:
    """The job with the chosen engine, and a line that says which, and why.

    Raises:
        JobFileError: the job asks for several GPUs for an engine, and has the one that takes one.
    """
    reason = choice.reason
    if choice.engine == "transformers":
        gpus = job.resources.gpus_per_replica
        if gpus != "auto" and gpus > 1:
            raise JobFileError(
                f"resources.gpus_per_replica is {gpus:g}, and model.engine is auto, which means "
                f"transformers here, which uses one GPU: {reason}"
            )
        if job.model.vllm != Vllm():
            reason += "; the settings in model.vllm have no effect"
    return replace_engine(job, choice.engine), f"{choice.engine}: {reason}"


def replace_engine(job: Job, engine: str) -> Job:
    """The job with another ``model.engine``."""
    model = job.model.model_copy(update={"engine": engine})
    return job.model_copy(update={"model": model})


def choose(job: Job) -> Choice:
    """Choose an engine by the machines on which the job's actors will run.

    Connects to the cluster if there is one, and asks each of its machines with a GPU.

    Raises:
        ResourceError: the cluster does not answer, or has no machine with a GPU yet.
    """
    if reason := _without_gpu(job):
        return Choice("transformers", reason)
    if runs_here():
        return chosen_here(job)
    from rich.console import Console

    from jobs.cluster.session import ray_session

    with ray_session(Console(quiet=True)):
        return _chosen_there(job)


def runs_here() -> bool:
    """Whether the engines run on this machine, and not on those of a Ray that is joined."""
    return on_this_machine() and not has_session() and not running_ray()


def check_vllm_here(job: Job) -> None:
    """Check that vLLM is here if the job's engines run here with it; a cluster's actors check it.

    Raises:
        ModelError: vLLM is missing, or its version is not supported.
    """
    if job.model.engine == "vllm" and runs_here():
        check_vllm()


def chosen_here(job: Job) -> Choice:
    """Choose an engine by this machine."""
    if reason := _without_gpu(job):
        return Choice("transformers", reason)
    if not may_have_gpu():
        return Choice("transformers", "this machine has no GPU")
    if problem := vllm_problem():
        return Choice("transformers", f"{problem} ({install_command('vllm')})")
    if not (num := num_gpus()):
        return Choice("transformers", "torch sees no GPU on this machine")
    return Choice("vllm", f"this machine has vLLM {vllm_version()} and {_gpus(num)}")


def _without_gpu(job: Job) -> str | None:
    """Which of the job's settings mean the engine transformers."""
    if job.model.device == "cpu":
        return "model.device is cpu"
    gpus = job.resources.gpus_per_replica
    if gpus != "auto" and gpus < 1:  # vLLM takes whole GPUs
        return f"resources.gpus_per_replica is {gpus:g}"
    if job.model.attn_implementation != "sdpa":
        return "model.attn_implementation is a setting of this engine"
    return None


def _chosen_there(job: Job) -> Choice:
    """Choose an engine by the machines of the Ray session."""
    import ray

    with_gpu = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU")]
    if not with_gpu and job.resources.wait_seconds:
        raise ResourceError(
            "model.engine is auto, and the cluster has no machine with a GPU yet that could be "
            "asked whether it has vLLM: set model.engine to vllm or transformers, or, for engines "
            "without GPUs, resources.gpus_per_replica to 0"
        )
    if not with_gpu:
        return Choice("transformers", "the cluster has no machine with a GPU")
    states = _ask(with_gpu)
    problems = [state.problem for state in states if state.problem]
    if problems:
        of_them = f"{len(problems)} of {len(states)} machines with a GPU"
        return Choice("transformers", f"on {of_them}: {problems[0]} ({install_command('vllm')})")
    versions = ", ".join(sorted({state.version for state in states}))
    total = sum(int(node["Resources"]["GPU"]) for node in with_gpu)
    return Choice("vllm", f"the cluster has vLLM {versions} and {_gpus(total)}")


def _ask(nodes: Sequence[Mapping[str, Any]]) -> list[_State]:
    """Ask machines whether they can run vLLM."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0)(_state)
    places = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
    try:
        states: list[_State] = ray.get(
            [task.options(scheduling_strategy=place).remote() for place in places],
            timeout=_ANSWER_SECONDS,
        )
    except ray.exceptions.RayError as error:
        raise ResourceError(
            "the machines with GPUs could not be asked whether they have vLLM: set model.engine "
            f"to vllm or transformers, or correct the cluster. Ray says: {str(error)[:500]}"
        ) from None
    return states


def _state() -> _State:
    problem = vllm_problem()
    return _State(problem, "" if problem else vllm_version())


def _gpus(num: int) -> str:
    return f"{num:,} GPU" + ("s" if num > 1 else "")
