"""All checks, by name."""

from collections.abc import Callable

import torch

from tests.gpu import answers, cost, inputs, training
from tests.gpu.figures import Figure, Place

CHECKS: dict[str, Callable[[Place], list[Figure]]] = {
    "inputs": inputs.inputs,
    "vision": answers.vision,
    "answers": answers.answers,
    "long_prefix": answers.long_prefix,
    "sampling": answers.sampling,
    "steps": cost.steps,
    "weights": cost.weights,
    "memory": cost.memory,
    "full_step": training.full_step,
    "lora_step": training.lora_step,
}

DTYPES = (torch.float32, torch.bfloat16)
CASES = [
    (name, dtype)
    for name in CHECKS
    for dtype in DTYPES
    if dtype == torch.float32 or name not in ("inputs", "weights")  # the same in both
]


def measure(name: str, place: Place) -> list[Figure]:
    """Run a check; float32 is float32, also in convolutions, where torch allows TF32 by default."""
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        return CHECKS[name](place)
    finally:
        torch.backends.cudnn.allow_tf32 = allowed
