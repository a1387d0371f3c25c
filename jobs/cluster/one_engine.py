"""One engine alone, to measure it: in a process of its own, or on Ray."""

import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pyarrow as pa
from rich.console import Console

from jobs.cluster.engine_choice import check_vllm_here
from jobs.cluster.session import actor_errors, fit_job, fitted_pools, ray_session
from jobs.cluster.small import early_engine, why_ray
from pipeline.stages.generate import Generate
from pipeline.stages.graph import running_engine
from pipeline.stages.pools import Pools
from pipeline.workers.code_version import code_digest
from schemas.job.job import Job

Answer = Callable[[pa.Table], pa.Table]


@contextmanager
def one_engine(job: Job, num_items: int, console: Console) -> Iterator[tuple[str, Answer]]:
    """Start one engine; yields its device, such as ``1 x NVIDIA H100``, and a function.

    The function takes PREPARED units and returns ANSWERED ones.

    Raises:
        UserError: the engine does not start, or the cluster does not work.
    """
    check_vllm_here(job)
    if why_ray(job, num_items, "items") is None:
        with early_engine(job) as engine:
            assert engine is not None
            pools = fit_job(job)
            engine.open(Generate, job=job, code=code_digest(), cpus=pools.cpus_per_replica)
            yield _device(pools), engine
        return
    import ray

    with ray_session(console), actor_errors(), fitted_pools(job) as pools:
        options = {"num_cpus": pools.cpus_per_replica, "num_gpus": pools.gpus_per_replica}
        device = ray.get(ray.remote(_device).options(**options).remote(pools))
        with running_engine(job, pools) as actor:
            yield device, lambda units: ray.get(actor.__call__.remote(units))


def _device(pools: Pools) -> str:
    if pools.gpus_per_replica:
        import torch

        return f"{pools.gpus_per_replica:g} x {torch.cuda.get_device_name(0)}"
    return f"{pools.cpus_per_replica:g} CPU of {platform.machine()}"
