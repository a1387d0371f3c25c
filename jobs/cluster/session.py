"""The Ray session of a job, and how its actors fit into the cluster."""

import dataclasses
import logging
import math
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Literal

import pyarrow as pa
from rich.console import Console

from jobs.cluster import machines
from jobs.cluster.fit import fit_pools, total
from jobs.cluster.start import on_this_machine, start_ray
from pipeline.stages.pools import Pools
from schemas import errors
from schemas.errors import ResourceError
from schemas.job.job import Job
from schemas.job.resources import Resources

logger = logging.getLogger(__name__)

_REQUESTED_CPUS = 1.0
"""Of an engine on a cluster that grows, unless the job says it: later nodes are not known."""


@contextmanager
def ray_session(console: Console) -> Iterator[None]:
    """Connect to the cluster at RAY_ADDRESS, or start Ray on this machine.

    If this process has a session, it is used and left running.

    Raises:
        ResourceError: the cluster does not answer.
    """
    import ray

    own = not ray.is_initialized()
    if own:
        where = f"connecting to the Ray cluster at {os.environ.get('RAY_ADDRESS')}"
        console.print("starting Ray" if on_this_machine() else where, style="dim")
        start_ray()
    _set_up_ray_data()
    try:
        yield
    except KeyboardInterrupt:
        if own:
            console.print("stopping Ray; committed rows are kept", style="dim")
        raise
    finally:
        if own:
            ray.shutdown()


def _set_up_ray_data() -> None:
    """Turn off Ray Data's progress bars, since the run has its own, and its limit of idle time.

    Ray Data ends an execution after 30 minutes in which no block moved. Engines may load longer,
    and ``Guard`` limits their time.
    """
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = -1
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # its errors reach us as exceptions


def plan_actors(num_items: int, resources: Resources | None = None) -> int:
    """Number of actors for planning: one per CPU, but fewer if there are few items.

    resources: of a job. On a cluster that grows, as many actors as decoders, so that their nodes
        start now.
    """
    import ray

    cpus = int(ray.cluster_resources().get("CPU", 1))
    if resources and resources.wait_seconds and resources.decoders != "auto":
        cpus = max(cpus, int(resources.decoders * resources.cpus_per_decoder))
    return max(1, min(cpus, math.ceil(num_items / 256)))


@contextmanager
def fitted_pools(job: Job) -> Iterator[Pools]:
    """Fit the job's actors into the cluster; wait for nodes as long as the job allows.

    On a cluster that grows, one engine and one decoder are enough to begin: the others are used as
    soon as their nodes are there. Nodes that were requested from the autoscaler are released at the
    end.

    Raises:
        ResourceError: they do not fit; Ray itself would wait for ever.
    """
    from ray.autoscaler.sdk import request_resources

    deadline = time.monotonic() + job.resources.wait_seconds
    try:
        fitted: Pools | None = fit_job(job)
    except ResourceError:
        if not job.resources.wait_seconds:
            raise
        fitted = None
    if fitted is not None:
        yield fitted
        return
    request_resources(bundles=_bundles(job))
    try:
        while (fitted := _fitting_by(job, deadline)) is None:
            time.sleep(min(2.0, job.resources.wait_seconds))
        yield fitted
    finally:  # else the nodes would stay as long as the cluster
        request_resources(bundles=[])


def check_fits(job: Job) -> None:
    """Check before planning that the actors fit; not for a cluster that grows.

    Raises:
        ResourceError: the job's actors do not fit.
    """
    if not job.resources.wait_seconds:
        fit_job(job)


def _fitting_by(job: Job, deadline: float) -> Pools | None:
    """The pools with which the job can begin; None if there are none and the deadline is not over.

    All engines are in them, also those that do not fit yet, but only the decoders that fit beside
    the others: more would take the CPUs of engines that are about to come.
    """
    try:
        return fit_job(job)
    except ResourceError:
        given = job.resources
        assert given.replicas != "auto" and given.decoders != "auto"
        for replicas in range(given.replicas, 0, -1):
            with suppress(ResourceError):
                fit_job(_with_actors(job, replicas, 1))
                now = fit_job(_with_actors(job, replicas, "auto"))
                logger.warning(
                    "%d of %d engines fit into the cluster now, with %d decoders: the run begins, "
                    "and uses the others as soon as their nodes are there",
                    *(replicas, given.replicas, min(now.decoders, given.decoders)),
                )
                return dataclasses.replace(
                    now,
                    replicas=given.replicas,
                    decoders=min(now.decoders, given.decoders),
                    max_decoders=given.decoders,
                )
        if time.monotonic() > deadline:
            raise
    return None


