"""Facts that differ between the model types that Reelscribe runs, read from a configuration.

The types share Qwen3-VL's processors: patches, sizes, prompts and positions do not differ.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

LayerKind = Literal["full", "linear"]


@dataclass(frozen=True, kw_only=True)
class _Defaults:
    """What a type's configuration class fills in, and what no configuration says.

    deepstack: DeepStack layers if the configuration does not list them; None: the type has none,
        whatever it lists.
    full_interval: every how manieth layer is a full one; 1: all.
    """

    is_moe: bool
    deepstack: int | None = None
    full_interval: int = 4
    is_indexed: bool = False


_DEFAULTS = {
    "qwen3_vl": _Defaults(is_moe=False, deepstack=3, full_interval=1),
    "qwen3_vl_moe": _Defaults(is_moe=True, deepstack=3, full_interval=1),
    "qwen3_5": _Defaults(is_moe=False),
    "qwen3_5_moe": _Defaults(is_moe=True),
    "qwen4_exp": _Defaults(is_moe=True, is_indexed=True),
}

MODEL_TYPES = tuple(_DEFAULTS)
"""``model_type`` of the configurations that Reelscribe runs."""

PUBLISHED_NAMES = "Qwen3-VL, Qwen3.5, Qwen3.6 and Qwen3.8"
"""Checkpoints of these types, for messages."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """Facts of one checkpoint's model.

    deepstack: layers of the vision tower whose features enter the first text layers, beside those
        of its last one; 0: none.
    layer_kinds: of each text layer. "full" attends to all tokens before, and keeps the keys and
        values of each. "linear" (gated delta net) keeps one state of a fixed size instead. A mask
        cannot keep branches apart in it.
    is_indexed: full layers choose the tokens that they attend to, by one more key of each.
    context: tokens that it is made for; None: the configuration does not say.
    """

    model_type: str
    is_moe: bool
    deepstack: int
    layer_kinds: tuple[LayerKind, ...]
    is_indexed: bool
    context: int | None

    @property
    def is_hybrid(self) -> bool:
        """Whether some layers are linear."""
        return "linear" in self.layer_kinds


def family_of(config: Mapping[str, Any]) -> Family:
    """Read the facts from a configuration, as ``config.json`` or ``to_dict()`` has it.

    Raises:
        KeyError: the type is none of MODEL_TYPES, or the number of layers is missing, which
            transformers' configuration class fills in.
    """
    model_type = config["model_type"]
    defaults = _DEFAULTS[model_type]
    text, vision = config["text_config"], config.get("vision_config") or {}
    deepstack = 0
    if defaults.deepstack is not None:
        listed = vision.get("deepstack_visual_indexes")
        deepstack = defaults.deepstack if listed is None else len(listed)
    return Family(
        model_type=model_type,
        is_moe=defaults.is_moe,
        deepstack=deepstack,
        layer_kinds=_layer_kinds(text, defaults.full_interval),
        is_indexed=defaults.is_indexed,
        context=text.get("max_position_embeddings"),
    )


def _layer_kinds(text: Mapping[str, Any], default_interval: int) -> tuple[LayerKind, ...]:
    if default_interval == 1:
        return ("full",) * int(text["num_hidden_layers"])
    listed = text.get("layer_types")
    if listed is not None:
        return tuple("linear" if kind == "linear_attention" else "full" for kind in listed)
    interval = text.get("full_attention_interval") or default_interval
    layers = range(1, int(text["num_hidden_layers"]) + 1)
    return tuple("linear" if k % interval else "full" for k in layers)
