"""Estimate the seconds that an engine spends on a unit, from the sizes of model and GPU.

Arithmetic on published figures, not measurements. Used for cost estimates without a calibration,
and as the clock of the simulated engine.

Source: the roofline estimate of transformer inference, as in "Efficiently Scaling Transformer
Inference" (arXiv 2211.05102): 2 operations for each parameter and token; each decoding step reads
all weights and the cached keys and values once.
"""

from dataclasses import dataclass

from pipeline.model.frame_size import MERGE_SIZE
from pipeline.model.sizes import GPUS, PUBLISHED, ModelSize
from schemas.job.engines import Simulated
from schemas.tables.unit import AnsweredUnit

_COMPUTE_EFFICIENCY = 0.4
"""Share of a GPU's peak operations that prefill and vision encoding reach. Assumed."""

_BANDWIDTH_EFFICIENCY = 0.6
"""Share of a GPU's peak memory bandwidth that decoding reaches. Assumed."""


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
        size, gpu = size or PUBLISHED[spec.size], GPUS[spec.gpu]
        compute = 2 / (gpu.operations * _COMPUTE_EFFICIENCY)
        traffic = 1 / (gpu.bytes_per_second * _BANDWIDTH_EFFICIENCY)
        parameters, cached = 2 * size.text.parameters, 2 * size.text.cached_values  # in bfloat16

        def seconds(given: float | None, estimated: float) -> float:
            return (estimated if given is None else given) / spec.speed

        return cls(
            per_vision_token=seconds(
                spec.seconds_per_vision_token, compute * size.vision.parameters * MERGE_SIZE**2
            ),
            per_prompt_token=seconds(
                spec.seconds_per_prompt_token, compute * size.text.active_parameters
            ),
            per_step=seconds(spec.seconds_per_step, traffic * parameters),
            per_cached_token=seconds(spec.seconds_per_cached_token, traffic * cached),
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
