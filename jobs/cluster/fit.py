"""Fit decoders and engines into machines: how many, and the CPUs and GPUs of each."""

import math
from collections.abc import Mapping, Sequence

from pipeline.stages.pools import Pools
from schemas.errors import ResourceError
from schemas.job.resources import Resources


def fit_pools(
    resources: Resources, nodes: Sequence[Mapping[str, float]], cpus_with_gpu: float = 1.0
) -> Pools:
    """Fit the job's actors into nodes; an actor runs on one node.

    nodes: CPUs and GPUs of each node.
    cpus_with_gpu: what an engine with a GPU takes, or less where decoders need it, but at least 1.

    Raises:
        ResourceError: they do not fit.
    """
    cpus, gpus = total("CPU", nodes), total("GPU", nodes)
    usual = 1.0 if gpus >= 1 else 0.0
    gpus_each = usual if resources.gpus_per_replica == "auto" else resources.gpus_per_replica
    on_gpus = [_times(gpus_each, node.get("GPU", 0.0)) for node in nodes]
    max_replicas = max(1, sum(on_gpus)) if gpus_each else 1
    replicas = max_replicas if resources.replicas == "auto" else resources.replicas
    if resources.cpus_per_replica != "auto":
        cpus_each = resources.cpus_per_replica
    elif gpus_each:
        cpus_each = min(cpus_with_gpu, _spare_cpus(resources, nodes, replicas, on_gpus))
    else:
        cpus_each = _cpus_each(resources, nodes, replicas)
    left = cpus - replicas * cpus_each
    fitting = max(1, _times(resources.cpus_per_decoder, left))
    decoders = fitting if resources.decoders == "auto" else resources.decoders
    need_cpus = replicas * cpus_each + decoders * resources.cpus_per_decoder
    on_cpus = [_times(cpus_each, node.get("CPU", 0.0)) for node in nodes]
    places = sum(map(min, on_gpus, on_cpus)) if gpus_each else sum(on_cpus)
    if need_cpus > cpus + 1e-6 or replicas > places:
        of_nodes = f" on {len(nodes)} nodes, a replica on one of them" if len(nodes) > 1 else ""
        raise ResourceError(
            f"{replicas} engine replicas of {cpus_each:g} CPUs and {gpus_each:g} "
            f"GPUs and {decoders} decoders of {resources.cpus_per_decoder:g} CPUs do not fit into "
            f"the cluster's {cpus:g} CPUs and {gpus:g} GPUs{of_nodes}: lower resources.replicas, "
            "decoders, cpus_per_replica or cpus_per_decoder"
        )
    return Pools(
        decoders=decoders,
        cpus_per_decoder=resources.cpus_per_decoder,
        replicas=replicas,
        cpus_per_replica=cpus_each,
        gpus_per_replica=gpus_each,
    )


def _cpus_each(resources: Resources, nodes: Sequence[Mapping[str, float]], replicas: int) -> float:
    """CPUs of a replica without a GPU: at most three quarters of a node, without the decoders'."""
    decoders = 1 if resources.decoders == "auto" else resources.decoders
    left = total("CPU", nodes) - decoders * resources.cpus_per_decoder
    shares = [0.75 * node.get("CPU", 0.0) for node in nodes]
    max_cpus = math.floor(min(max(shares, default=0.0), left / replicas))
    fits = (
        cpus
        for cpus in range(max_cpus, 1, -1)
        if sum(share // cpus for share in shares) >= replicas
    )
    return float(next(fits, 1))


def _spare_cpus(
    resources: Resources,
    nodes: Sequence[Mapping[str, float]],
    replicas: int,
    on_gpus: Sequence[int],
) -> float:
    """Whole CPUs for each replica that its node and the decoders can spare, at least 1.

    on_gpus: number of replicas for which each node has GPUs.
    """
    half = [
        node.get("CPU", 0.0) / (2 * some) for node, some in zip(nodes, on_gpus, strict=True) if some
    ]
    left = total("CPU", nodes) / 2
    if resources.decoders != "auto":
        left = 2 * left - resources.decoders * resources.cpus_per_decoder
    return max(1.0, float(math.floor(min([left / replicas, *half]))))


def total(kind: str, nodes: Sequence[Mapping[str, float]]) -> float:
    """Sum of a resource of all nodes."""
    return sum(node.get(kind, 0.0) for node in nodes)


def _times(share: float, whole: float) -> int:
    """Number of shares in a whole: ten tenths, where ``1 // 0.1`` is nine."""
    return math.floor(whole / share + 1e-6) if share else 0
