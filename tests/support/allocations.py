"""Count the memory that torch's allocator on the CPU hands out."""

from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


def peak_bytes(function: Callable[[], Any]) -> tuple[int, int]:
    """Run a function in inference mode.

    Returns the bytes that it had allocated at the most at a time, and those that it left.
    """
    with (
        torch.inference_mode(),
        profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found,
    ):
        kept = function()
    total = peak = 0
    assert found.profiler is not None
    for event in found.profiler.kineto_results.events():
        if event.name() == "[memory]":
            total += event.nbytes()
            peak = max(peak, total)
    del kept
    return peak, total
