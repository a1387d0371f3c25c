"""Predict the memory that a checkpoint takes: weights, cache, activations. No weights are needed.

The figures are bytes of tensors that are live at the same time in the engine on transformers, with
its default attention. Tests compare weights with a model on the meta device, and activations with
the count of torch's allocator on the CPU; nothing was compared with a GPU yet.
"""

import bisect
import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.model.family import quantised
from pipeline.model.frame_size import MERGE_SIZE
from pipeline.model.hybrid_sizes import in_chunks
from pipeline.model.sizes import PATCH_VALUES, ModelSize
from schemas.job.model import Model

PREFILL_CHUNK_TOKENS = 8192
"""Tokens that a forward pass of the language model takes at most: of one root, or of several."""

VISION_PASS_PATCHES = 32_768
"""Patches that a forward pass of the vision tower takes at most."""

START_ANSWER_TOKENS = 256
"""Length that answers reserve before any was generated, if they may be that long."""

CPU_BATCH_TOKENS = 16_384
"""Tokens of a batch that keeps a CPU busy: more of them gain nothing."""

CACHE_STEPS = 64
"""Decoding steps for which the cache gets room at a time."""

_SPARE_SHARE = 0.1
"""Share of a GPU's memory that is left: CUDA's context and libraries, fragments, one layer's cache
while it is enlarged."""

_CPU_SHARE = 0.25
"""Share of a machine's memory that the batches of its engine take: decoders run there, too."""

_VISION_WIDTHS = {2: 22.6, 4: 12.7}
"""Live values of a patch at a time, in widths of the vision tower, by bytes of a value: queries
and keys are rotated in float32, whatever the type. Counted with torch's profiler."""

_LOGIT_BYTES = 24
"""For each answer and entry of the vocabulary: logits, in float32 too, and what sampling sorts."""

_MAX_MASK = 2**28
"""Elements of the mask of a pass over suffixes at most."""

_FP8_SCALE_BYTES = 4 / 128**2
"""An FP8 checkpoint has a float32 for each 128 x 128 weights."""


