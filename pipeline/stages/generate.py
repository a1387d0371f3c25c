"""The stage that holds the model: frames and token ids in, raw answers out."""

import logging
import os
from typing import Any, ClassVar

import pyarrow as pa

from pipeline.engines.base import Engine
from pipeline.stages.reask import ask_again
from pipeline.workers.code_version import check_code
from pipeline.workers.engine_guard import Guard
from schemas.job.job import Job
from schemas.shown import log_shown
from schemas.tables.columns import from_table, to_table
from schemas.tables.unit import ANSWERED, AnsweredUnit, PreparedUnit

logger = logging.getLogger(__name__)


class Generate:
    """Stage: PREPARED in, ANSWERED out. Holds the model."""

    CALLS_AT_ONCE: ClassVar = {"vllm": 3}
    """Blocks that an engine works on at a time; default 1. vLLM starts the next block while the
    longest answers of the previous one are not finished."""

    def __init__(self, job: Job, deaths: Any, code: str, cpus: float) -> None:
        """Load the engine. cpus: of the actor, the number of threads of an engine without a GPU."""
        log_shown()
        check_code(code)
        self._num_threads = max(1, int(cpus))
        self._questions = {question.name: question for question in job.questions()}
        self._generation = job.generation
        self._guard = Guard(deaths, job.resources, self.calls_at_once(job))
        with self._guard.start():
            self._engine, self._broken = self._load(job)

    @classmethod
    def calls_at_once(cls, job: Job) -> int:
        """Number of blocks that the job's engine works on at a time."""
        return cls.CALLS_AT_ONCE.get(job.model.engine, 1)

    def _load(self, job: Job) -> tuple[Engine, tuple[type[Exception], ...]]:
        """Load the job's engine; returns it and the exceptions after which its process must end."""
        if job.model.engine == "simulated":
            from pipeline.engines.simulated.engine import SimulatedEngine

            return SimulatedEngine(job), ()
        if job.model.engine == "vllm":
            from pipeline.engines.vllm.engine import EngineDied, VllmEngine

            return VllmEngine(job), (EngineDied,)
        import torch

        from pipeline.engines.transformers.engine import TransformersEngine

        threads = None if torch.cuda.is_available() else self._num_threads
        return TransformersEngine(job, num_threads=threads), (torch.AcceleratorError,)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Answer a batch of units."""
        units = from_table(batch, PreparedUnit)
        return to_table(self._guard.answer(units, self._answer), ANSWERED)

    def _answer(self, units: list[PreparedUnit]) -> list[AnsweredUnit]:
        generate = self._engine.generate
        try:
            return ask_again(generate, units, generate(units), self._questions, self._generation)
        except self._broken:
            # Ray starts a new actor and repeats this batch there.
            logger.exception("the engine's device or process is lost: its actor ends")
            os._exit(1)
