"""Choose what ``auto`` means for a training's workers, from the machines of the Ray session."""

from collections.abc import Mapping

from jobs.cluster import machines
from schemas.errors import ResourceError
from schemas.job.finetune import FinetuneJob

_MAX_CPUS = 9
"""CPUs of a worker with a GPU: eight data loaders decode a minute of video at 1080p in about two
seconds, which is less than a training step on it takes."""


def placed(job: FinetuneJob, before: int | None = None) -> FinetuneJob:
    """Return the job with numbers in place of ``auto``, for the machines that are there now.

    before: workers of the training that is to be continued; ``auto`` means as many.

    Raises:
        ResourceError: the workers do not fit into the cluster.
    """
    nodes = machines.nodes()
    num_gpus = int(sum(node.get("GPU", 0) for node in nodes))
    wanted = job.resources
    use_gpu = num_gpus >= 1 if wanted.use_gpu == "auto" else wanted.use_gpu
    found = before or (max(1, num_gpus) if use_gpu else 1)
    num_workers = found if wanted.num_workers == "auto" else wanted.num_workers
    cpus = wanted.cpus_per_worker
    if cpus == "auto":
        cpus = _share_of_cpus(nodes, num_workers, use_gpu=use_gpu)
    if num_workers > sum(_num_places(node, cpus, use_gpu=use_gpu) for node in nodes):
        num_cpus = sum(node.get("CPU", 0) for node in nodes)
        remedy = "lower resources.num_workers or resources.cpus_per_worker"
        if before and wanted.num_workers == "auto":
            remedy = (
                "the training that the output folder holds has as many, on which the order of its "
                "data depends; continue it where they fit, or set another output"
            )
        raise ResourceError(
            f"{describe(num_workers, cpus, use_gpu=use_gpu)} do not fit into the cluster's "
            f"{num_cpus:g} CPUs and {num_gpus:g} GPUs on {len(nodes)} machines: {remedy}"
        )
    loaders = job.training.dataloader_num_workers
    if loaders == "auto":
        loaders = max(1, int(cpus) - 1)
    resources = {"num_workers": num_workers, "cpus_per_worker": cpus, "use_gpu": use_gpu}
    training = job.training.model_copy(update={"dataloader_num_workers": loaders})
    return job.model_copy(
        update={"resources": wanted.model_copy(update=resources), "training": training}
    )


def describe(num_workers: int, cpus: float, *, use_gpu: bool) -> str:
    """Name the workers in a message: "8 workers of 9 CPUs and a GPU"."""
    return f"{num_workers} workers of {cpus:g} CPUs{' and a GPU' if use_gpu else ''}"


def _share_of_cpus(nodes: list[Mapping[str, float]], num_workers: int, *, use_gpu: bool) -> float:
    """Whole CPUs for each worker; of a machine with GPUs, those for one of its GPUs."""
    if not use_gpu:
        share = int(max((node.get("CPU", 0) for node in nodes), default=1))
        while share > 1 and sum(_num_places(n, share, use_gpu=False) for n in nodes) < num_workers:
            share -= 1
        return float(max(1, share))
    shares = [int(node.get("CPU", 0) // node["GPU"]) for node in nodes if node.get("GPU", 0) >= 1]
    return float(min(_MAX_CPUS, max(1, min(shares, default=1))))


def _num_places(node: Mapping[str, float], cpus: float, *, use_gpu: bool) -> int:
    """How many workers fit on a machine; none is spread over two."""
    places = int(node.get("CPU", 0) / cpus + 1e-9)  # 1 / 0.1 is a little below 10
    return min(places, int(node.get("GPU", 0))) if use_gpu else places


def gpu_names() -> list[str]:
    """Names of the cluster's GPUs, as Ray knows them."""
    return sorted({str(machine["gpu"]) for machine in machines.machines() if "gpu" in machine})
