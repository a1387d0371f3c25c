"""Estimate the seconds that an engine spends on a unit, from the sizes of model and GPU.

Arithmetic on published figures, not measurements. Used for cost estimates without a calibration,
and as the clock of the simulated engine.

Source: the roofline estimate of transformer inference, as in "Efficiently Scaling Transformer
Inference" (arXiv 2211.05102): 2 operations for each parameter and token; each decoding step reads
all weights and the cached keys and values once.
"""

from dataclasses import dataclass
from typing import Any

from pipeline.model.frame_size import MERGE_SIZE
from schemas.job.engines import Simulated
from schemas.tables.unit import AnsweredUnit

_COMPUTE_EFFICIENCY = 0.4
"""Share of a GPU's peak operations that prefill and vision encoding reach. Assumed."""

_BANDWIDTH_EFFICIENCY = 0.6
"""Share of a GPU's peak memory bandwidth that decoding reaches. Assumed."""

_CACHE_BYTES_PER_HEAD = 128 * 2 * 2
"""For one token in one layer: head size 128, a key and a value, 2 bytes each (bfloat16)."""


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """Size of a Qwen3-VL checkpoint.

    vision_parameters: of the vision encoder; published sizes include its mergers.
    active_parameters: of the language model, those used for one token; all of a dense model.
    parameters: all of the language model.
    cache_bytes: keys and values of one token in all layers, in bfloat16.
    """

    vision_parameters: float
    active_parameters: float
    parameters: float
    cache_bytes: int

    @classmethod
    def of(cls, config: Any) -> "ModelSize":
        """Count the parameters of a dense or MoE checkpoint from its ``Qwen3VL[Moe]Config``."""
        text, vision = config.text_config, config.vision_config
        hidden, heads = text.hidden_size, text.num_attention_heads
        head = getattr(text, "head_dim", None) or hidden // heads
        attention = 2 * hidden * head * (heads + text.num_key_value_heads)
        is_tied = getattr(config, "tie_word_embeddings", False)
        embedding = text.vocab_size * hidden * (1 if is_tied else 2)
        experts = getattr(text, "num_experts", None)
        width = text.moe_intermediate_size if experts else text.intermediate_size
        expert = 3 * hidden * width

        def parameters(num_experts: int) -> float:
            layer = attention + num_experts * expert
            return float(text.num_hidden_layers * layer + embedding)

        return cls(
            vision_parameters=float(
                vision.depth
                * vision.hidden_size
                * (4 * vision.hidden_size + 2 * vision.intermediate_size)
            ),
            active_parameters=parameters(text.num_experts_per_tok if experts else 1),
            parameters=parameters(experts or 1),
            cache_bytes=text.num_hidden_layers * text.num_key_value_heads * head * 4,
        )

    @property
    def description(self) -> str:
        """The number of parameters, for messages: "4.02 billion parameters"."""
        return f"{self.parameters / 1e9:.3g} billion parameters"


def _published(vision: float, active: float, total: float, layers: int, heads: int) -> ModelSize:
    return ModelSize(
        vision_parameters=vision,
        active_parameters=active,
        parameters=total,
        cache_bytes=layers * heads * _CACHE_BYTES_PER_HEAD,
    )


_SIZES = {
    "2B": _published(0.4e9, 1.7e9, 1.7e9, layers=28, heads=8),
    "4B": _published(0.4e9, 4.0e9, 4.0e9, layers=36, heads=8),
    "8B": _published(0.6e9, 8.2e9, 8.2e9, layers=36, heads=8),
    "32B": _published(0.6e9, 32.8e9, 32.8e9, layers=64, heads=8),
    "30B-A3B": _published(0.6e9, 3.3e9, 30.5e9, layers=48, heads=4),
    "235B-A22B": _published(0.6e9, 22e9, 235e9, layers=94, heads=4),
}
"""Parameters of the vision encoder; active and all parameters of the language model; its layers
and key-value heads.

Source: language models: Qwen3 technical report (arXiv 2505.09388), tables 1 and 2, and the model
cards of the Qwen3 checkpoints that Qwen3-VL is built on. Vision encoders: counted from
``vision_config`` of the Qwen3-VL checkpoints, with the merger and the DeepStack mergers, rounded.
"""

_GPUS = {
    "l40s": (362e12, 0.864e12),
    "a100": (312e12, 2.04e12),
    "h100": (989e12, 3.35e12),
    "h200": (989e12, 4.8e12),
}
"""Operations per second in bfloat16 without sparsity, and bytes per second of GPU memory.

Source: NVIDIA's data sheets of L40S, A100 80GB SXM, H100 SXM and H200 SXM.
"""


@dataclass(frozen=True, kw_only=True)
class EngineTimes:
    """Seconds for each part of an engine's work.

    per_vision_token: encode one vision token (4 patches).
    per_prompt_token: prefill one token.
    per_step: one decoding step of a full batch, without the cache.
    per_cached_token: read the keys and values of one token in a step.
    max_num_seqs: answers that share a step.
    """

    per_vision_token: float
    per_prompt_token: float
    per_step: float
    per_cached_token: float
    max_num_seqs: int

    @classmethod
    def of(cls, spec: Simulated, size: ModelSize | None = None) -> "EngineTimes":
        """Estimate times for the GPU of ``spec``; times that ``spec`` gives are taken as given.

        size: of the model; default: the published size that ``spec`` names.
        """
        size, (operations, bytes_per_second) = size or _SIZES[spec.size], _GPUS[spec.gpu]
        compute = 2 / (operations * _COMPUTE_EFFICIENCY)
        traffic = 1 / (bytes_per_second * _BANDWIDTH_EFFICIENCY)

        def seconds(given: float | None, estimated: float) -> float:
            return (estimated if given is None else given) / spec.speed

        return cls(
            per_vision_token=seconds(
                spec.seconds_per_vision_token, compute * size.vision_parameters * MERGE_SIZE**2
            ),
            per_prompt_token=seconds(
                spec.seconds_per_prompt_token, compute * size.active_parameters
            ),
            per_step=seconds(spec.seconds_per_step, traffic * 2 * size.parameters),
            per_cached_token=seconds(spec.seconds_per_cached_token, traffic * size.cache_bytes),
            max_num_seqs=spec.max_num_seqs,
        )

    def seconds(self, unit: AnsweredUnit) -> float:
        """Seconds that a unit adds to the work of an engine whose batch is always full.

        Continuous batching: ``max_num_seqs`` answers share each step. Tokens that the unit's tasks
        share are encoded and prefilled once.
        """
        vision = sum(part.sampling.num_vision_tokens for part in unit.seen)
        total = vision * self.per_vision_token + unit.num_fed_tokens * self.per_prompt_token
        for raw in unit.answers:
            num_output, num_prompt = raw.num_output_tokens, raw.num_prompt_tokens
            total += num_output * self.per_step / self.max_num_seqs
            total += num_output * (num_prompt + num_output / 2) * self.per_cached_token
        return total
