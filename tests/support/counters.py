"""Count what a call does on a device: peak memory, synchronisations, operations.

By torch's own counters: the allocator and ``set_sync_debug_mode`` on a GPU, the profiler on a CPU.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

_WAITS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::lift_fresh")
"""Operations for which the host waits on a GPU: read a number, count, send numbers from Python."""


@dataclass(frozen=True, kw_only=True)
class Counted:
    """What a call did.

    num_waits: how often the host waited for the device. On a CPU: operations that wait on a GPU,
        without reading whole tensors.
    num_launches: of kernels and graphs; on a CPU: operations dispatched, also those inside others.
    """

    num_waits: int
    num_launches: int


def count(device: torch.device, call: Callable[[], Any]) -> Counted:
    """Count waits and launches of a call, which is made once, on a GPU twice."""
    is_cuda = device.type == "cuda"
    waits = _cuda_waits(call) if is_cuda else 0
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_cuda else [])]
    with profile(activities=activities) as profiler:
        call()
        if is_cuda:
            torch.cuda.synchronize()
    names = [event.name for event in profiler.events() or ()]
    if is_cuda:
        launches = sum("LaunchKernel" in name or "GraphLaunch" in name for name in names)
        return Counted(num_waits=waits, num_launches=launches)
    return Counted(
        num_waits=sum(name in _WAITS for name in names),
        num_launches=sum(name.startswith("aten::") for name in names),
    )


def _cuda_waits(call: Callable[[], Any]) -> int:
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("called a synchronizing" in str(warning.message) for warning in caught)


def allocated_peak(call: Callable[[], Any]) -> tuple[int, Any]:
    """Count what torch's allocator on the CPU hands out during a call.

    Returns the most bytes at a time, beyond those before, and the call's result.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = call()
    assert profiler.profiler is not None
    events = profiler.profiler.kineto_results.events()
    changes = [event for event in events if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak, result


def peak_bytes(device: torch.device, held: int, call: Callable[[], Any]) -> int:
    """Peak memory of a call, in bytes, with ``held`` bytes that it began with on a CPU.

    held: of the model, which the profiler does not see. A GPU's allocator counts it.
    """
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()
    return held + allocated_peak(call)[0]


def tensor_bytes(model: torch.nn.Module) -> int:
    """Bytes of a model's parameters and buffers; shared ones count once."""
    tensors = [*model.parameters(), *model.buffers()]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())
