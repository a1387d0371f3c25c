"""Check what else the job needs before it starts, and list what its open settings become."""

from collections.abc import Callable, Iterator
from typing import Any

from jobs.cluster.machines import nodes
from jobs.cluster.session import fit_job
from jobs.doctor.finding import Finding, State, checked, finding
from jobs.doctor.model import Found, assumed_of_model
from jobs.run.on_finish import check_on_finish
from pipeline.engines.answer_schema import check_grammars
from pipeline.engines.vllm.limits import check_sampling
from pipeline.media.shots import check_shots
from pipeline.model.checkpoint import with_generation_defaults
from pipeline.model.reasoning import with_reasoning
from pipeline.output.rows import schema_of_questions
from pipeline.output.table import check_columns
from pipeline.stages.pools import Pools
from pipeline.storage.storage import Storage
from schemas.errors import ResourceError
from schemas.job.job import Job
from schemas.job.limits import OnFinish


def job_findings(
    job: Job, storage: Storage, *, has_machines: bool
) -> tuple[list[Finding], Pools | None]:
    """Call the checks with which a run begins, each for itself.

    has_machines: False if the machines are not known, since the cluster does not answer.

    Returns the findings, and how the job's actors fit into the machines, if they do.
    """
    pools: list[Pools] = []
    checks: list[tuple[str, bool, Callable[[], str]]] = [
        ("actors", has_machines, lambda: _check_actors(job, pools)),
        ("answers", True, lambda: _check_answers(job)),
        ("shots", job.sampling.segmentation.kind == "shots", _check_shots),
        ("on_finish", job.on_finish != OnFinish(), lambda: _check_on_finish(job)),
        ("columns", bool(schema_of_questions(job.questions())), lambda: _columns(job, storage)),
    ]
    found = [checked("job", name, check) for name, concerns, check in checks if concerns]
    return found, pools[0] if pools else None


def _check_actors(job: Job, pools: list[Pools]) -> str:
    try:
        pools.append(fit_job(job))
    except ResourceError:
        if not job.resources.wait_seconds:
            raise
        return f"a run waits {job.resources.wait_seconds:g} s for nodes that it requests"
    there = nodes()
    cpus, gpus = (sum(node.get(kind, 0.0) for node in there) for kind in ("CPU", "GPU"))
    return f"they fit into {cpus:g} CPUs and {gpus:g} GPUs"


def _check_answers(job: Job) -> str:
    check_grammars(job)
    check_sampling(job)
    return "their schemas, if they have some, can be constrained to"


def _check_shots() -> str:
    check_shots()
    return "PySceneDetect is installed"


def _check_on_finish(job: Job) -> str:
    check_on_finish(job.on_finish)
    return "its program or address is there"


def _columns(job: Job, storage: Storage) -> str:
    check_columns(schema_of_questions(job.questions()), job.output, storage)
    return "the output's table takes them"


def assumed(job: Job, found: Found | None, pools: Pools | None) -> list[Finding]:
    """List the values of settings that the job leaves to the machines or the checkpoint."""
    values = dict(_of_machines(job, pools)) if pools is not None else {}
    if found is not None:
        values |= dict(assumed_of_model(job, found))
        values |= dict(_of_generation(job, found))
    return [finding("assumed", name, State.OK, f"{value}") for name, value in values.items()]


def _of_machines(job: Job, pools: Pools) -> Iterator[tuple[str, Any]]:
    for name in ("replicas", "gpus_per_replica", "cpus_per_replica", "decoders"):
        if getattr(job.resources, name) == "auto":
            yield f"resources.{name}", f"{getattr(pools, name):g}"
    if job.model.device == "auto":
        yield "model.device", "cuda" if pools.gpus_per_replica else "cpu"
    if job.sampling.decoder == "auto":
        yield "sampling.decoder", "pyav"


def _of_generation(job: Job, found: Found) -> Iterator[tuple[str, Any]]:
    filled = with_generation_defaults(
        with_reasoning(job, found.prompter.template_reasoning),
        found.checkpoint,
        is_thinking=found.prompter.expects_reasoning,
    )
    given = job.generation.model_dump()
    for name, value in filled.generation.model_dump().items():
        if value != given[name]:
            yield f"generation.{name}", value
