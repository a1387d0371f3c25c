"""Count the parameters of a checkpoint from its configuration; sizes of models and GPUs.

No weights are needed, and no torch: a configuration is the mapping in ``config.json``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.model.family import family_of
from pipeline.model.frame_size import MERGE_SIZE, PATCH_SIZE, TEMPORAL_PATCH_SIZE
from pipeline.model.hybrid_sizes import LinearSize, StreamSize

PATCH_VALUES = 3 * TEMPORAL_PATCH_SIZE * PATCH_SIZE**2
"""Colour values of a patch: 1,536."""


@dataclass(frozen=True, kw_only=True)
class VisionSize:
    """Size of the vision tower. Defaults: of the published checkpoints of 8B and more.

    out_width: width of the language model. num_deepstack: layers whose features it gets, too.
    """

    depth: int = 27
    width: int = 1152
    mlp_width: int = 4304
    out_width: int
    num_positions: int = 2304
    num_deepstack: int = 3

    @property
    def parameters(self) -> int:
        """All parameters, with those of the mergers."""
        width, mlp = self.width, self.mlp_width
        embedding = width * (PATCH_VALUES + 1 + self.num_positions)
        norms = 4 * width
        attention = 4 * width * (width + 1)
        block = norms + attention + 2 * width * mlp + width + mlp
        merged = width * MERGE_SIZE**2
        mergers = merged * (merged + 1) + (merged + 1) * self.out_width
        norms_of_mergers = 2 * width + 2 * merged * self.num_deepstack
        total = embedding + self.depth * block + (1 + self.num_deepstack) * mergers
        return total + norms_of_mergers


@dataclass(frozen=True, kw_only=True)
class TextSize:
    """Size of the language model.

    width: of the hidden states. mlp_width: of a layer without experts.
    experts: in a layer; 0 in a dense model. expert_width: inner width of an expert.
    shared_width: of the expert that all tokens use; 0: none.
    num_dense: layers without experts. is_tied: input and output embedding are one tensor.
    num_linear: layers of the size ``linear`` in place of attention.
    is_gated: queries bring a gate of the output.
    streams: of a model with several residual streams.
    """

    layers: int
    width: int
    heads: int
    key_heads: int
    mlp_width: int
    head_width: int = 128
    vocabulary: int = 151_936
    experts: int = 0
    active_experts: int = 0
    expert_width: int = 0
    num_dense: int = 0
    is_tied: bool = False
    has_bias: bool = False
    shared_width: int = 0
    num_linear: int = 0
    linear: LinearSize | None = None
    is_gated: bool = False
    streams: StreamSize | None = None

    @property
    def num_full(self) -> int:
        """Layers that attend to all tokens, and keep keys and values of each."""
        return self.layers - self.num_linear

    @property
    def linear_parameters(self) -> int:
        """Weights of the layers' projections, without routers: what an FP8 checkpoint quantises."""
        return self._projections(self.experts)

    @property
    def parameters(self) -> int:
        """All parameters, with the embeddings."""
        return self._projections(self.experts) + self._others

    @property
    def active_parameters(self) -> int:
        """Parameters that are used for one token; all of a dense model."""
        table = self.streams.table if self.streams else 0
        return self._projections(self.active_experts) + self._others - table

    @property
    def query_width(self) -> int:
        """Width of all query heads together."""
        return self.heads * self.head_width

    @property
    def key_width(self) -> int:
        """Width of all key heads together."""
        return self.key_heads * self.head_width

    @property
    def groups(self) -> int:
        """Query heads of a key head: a mask has a row for each."""
        return self.heads // self.key_heads

    @property
    def cached_values(self) -> int:
        """Values in the cache of one token: keys and values of all full layers."""
        index_width = self.streams.index_width if self.streams else 0
        return self.num_full * (2 * self.key_width + index_width)

    def state_bytes(self, value_bytes: int) -> int:
        """Bytes of a sequence's state, however long it is: of linear layers.

        value_bytes: of a value in the cache.
        """
        linear = self.linear.state_bytes(value_bytes) if self.linear else 0
        return self.num_linear * linear + (
            self.streams.state_bytes(value_bytes) if self.streams else 0
        )

    def _projections(self, num_experts: int) -> int:
        queries = (3 if self.is_gated else 2) * self.query_width
        attention = self.width * (queries + 2 * self.key_width)
        linear = self.num_linear * self.linear.projections if self.linear else 0
        dense = self.layers - self._with_experts
        mlps = self._with_experts * (num_experts * self.expert_width + self.shared_width)
        mlps += dense * self.mlp_width
        return self.num_full * attention + linear + 3 * self.width * mlps

    @property
    def _with_experts(self) -> int:
        return (self.layers - self.num_dense) if self.experts else 0

    @property
    def _others(self) -> int:
        embeddings = self.vocabulary * self.width * (1 if self.is_tied else 2)
        queries = (2 if self.is_gated else 1) * self.query_width
        bias = queries + 2 * self.key_width + self.width if self.has_bias else 0
        full = self.num_full * (2 * self.head_width + bias)
        linear = self.num_linear * self.linear.other_parameters if self.linear else 0
        routed = self.experts + (1 if self.shared_width else 0)
        routers = self._with_experts * routed * self.width
        norms = self.streams.parameters if self.streams else (2 * self.layers + 1) * self.width
        return embeddings + full + linear + routers + norms


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """Size of a checkpoint, dense or MoE."""

    vision: VisionSize
    text: TextSize

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "ModelSize":
        """Read the size from a configuration, as ``config.json`` or ``to_dict()`` has it.

        Raises:
            KeyError: a size is missing, which transformers' configuration class fills in.
        """
        family, text, vision = family_of(config), config["text_config"], config["vision_config"]
        layers = text["num_hidden_layers"]
        # transformers 5 writes the second name.
        experts = text.get("num_experts") or text.get("num_local_experts") or 0
        every = text.get("decoder_sparse_step") or 1
        without = set(text.get("mlp_only_layers") or ())
        sparse = [k for k in range(layers) if k not in without and (k + 1) % every == 0]
        is_shared = bool(experts) and family.is_gated
        num_full = family.layer_kinds.count("full")
        return cls(
            vision=VisionSize(
                depth=vision["depth"],
                width=vision["hidden_size"],
                mlp_width=vision["intermediate_size"],
                out_width=vision["out_hidden_size"],
                num_positions=vision["num_position_embeddings"],
                num_deepstack=family.deepstack,
            ),
            text=TextSize(
                layers=layers,
                width=text["hidden_size"],
                heads=text["num_attention_heads"],
                key_heads=text["num_key_value_heads"],
                head_width=text.get("head_dim")
                or text["hidden_size"] // text["num_attention_heads"],
                mlp_width=0 if family.is_gated and experts else text["intermediate_size"],
                vocabulary=text["vocab_size"],
                experts=experts,
                active_experts=text["num_experts_per_tok"] if experts else 0,
                expert_width=text["moe_intermediate_size"] if experts else 0,
                num_dense=layers - len(sparse) if experts else 0,
                is_tied=bool(config.get("tie_word_embeddings", False)),
                has_bias=bool(text.get("attention_bias", False)),
                shared_width=text["shared_expert_intermediate_size"] if is_shared else 0,
                num_linear=family.layer_kinds.count("linear"),
                linear=LinearSize.of(text) if family.is_hybrid else None,
                is_gated=family.is_gated,
                streams=StreamSize.of(text, num_full) if family.is_indexed else None,
            ),
        )

    @property
    def parameters(self) -> int:
        """All parameters."""
        return self.vision.parameters + self.text.parameters

    @property
    def description(self) -> str:
        """The number of parameters, for messages: "4.44 billion parameters"."""
        return f"{self.parameters / 1e9:.3g} billion parameters"


