"""The simulated engine: sleeps as long as a model would work, and writes plausible answers.

Use it to study scale, balance and memory on machines without GPUs; all other stages are the real
pipeline. Its times are assumptions from the sizes of the published checkpoints, not measurements.
"""

import dataclasses
import random
import time
from collections.abc import Sequence

from pipeline.engines.speed import EngineTimes
from pipeline.tasks.parse import model_view
from pipeline.tasks.registry import TASKS
from schemas.job.generation import Generation
from schemas.job.job import Job
from schemas.tables.unit import AnsweredUnit, PreparedUnit, Prompt, RawAnswer, UnitStatus
from schemas.task import Question


class SimulatedEngine:
    """Answers depend on the unit id and the task only: the same unit has the same answers."""

    def __init__(self, job: Job) -> None:
        """Load nothing."""
        self._spec = job.model.simulated
        self._times = EngineTimes.of(self._spec)
        self._questions: dict[str, Question] = {q.name: q for q in job.questions()}

    def generate(
        self, units: Sequence[PreparedUnit], generation: Generation | None = None
    ) -> list[AnsweredUnit]:
        """Answer every prompt; return the units in order, failed ones unchanged."""
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
            raw_text=TASKS[question.task].simulate(question, model_view(unit), chance),
            finish_reason="stop",
            num_prompt_tokens=len(prompt.input_ids or ()),
            num_output_tokens=min(max(1, tokens), question.max_new_tokens),
        )
