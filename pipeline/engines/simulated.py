"""An engine without a model: it takes as long as one would, and writes plausible answers.

To study scale, balance and memory on machines without GPUs: everything but the model is the real
pipeline. Times are assumptions from the sizes of the published checkpoints, not measurements.
"""

import dataclasses
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.engines.simulated_answers import answer_text
from schemas.job import Generation, Job
from schemas.simulated import Simulated
from schemas.task import Question
from schemas.unit import AnsweredUnit, PreparedUnit, Prompt, RawAnswer, UnitStatus

_COMPUTE_EFFICIENCY = 0.4
_BANDWIDTH_EFFICIENCY = 0.6
_PATCHES_PER_TOKEN = 4


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """Parameters, and bytes of keys and values a token, in bfloat16 (layers x heads x 128 x 4)."""

    vision_parameters: float
    active_parameters: float
    parameters: float
    cache_bytes: int

    @classmethod
    def of(cls, config: Any) -> "ModelSize":
        """Count the parameters of a checkpoint, dense or MoE, by its configuration."""
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
    def shown(self) -> str:
        """Its size in words."""
        return f"{self.parameters / 1e9:.3g} billion parameters"


_SIZES = {
    "2B": ModelSize(
        vision_parameters=0.4e9,
        active_parameters=1.7e9,
        parameters=1.7e9,
        cache_bytes=28 * 8 * 512,
    ),
    "4B": ModelSize(
        vision_parameters=0.4e9,
        active_parameters=4.0e9,
        parameters=4.0e9,
        cache_bytes=36 * 8 * 512,
    ),
    "8B": ModelSize(
        vision_parameters=0.6e9,
        active_parameters=8.2e9,
        parameters=8.2e9,
        cache_bytes=36 * 8 * 512,
    ),
    "32B": ModelSize(
        vision_parameters=0.6e9,
        active_parameters=32.8e9,
        parameters=32.8e9,
        cache_bytes=64 * 8 * 512,
    ),
    "30B-A3B": ModelSize(
        vision_parameters=0.6e9,
        active_parameters=3.3e9,
        parameters=30.5e9,
        cache_bytes=48 * 4 * 512,
    ),
    "235B-A22B": ModelSize(
        vision_parameters=0.6e9,
        active_parameters=22e9,
        parameters=235e9,
        cache_bytes=94 * 4 * 512,
    ),
}

_GPUS = {
    "l40s": (362e12, 0.864e12),
    "a100": (312e12, 2.04e12),
    "h100": (989e12, 3.35e12),
    "h200": (989e12, 4.8e12),
}
"""Operations a second in bfloat16, dense, and bytes a second, as their makers say."""


@dataclass(frozen=True, kw_only=True)
class EngineTimes:
    """Seconds that the parts of the work take."""

    per_vision_token: float
    per_prompt_token: float
    per_step: float
    per_cached_token: float
    max_num_seqs: int

    @classmethod
    def of(cls, spec: Simulated, size: ModelSize | None = None) -> "EngineTimes":
        """Two operations a parameter and token; weights and cache are read once a step.

        size: instead of the published one that ``spec`` names.
        """
        size, (operations, bytes_per_second) = size or _SIZES[spec.size], _GPUS[spec.gpu]
        compute = 2 / (operations * _COMPUTE_EFFICIENCY)
        traffic = 1 / (bytes_per_second * _BANDWIDTH_EFFICIENCY)

        def seconds(given: float | None, assumed: float) -> float:
            return (assumed if given is None else given) / spec.speed

        return cls(
            per_vision_token=seconds(
                spec.seconds_per_vision_token,
                compute * size.vision_parameters * _PATCHES_PER_TOKEN,
            ),
            per_prompt_token=seconds(
                spec.seconds_per_prompt_token, compute * size.active_parameters
            ),
            per_step=seconds(spec.seconds_per_step, traffic * 2 * size.parameters),
            per_cached_token=seconds(spec.seconds_per_cached_token, traffic * size.cache_bytes),
            max_num_seqs=spec.max_num_seqs,
        )

    def seconds(self, unit: AnsweredUnit) -> float:
        """Seconds that a unit adds to the work of an engine that is always full.

        What tasks share is read once.

        Continuous batching: ``max_num_seqs`` answers share each step, whatever unit they are of.
        """
        vision = sum(part.sampling.num_vision_tokens for part in unit.seen)
        total = vision * self.per_vision_token + unit.num_fed_tokens * self.per_prompt_token
        for raw in unit.answers:
            written, read = raw.num_output_tokens, raw.num_prompt_tokens
            total += written * self.per_step / self.max_num_seqs
            total += written * (read + written / 2) * self.per_cached_token
        return total


class SimulatedEngine:
    """Sleeps as long as a model would work, and answers by unit id: the same unit, the same."""

    def __init__(self, job: Job) -> None:
        """Nothing is loaded."""
        self._spec = job.model.simulated
        self._times = EngineTimes.of(self._spec)
        self._questions: dict[str, Question] = {q.task: q for q in job.questions()}

    def generate(
        self, units: Sequence[PreparedUnit], generation: Generation | None = None
    ) -> list[AnsweredUnit]:
        """Answer every prompt of every unit; units come back in order, failed ones as they were."""
        answered = [self._answered(unit) for unit in units]
        time.sleep(sum(unit.engine_seconds for unit in answered))
        return answered

    def _answered(self, unit: PreparedUnit) -> AnsweredUnit:
        if unit.status == UnitStatus.FAILED:
            return AnsweredUnit.of(unit)
        answers = tuple(self._answer(unit, prompt) for prompt in unit.prompts)
        answered = AnsweredUnit.of(unit, answers)
        return dataclasses.replace(answered, engine_seconds=self._times.seconds(answered))

    def _answer(self, unit: PreparedUnit, prompt: Prompt) -> RawAnswer:
        question = self._questions[prompt.task]
        chance = random.Random(f"{unit.unit_id}/{prompt.task}")
        tokens = round(self._spec.output_tokens * chance.uniform(0.25, 1.75))
        return RawAnswer(
            task=prompt.task,
            raw_text=answer_text(unit, question, chance),
            finish_reason="stop",
            num_prompt_tokens=len(prompt.input_ids or ()),
            num_output_tokens=max(1, min(tokens, question.max_new_tokens)),
        )