def _with_actors(job: Job, replicas: int, decoders: int | Literal["auto"]) -> Job:
    """The job with other numbers of actors; the CPUs of an engine are those that are requested."""
    update: dict[str, Any] = {"replicas": replicas, "decoders": decoders}
    if job.resources.cpus_per_replica == "auto":
        update["cpus_per_replica"] = _REQUESTED_CPUS
    return job.model_copy(update={"resources": job.resources.model_copy(update=update)})


def _bundles(job: Job) -> list[dict[str, float]]:
    """The resources of all actors, as the autoscaler takes them."""
    resources = _known_gpus(job, has_gpus=False)
    replicas = 1 if resources.replicas == "auto" else resources.replicas
    decoders = 1 if resources.decoders == "auto" else resources.decoders
    gpus = 0.0 if resources.gpus_per_replica == "auto" else resources.gpus_per_replica
    given = resources.cpus_per_replica
    cpus = _REQUESTED_CPUS if given == "auto" else given
    engine = {"CPU": cpus} | ({"GPU": gpus} if gpus else {})
    return [engine] * replicas + [{"CPU": resources.cpus_per_decoder}] * decoders


def fit_job(job: Job) -> Pools:
    """Fit the job's actors into the machines that are there now.

    Raises:
        ResourceError: they do not fit.
    """
    nodes = machines.nodes()
    gpus = total("GPU", nodes)
    if job.model.device == "cuda" and gpus < 1:
        raise ResourceError("model.device is cuda, but the cluster has no GPU: set auto or cpu")
    resources = _known_gpus(job, has_gpus=gpus >= 1)
    if job.model.engine == "simulated" and resources.cpus_per_replica == "auto":
        resources = resources.model_copy(update={"cpus_per_replica": 1.0})  # it only sleeps
    if job.model.device == "cpu" or job.model.engine == "simulated":
        nodes = [{"CPU": node.get("CPU", 0.0)} for node in nodes]
    # vLLM schedules in a process of its own, and has one for each of several GPUs; patches and
    # hashes of a 60 s clip take half a CPU second.
    cpus_with_gpu = 2.0 + job.model.vllm.gpus if job.model.engine == "vllm" else 1.0
    return fit_pools(resources, nodes, cpus_with_gpu)


def _known_gpus(job: Job, *, has_gpus: bool) -> Resources:
    """The job's resources, with the GPUs of a replica where these follow from the model.

    has_gpus: the cluster has some now; one that grows will have those that are requested.
    """
    resources, is_growing = job.resources, job.resources.wait_seconds > 0
    given = resources.gpus_per_replica
    if job.model.device == "cpu" or job.model.engine == "simulated":
        return resources
    if job.model.engine == "vllm" and (has_gpus or (is_growing and given != 0)):
        return resources.model_copy(update={"gpus_per_replica": _gpus_of_vllm(job)})
    if given == "auto" and is_growing and job.model.device == "cuda":
        return resources.model_copy(update={"gpus_per_replica": 1.0})
    return resources


def _gpus_of_vllm(job: Job) -> int:
    needed, given = job.model.vllm.gpus, job.resources.gpus_per_replica
    if given not in ("auto", needed):
        raise ResourceError(
            f"resources.gpus_per_replica is {given:g}, but model.vllm shares the model out over "
            f"{needed} (tensor_parallel_size x pipeline_parallel_size): leave it at auto"
        )
    return needed


def tables_of(dataset: Any) -> Iterator[pa.Table]:
    """Run a lazy Ray Dataset, and yield its tables as they are done.

    Raises:
        UserError: as raised in an actor.
        ResourceError: an actor's process died repeatedly.
    """
    with actor_errors():
        yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)


@contextmanager
def actor_errors() -> Iterator[None]:
    """Raise a UserError that stopped an actor as itself.

    Raises:
        UserError: as raised in the actor.
        ResourceError: an actor's process died repeatedly.
    """
    import ray

    try:
        yield
    except (ray.exceptions.RayTaskError, ray.exceptions.RayActorError) as error:
        # Ray keeps only the text of the traceback of an actor's error.
        found = re.search(
            r"^schemas\.errors\.(\w+): (.+?)(?:\n\n|\Z)", str(error), re.MULTILINE | re.DOTALL
        )
        kind = getattr(errors, found[1], None) if found else None
        if found and isinstance(kind, type) and issubclass(kind, errors.UserError):
            raise kind(found[2].strip()) from None
        died = isinstance(error, ray.exceptions.RayActorError) and not error.actor_init_failed
        if not died:
            raise
        raise ResourceError(
            "a worker process died again and again: out of memory, or a file that crashes its "
            "decoder; committed rows are kept, and the same command continues from them. Ray "
            f"says: {' '.join(str(error).split())[:500]}"
        ) from None
