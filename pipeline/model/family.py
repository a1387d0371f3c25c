"""Facts that differ between checkpoints, read from a configuration: type, quantisation, processors.

The model types share Qwen3-VL's processors: patches, sizes, prompts and positions do not differ.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.model.frame_size import (
    MERGE_SIZE,
    PATCH_SIZE,
    PIXEL_MEAN,
    PIXEL_STD,
    TEMPORAL_PATCH_SIZE,
    TOKEN_PIXELS,
)
from schemas.job.sampling import Budget

LayerKind = Literal["full", "linear"]

_GROUP_SIZE = 128
_SCALE_BITS = 16


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


@dataclass(frozen=True, kw_only=True)
class Family:
    """Facts of one checkpoint's model.

    deepstack: layers of the vision tower whose features enter the first text layers, beside those
        of its last one; 0: none.
    layer_kinds: of each text layer. "full" attends to all tokens before, and keeps the keys and
        values of each. "linear" (gated delta net) keeps one state of a fixed size instead. A mask
        cannot keep branches apart in it.
    is_gated: attention has a gate, and experts one that all tokens use: all types but Qwen3-VL.
    is_indexed: full layers choose the tokens that they attend to, by one more key of each.
    context: tokens that it is made for; None: the configuration does not say.
    """

    model_type: str
    is_moe: bool
    deepstack: int
    layer_kinds: tuple[LayerKind, ...]
    is_gated: bool
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
        is_gated=defaults.full_interval > 1,
        is_indexed=defaults.is_indexed,
        context=text.get("max_position_embeddings"),
    )


def _layer_kinds(text: Mapping[str, Any], default_interval: int) -> tuple[LayerKind, ...]:
    if default_interval == 1:
        return (_kind(False),) * int(text["num_hidden_layers"])
    listed = text.get("layer_types")
    if listed is None:
        interval = text.get("full_attention_interval") or default_interval
        layers = range(1, int(text["num_hidden_layers"]) + 1)
        return tuple(_kind(k % interval != 0) for k in layers)
    return tuple(_kind(name == "linear_attention") for name in listed)


def _kind(is_linear: bool) -> LayerKind:
    return "linear" if is_linear else "full"


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


PROCESSOR_FILES = {"image": "preprocessor_config.json", "video": "video_preprocessor_config.json"}
"""Files of a checkpoint's processors, where ``processor_config.json`` does not have them."""

_PATCHES: dict[str, float] = {
    "patch_size": PATCH_SIZE,
    "merge_size": MERGE_SIZE,
    "spatial_merge_size": MERGE_SIZE,
    "temporal_patch_size": TEMPORAL_PATCH_SIZE,
}
_COMPUTED: dict[str, float] = _PATCHES | {
    "image_mean": PIXEL_MEAN,
    "image_std": PIXEL_STD,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
}


@dataclass(frozen=True, kw_only=True)
class Processors:
    """What the processors that come with a checkpoint take at most; None: their files do not say.

    image_tokens: of an image. clip_tokens: of a video as a whole.
    """

    image_tokens: int | None = None
    clip_tokens: int | None = None

    @classmethod
    def of(cls, files: Mapping[str, Any]) -> "Processors":
        """Read them from the processors' configurations, by "image" and "video"."""
        image, video = (_max_pixels(files.get(kind)) for kind in ("image", "video"))
        return cls(
            image_tokens=image // TOKEN_PIXELS if image else None,
            clip_tokens=video // (TOKEN_PIXELS * TEMPORAL_PATCH_SIZE) if video else None,
        )

    def exceeded(self, budget: Budget) -> Iterator[str]:
        """What a job's budget allows beyond them, a sentence each.

        A video only under the rule of these processors: the makers' other code has its own limits.
        """
        given = {"budget.image_tokens[1]": (budget.image_tokens[1], self.image_tokens, "an image")}
        if budget.video_rule == "per_clip":
            given["budget.unit_tokens"] = (budget.unit_tokens, self.clip_tokens, "a video")
        for key, (allowed, known, what) in given.items():
            if known is not None and allowed > known:
                yield (
                    f"{key} is {allowed:,}, and the checkpoint's own processor gives {what} at "
                    f"most {known:,} tokens: larger ones may be unknown to the model"
                )


def other_patches(config: Mapping[str, Any], files: Mapping[str, Any]) -> Iterator[str]:
    """How a checkpoint's patches differ from those that are computed here, for a message.

    config: of its ``config.json``. files: its processors' configurations, by "image" and "video".
    """
    vision = config.get("vision_config")
    places = [("config.json", vision, _PATCHES)]
    places += [(PROCESSOR_FILES[kind], found, _COMPUTED) for kind, found in files.items()]
    for name, found, computed in places:
        if isinstance(found, Mapping):
            for key, ours in computed.items():
                if found.get(key) is not None and not _is_equal(found[key], ours):
                    yield f"{key} is {found[key]} by its {name}, and {ours:.3g} is computed"


def _max_pixels(config: Any) -> int | None:
    """A processor's maximum, in pixels; older files have ``max_pixels``, which comes first."""
    if not isinstance(config, Mapping):
        return None
    size = config.get("size")
    given = config.get("max_pixels") or (size.get("longest_edge") if isinstance(size, dict) else 0)
    return given if isinstance(given, int) and given > 0 else None


def _is_equal(value: Any, number: float) -> bool:
    """Whether a value, or each of a list, is a number."""
    values = value if isinstance(value, list | tuple) else [value]
    return all(isinstance(v, int | float) and math.isclose(v, number, rel_tol=1e-4) for v in values)
