"""What a check gives: figures, each with its limit."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a check runs, and how large it is.

    device: of the model under test; what it is compared with is on the CPU, in float32.
    dtype: of the model's weights and activations.
    is_small: seconds on two CPU cores, for the ordinary tests.
    folder: for files that a check writes.
    """

    device: torch.device
    dtype: torch.dtype
    is_small: bool
    folder: Path

    @property
    def dtype_name(self) -> str:
        """As in a job file."""
        return str(self.dtype).removeprefix("torch.")


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A measured value.

    minimum, maximum: what it must be; without both it is only reported.
    """

    what: str
    value: float
    minimum: float = -math.inf
    maximum: float = math.inf

    @property
    def is_right(self) -> bool:
        """Whether it is within its limits; NaN is not."""
        return self.minimum <= self.value <= self.maximum

    @property
    def wanted(self) -> str:
        """The limits in words."""
        limits = [
            f"{word} {limit:.4g}"
            for word, limit in (("min", self.minimum), ("max", self.maximum))
            if math.isfinite(limit)
        ]
        return ", ".join(limits) or "reported"


class NotHere(Exception):
    """A check cannot run on this machine; the message says what is missing."""
