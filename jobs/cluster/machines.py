"""The machines of the Ray session, for ``run.json``."""

from collections import Counter
from typing import Any

_GIB = 2**30


def machines() -> list[dict[str, Any]]:
    """Return the machines that are in the session now: alike ones once, with their number.

    Keys: ``num``, ``cpus``, ``gpus``, ``memory_gib``, and ``gpu`` with its name if there is one.
    """
    import ray

    kinds = Counter(_kind(node["Resources"]) for node in ray.nodes() if node["Alive"])
    names = ("cpus", "gpus", "memory_gib", "gpu")
    return [
        {"num": count} | {k: v for k, v in zip(names, kind, strict=True) if v is not None}
        for kind, count in sorted(kinds.items(), key=str)
    ]


def _kind(resources: dict[str, float]) -> tuple[float, float, int, str | None]:
    gpu = [name for name in resources if name.startswith("accelerator_type:")]
    return (
        resources.get("CPU", 0.0),
        resources.get("GPU", 0.0),
        round(resources.get("memory", 0.0) / _GIB),
        gpu[0].partition(":")[2] if gpu else None,
    )
