"""Check what else the job needs before it starts, and list what its open settings become."""

from collections.abc import Callable, Iterator
from typing import Any

from jobs.cluster.machines import nodes
from jobs.cluster.session import check_fits, fit_job
from jobs.doctor.finding import Finding, State, checked, finding
from jobs.doctor.model import Found, assumed_of_model
from jobs.run.on_finish import check_on_finish
from pipeline.engines.answer_schema import check_grammars
from pipeline.media.shots import check_shots
from pipeline.model.checkpoint import with_generation_defaults
from pipeline.output.rows import schema_of_questions
from pipeline.output.table import check_columns
from pipeline.storage.storage import Storage
from schemas.errors import ResourceError
from schemas.job.job import Job
from schemas.job.limits import OnFinish


def job_findings(job: Job, storage: Storage, *, has_machines: bool) -> list[Finding]:
    """Call the checks with which a run begins, each for itself.

    has_machines: False if the machines are not known, since the cluster does not answer.
    """
    checks: list[tuple[str, bool, Callable[[], str]]] = [
        ("actors", has_machines, lambda: _check_actors(job)),
        ("answers", True, lambda: _check_grammars(job)),
        ("shots", job.sampling.segmentation.kind == "shots", _check_shots),
        ("on_finish", job.on_finish != OnFinish(), lambda: _check_on_finish(job)),
        ("columns", bool(schema_of_questions(job.questions())), lambda: _columns(job, storage)),
    ]
    return [checked("job", name, check) for name, concerns, check in checks if concerns]


def _check_actors(job: Job) -> str:
    check_fits(job)
    if job.resources.wait_seconds:
        return f"a run waits {job.resources.wait_seconds:g} s for nodes that it requests"
    there = nodes()
    cpus, gpus = (sum(node.get(kind, 0.0) for node in there) for kind in ("CPU", "GPU"))
    return f"they fit into {cpus:g} CPUs and {gpus:g} GPUs"


def _check_grammars(job: Job) -> str:
    check_grammars(job)
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


def assumed(job: Job, found: Found | None, *, has_machines: bool) -> list[Finding]:
    """List the values of settings that the job leaves to the machines or the checkpoint."""
    values = dict(_of_machines(job)) if has_machines else {}
    if found is not None:
        values |= dict(assumed_of_model(job, found))
        values |= dict(_of_generation(job, found))
    return [finding("assumed", name, State.OK, f"{value}") for name, value in values.items()]


def _of_machines(job: Job) -> Iterator[tuple[str, Any]]:
    resources = job.resources
    try:
        pools = fit_job(job)
    except ResourceError:  # which is a finding of its own, or the cluster is still growing
        return
    for name in ("replicas", "gpus_per_replica", "cpus_per_replica", "decoders"):
        if getattr(resources, name) == "auto":
            yield f"resources.{name}", f"{getattr(pools, name):g}"
    if job.model.device == "auto":
        yield "model.device", "cuda" if pools.gpus_per_replica else "cpu"
    if job.sampling.decoder == "auto":
        yield "sampling.decoder", "pyav"


def _of_generation(job: Job, found: Found) -> Iterator[tuple[str, Any]]:
    filled = with_generation_defaults(
        job, found.checkpoint, is_thinking=found.prompter.opens_reasoning
    )
    given = job.generation.model_dump()
    for name, value in filled.generation.model_dump().items():
        if value != given[name]:
            yield f"generation.{name}", value