_SMALL_VISION = {"depth": 24, "width": 1024, "mlp_width": 4096}


def _moe(*, layers: int, width: int, heads: int, mlp_width: int, expert_width: int) -> TextSize:
    return TextSize(
        layers=layers,
        width=width,
        heads=heads,
        key_heads=4,
        mlp_width=mlp_width,
        experts=128,
        active_experts=8,
        expert_width=expert_width,
    )


PUBLISHED = {
    "2B": ModelSize(
        vision=VisionSize(**_SMALL_VISION, out_width=2048),
        text=TextSize(layers=28, width=2048, heads=16, key_heads=8, mlp_width=6144, is_tied=True),
    ),
    "4B": ModelSize(
        vision=VisionSize(**_SMALL_VISION, out_width=2560),
        text=TextSize(layers=36, width=2560, heads=32, key_heads=8, mlp_width=9728, is_tied=True),
    ),
    "8B": ModelSize(
        vision=VisionSize(out_width=4096),
        text=TextSize(layers=36, width=4096, heads=32, key_heads=8, mlp_width=12_288),
    ),
    "32B": ModelSize(
        vision=VisionSize(out_width=5120),
        text=TextSize(layers=64, width=5120, heads=64, key_heads=8, mlp_width=25_600),
    ),
    "30B-A3B": ModelSize(
        vision=VisionSize(out_width=2048),
        text=_moe(layers=48, width=2048, heads=32, mlp_width=6144, expert_width=768),
    ),
    "235B-A22B": ModelSize(
        vision=VisionSize(out_width=4096),
        text=_moe(layers=94, width=4096, heads=64, mlp_width=12_288, expert_width=1536),
    ),
}
"""The published checkpoints.

Source: ``config.json`` of Qwen/Qwen3-VL-*-Instruct.
"""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A GPU, by its maker's data sheet.

    memory_bytes: the gigabytes in its name, of 10^9 bytes; what programs can use is more.
    operations: each second, in bfloat16 without sparsity.
    bytes_per_second: of its memory.
    """

    memory_bytes: int
    operations: float
    bytes_per_second: float


_GB = 10**9

GPUS = {
    "rtx4090": Gpu(memory_bytes=24 * _GB, operations=165e12, bytes_per_second=1.01e12),
    "l40s": Gpu(memory_bytes=48 * _GB, operations=362e12, bytes_per_second=0.864e12),
    "a100": Gpu(memory_bytes=80 * _GB, operations=312e12, bytes_per_second=2.04e12),
    "h100": Gpu(memory_bytes=80 * _GB, operations=989e12, bytes_per_second=3.35e12),
    "h200": Gpu(memory_bytes=141 * _GB, operations=989e12, bytes_per_second=4.8e12),
    "b200": Gpu(memory_bytes=180 * _GB, operations=2250e12, bytes_per_second=7.7e12),
}
"""Source: NVIDIA's data sheets of GeForce RTX 4090, L40S, A100 80GB SXM, H100 SXM, H200 SXM and
B200 in a DGX."""
