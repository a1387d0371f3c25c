"""The Ray session of a job, and how its actors fit into the cluster."""

import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console

from pipeline.build import Pools
from schemas.errors import ResourceError, UserError
from schemas.job import Job, Resources


@contextmanager
def connected(job: Job, console: Console) -> Iterator[None]:
    """Connect to the cluster at RAY_ADDRESS, or start Ray on this machine.

    A session that is there already is used and left as it is.

    Raises:
        ResourceError: the cluster does not answer.
    """
    import ray

    own = not ray.is_initialized()
    if own:
        console.print("starting Ray", style="dim")
        start_ray()
    _quiet_ray_data()
    try:
        yield
    finally:
        if own:
            ray.shutdown()


def start_ray(**options: Any) -> None:
    """Start or join Ray, without its banner and without the workers' logs on the console.

    Raises:
        ResourceError: the cluster at RAY_ADDRESS does not answer.
    """
    import ray

    try:
        ray.init(
            logging_level=logging.ERROR,
            log_to_driver=False,
            include_dashboard=False if not os.environ.get("RAY_ADDRESS") else None,
            **options,
        )
    except (ConnectionError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ResourceError(f"cannot start or join Ray: {reason}") from None


def _quiet_ray_data() -> None:
    """Our own progress is shown, so Ray Data's is not."""
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def plan_actors(num_items: int) -> int:
    """Actors for planning: one for each CPU, if there are items enough to pay for their start."""
    import ray

    cpus = int(ray.cluster_resources().get("CPU", 1))
    return max(1, min(cpus, math.ceil(num_items / 256)))


def pools(resources: Resources) -> Pools:
    """Fit the job's actors into the cluster.

    Raises:
        ResourceError: they do not fit: Ray would wait for ever without a word.
    """
    import ray

    have = ray.cluster_resources()
    return fit_pools(resources, have.get("CPU", 0.0), have.get("GPU", 0.0))


def fit_pools(resources: Resources, cpus: float, gpus: float) -> Pools:
    """Fit the job's actors into so many CPUs and GPUs.

    Raises:
        ResourceError: they do not fit.
    """
    gpus_each = resources.gpus_per_replica
    if gpus_each == "auto":
        gpus_each = 1.0 if gpus >= 1 else 0.0
    replicas = resources.replicas
    if replicas == "auto":
        replicas = int(gpus // gpus_each) if gpus_each else 1
    left = cpus - replicas * resources.cpus_per_replica
    decoders = resources.decoders
    if decoders == "auto":
        decoders = max(1, int(left // resources.cpus_per_decoder))
    need_cpus = replicas * resources.cpus_per_replica + decoders * resources.cpus_per_decoder
    if need_cpus > cpus + 1e-6 or replicas * gpus_each > gpus + 1e-6:
        raise ResourceError(
            f"{replicas} engine replicas of {resources.cpus_per_replica} CPUs and {gpus_each} GPUs and "
            f"{decoders} decoders of {resources.cpus_per_decoder} CPUs do not fit into the cluster's "
            f"{cpus:g} CPUs and {gpus:g} GPUs: lower resources.replicas, decoders, cpus_per_replica or "
            "cpus_per_decoder"
        )
    return Pools(
        decoders=decoders,
        cpus_per_decoder=resources.cpus_per_decoder,
        replicas=replicas,
        cpus_per_replica=resources.cpus_per_replica,
        gpus_per_replica=float(gpus_each),
    )


@contextmanager
def actor_errors() -> Iterator[None]:
    """Let a UserError that stopped an actor's start reach the user as itself.

    Raises:
        UserError: as raised in the actor.
    """
    import ray

    try:
        yield
    except ray.exceptions.RayError as error:
        for cause in _chain(error):
            if isinstance(cause, UserError):
                raise cause from None
        raise


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = getattr(error, "cause", None) or error.__cause__ or error.__context__