@dataclass(frozen=True, kw_only=True)
class BatchShape:
    """The size of a batch: roots, each with its branches, padded to the longest.

    num_branches: the largest number of a root. suffix_tokens, answer_tokens: the longest, together
        padded. num_patches: of all images and videos together.
    """

    num_roots: int
    prefix_tokens: int
    num_branches: int
    suffix_tokens: int
    answer_tokens: int
    num_patches: int

    @property
    def prompt_tokens(self) -> int:
        """Tokens in the cache when the prompts are read."""
        return self.num_roots * (self.prefix_tokens + self.num_branches * self.suffix_tokens)

    @property
    def cached_tokens(self) -> int:
        """Tokens in the cache when the batch is finished."""
        return self.prompt_tokens + self.num_roots * self.num_branches * self.answer_tokens

    @property
    def cache_room(self) -> int:
        """Tokens for which the cache has room then: it grows by 64 steps at a time."""
        steps = -(-self.answer_tokens // CACHE_STEPS) * CACHE_STEPS
        return self.prompt_tokens + self.num_roots * self.num_branches * steps

    @property
    def roots_of_pass(self) -> int:
        """Roots that the language model reads in one pass."""
        fitting = PREFILL_CHUNK_TOKENS // max(1, self.prefix_tokens)
        return min(self.num_roots, max(1, fitting))

    @property
    def patches_of_pass(self) -> int:
        """Patches of these roots, which are encoded just before they are read."""
        return -(-self.num_patches * self.roots_of_pass // self.num_roots)


@dataclass(frozen=True, kw_only=True)
class ModelMemory:
    """The memory that a model takes.

    value_bytes: of a weight, and of a value in the cache and in activations.
    is_fp8: the language model's projections are in FP8.
    weight_bits: of a weight of these projections, if the checkpoint has others than its type.
    unknown_method: that quantised the weights; what they take is not known: no less is counted.
    """

    size: ModelSize
    value_bytes: int = 2
    is_fp8: bool = False
    weight_bits: float | None = None
    unknown_method: str | None = None

    @classmethod
    def of(cls, config: Mapping[str, Any], model: Model) -> "ModelMemory":
        """Read a checkpoint's configuration, for the precision that ``model`` sets.

        Raises:
            KeyError: a size is missing, which transformers' configuration class fills in.
        """
        text = config["text_config"]
        names = [c.get(key) for c in (config, text) for key in ("dtype", "torch_dtype")]
        given = [model.dtype] if model.dtype != "auto" else [name for name in names if name]
        found = quantised(config)
        method, bits = (found.method, found.bits) if found else (None, None)
        is_fp8 = method == "fp8"
        # torch.float32 is the default of a model without a type; FP8 models compute in bfloat16.
        name = str(given[0]) if given else ("bfloat16" if is_fp8 or found else "float32")
        value_bytes = 4 if name.endswith("float32") else 2
        counted = cls(
            size=ModelSize.of(config),
            value_bytes=value_bytes,
            is_fp8=is_fp8,
            weight_bits=bits,
            unknown_method=None if is_fp8 or bits is not None else method,
        )
        return counted.in_engine(model)

    def in_engine(self, model: Model) -> "ModelMemory":
        """The memory with the engine that ``model`` sets: vLLM may quantise weights on load."""
        on_load = model.engine == "vllm" and model.vllm.quantization == "fp8"
        return dataclasses.replace(self, is_fp8=True) if on_load else self

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights."""
        linear, of_weight = self.size.text.linear_parameters, float(self.value_bytes)
        if self.weight_bits is not None:
            of_weight = self.weight_bits / 8
        elif self.is_fp8:
            of_weight = 1 + _FP8_SCALE_BYTES
        others = (self.size.parameters - linear) * self.value_bytes
        return others + math.ceil(linear * of_weight)

    @property
    def token_bytes(self) -> int:
        """Bytes of keys and values of a token in the cache."""
        return self.size.text.cached_values * self.value_bytes

    @property
    def state_bytes(self) -> int:
        """Bytes of a sequence's state, however long it is; 0 of a model without linear layers."""
        return self.size.text.state_bytes(self.value_bytes)

    @property
    def is_hybrid(self) -> bool:
        """Whether some layers are linear: each branch then has a copy of its root's prefix."""
        return self.size.text.num_linear > 0

    def feature_bytes(self, num_patches: int) -> int:
        """Bytes of what the vision tower makes of patches, kept until their tokens are read."""
        of_token = (1 + self.size.vision.num_deepstack) * self.size.text.width * self.value_bytes
        return num_patches // MERGE_SIZE**2 * of_token

    def vision_bytes(self, num_patches: int, bound: int | None = VISION_PASS_PATCHES) -> int:
        """Bytes of a pass of the vision tower: its input, and activations.

        bound: patches of a pass at most; None: all are in one pass, as in vLLM, which rotates
            queries and keys without copies in float32.
        """
        widths_of = 4 if bound is None else self.value_bytes
        if bound is not None:
            num_patches = min(num_patches, bound)
        # In a smaller type the widths have the input: the float32 values are gone by then.
        colours = PATCH_VALUES * (1 + 4) if self.value_bytes == 4 else 0
        widths = _VISION_WIDTHS[widths_of] * self.size.vision.width * self.value_bytes
        return math.ceil(num_patches * (colours + widths))

    def activation_bytes(self, num_tokens: int) -> int:
        """Bytes of a pass of the language model, without its cache: those of its widest step.

        num_tokens: for linear layers, those of each sequence rounded up to whole chunks.
        """
        text = self.size.text
        attention = 3 * text.width + 4 * text.query_width + text.key_width // 2
        mlp = 4 * text.width + 2 * text.head_width + 3 * text.mlp_width
        experts = (3.4 + 4 * text.active_experts) * text.width if text.experts else 0
        dense = mlp if not text.experts or text.num_dense else 0
        widest = math.ceil(num_tokens * max(attention, dense, experts)) * self.value_bytes
        linear = text.linear.activation_bytes(self.value_bytes) if text.linear else 0
        return max(widest, num_tokens * linear)

    def encoding_bytes(self, shape: BatchShape) -> int:
        """Bytes of encoding the media of a pass: of the tower, and features of earlier patches."""
        earlier = max(0, shape.patches_of_pass - VISION_PASS_PATCHES)
        return self.vision_bytes(shape.patches_of_pass) + self.feature_bytes(earlier)

    def prefill_bytes(self, shape: BatchShape) -> int:
        """Bytes of reading the prefixes of a pass, beside the cache."""
        num_tokens = min(shape.num_roots * shape.prefix_tokens, PREFILL_CHUNK_TOKENS)
        of_chunk = min(num_tokens * MERGE_SIZE**2, shape.patches_of_pass)
        features = self.feature_bytes(shape.patches_of_pass) + self.feature_bytes(of_chunk)
        mask = 0
        if shape.roots_of_pass > 1:  # a root that is alone in its pass needs none
            mask = num_tokens * shape.prefix_tokens * self.size.text.groups * (1 + self.value_bytes)
        return self.activation_bytes(num_tokens) + features + mask

    def branch_bytes(self, shape: BatchShape) -> int:
        """Bytes of reading suffixes; or of a step: logits, and a layer of cache that is moved."""
        text, num_slots = self.size.text, shape.num_roots * shape.num_branches
        num_tokens = min(num_slots * shape.suffix_tokens, PREFILL_CHUNK_TOKENS)
        of_step = num_slots * text.linear.step_bytes(self.value_bytes) if text.linear else 0
        if text.linear:
            num_tokens = in_chunks(num_tokens, shape.suffix_tokens)
        seen = shape.prefix_tokens + shape.num_branches * shape.suffix_tokens
        mask = min(num_tokens * seen * text.groups, _MAX_MASK)
        suffixes = self.activation_bytes(num_tokens) + mask * (1 + self.value_bytes)
        layer = shape.cache_room * self.token_bytes // max(1, text.num_full)
        return max(suffixes, of_step, num_slots * text.vocabulary * _LOGIT_BYTES + layer)

    def batch_bytes(self, shape: BatchShape) -> int:
        """Bytes that a batch needs beside the weights."""
        cache = shape.cache_room * self.token_bytes
        return max(self.encoding_bytes(shape), cache + self._beside_tokens(shape))

    def max_cached_tokens(self, shape: BatchShape, free_bytes: int) -> int:
        """Tokens that the cache of a batch may hold in the memory that is free.

        Not above a size to which the cache, which grows by 64 steps at a time, can grow.
        """
        if self.encoding_bytes(shape) > free_bytes:
            return 0
        tokens = (free_bytes - self._beside_tokens(shape)) // self.token_bytes
        growth = shape.num_roots * shape.num_branches * CACHE_STEPS
        times = (tokens - shape.prompt_tokens) // growth
        return max(0, shape.prompt_tokens + times * growth)

    def _beside_tokens(self, shape: BatchShape) -> int:
        """Bytes beside what the cache holds for each token: states, and those of a pass."""
        found = max(self.prefill_bytes(shape), self.branch_bytes(shape))
        if shape.roots_of_pass < shape.num_roots:  # else all is encoded before there is a cache
            found = max(found, self.encoding_bytes(shape))
        return found + shape.num_roots * shape.num_branches * self.state_bytes


def gpu_share(gpus_per_replica: float | Literal["auto"]) -> float:
    """Share of a GPU's memory that an engine on transformers has, by its setting.

    0, an engine on the CPU, counts as a whole GPU: one that is only asked about.
    """
    return 1.0 if gpus_per_replica in ("auto", 0) else min(1.0, float(gpus_per_replica))


def usable_bytes(
    total_bytes: int, share: float = 1.0, device: Literal["cuda", "cpu"] = "cuda"
) -> int:
    """Bytes of a device's memory that an engine on transformers may take.

    total_bytes: of a GPU, or those of the machine that the weights leave free.
    share: of the device that the engine has.

    Returns the bytes for weights and batches on a GPU, those for batches on a CPU.
    """
    used = 1 - _SPARE_SHARE if device == "cuda" else _CPU_SHARE
    return int(total_bytes * share * used)


def copies_prefix(model: Model) -> bool:
    """Whether each branch has a copy of its root's prefix in the cache of transformers."""
    return model.attn_implementation == "flash_attention_2"


def num_fitting(memory: ModelMemory, root: BatchShape, free_bytes: int) -> int:
    """How many times the roots of ``root`` fit into one batch.

    free_bytes: for batches, beside the weights.
    """

    def fits(count: int) -> bool:
        roots = dataclasses.replace(
            root, num_roots=count * root.num_roots, num_patches=count * root.num_patches
        )
        return memory.batch_bytes(roots) <= free_bytes

    above = 1
    while fits(above):
        above *= 2
    return bisect.bisect(range(1, above), False, key=lambda count: not fits(count))
