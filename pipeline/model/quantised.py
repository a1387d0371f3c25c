"""What a checkpoint's configuration says of its quantised weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_GROUP_SIZE = 128
_SCALE_BITS = 16


@dataclass(frozen=True, kw_only=True)
class Quantised:
    """How the projections of the language model are quantised.

    bits: of a weight, with its share of the scale and the zero of its group; None: not known.
    """

    method: str
    bits: float | None = None


def quantised(config: Mapping[str, Any]) -> Quantised | None:
    """Read how a checkpoint's weights are quantised; None: they are not.

    config: of its ``config.json``.
    """
    places = (config, config.get("text_config") or {})
    for key in ("quantization_config", "compression_config"):
        for found in (place.get(key) for place in places):
            if isinstance(found, Mapping):
                method = str(found.get("quant_method") or "a method that is not named")
                return Quantised(method=method, bits=_bits(found, method))
    return None


def _bits(config: Mapping[str, Any], method: str) -> float | None:
    if method == "compressed-tensors":
        # Parts of a model with different widths: the widest counts.
        groups = (config.get("config_groups") or {}).values()
        weights = [group.get("weights") or {} for group in groups if isinstance(group, Mapping)]
        found = [_with_scale(some.get("num_bits"), some.get("group_size") or 0) for some in weights]
        known = [bits for bits in found if bits is not None]
        return max(known) if known and len(known) == len(found) else None
    if method in ("awq", "gptq"):
        bits = config.get("bits") or config.get("w_bit")
        return _with_scale(bits, config.get("group_size") or config.get("q_group_size"))
    return None


def _with_scale(bits: Any, group_size: Any) -> float | None:
    """group_size: weights with a scale and a zero in common; 0 or -1: a row, which counts not."""
    if not isinstance(bits, int) or bits < 1:
        return None
    size = group_size if isinstance(group_size, int) else _GROUP_SIZE
    return bits + ((_SCALE_BITS + bits) / size if size > 0 else 0.0)
