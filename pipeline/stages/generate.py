"""The stage that holds the model: frames and token ids in, raw answers out."""

import logging
import os
from typing import Any, ClassVar

import pyarrow as pa

from pipeline.engines.base import Engine
from pipeline.engines.largest import LargestMedia
from pipeline.stages.reask import ask_again
from pipeline.workers.code_version import check_code
from pipeline.workers.engine_guard import GPU_SECONDS_PER_TOKEN, Guard
from schemas.job.job import Job
from schemas.shown import log_shown
from schemas.tables.columns import from_table, to_table
from schemas.tables.unit import ANSWERED, AnsweredUnit, PreparedUnit

logger = logging.getLogger(__name__)


class Generate:
    """Stage: PREPARED in, ANSWERED out. Holds the model."""

    CALLS_AT_ONCE: ClassVar = {"vllm": 16}
    """Blocks that an engine works on at a time, or fewer if they are large; default 1. A 60 s clip
    in full size is a block, and the cache of an 80 GB card holds about 15: so vLLM never waits for
    the last answer of a block. What vLLM gets at a time is limited by tokens, in the engine."""

    def __init__(
        self,
        job: Job,
        deaths: Any,
        code: str,
        cpus: float,
        largest: LargestMedia | None = None,
    ) -> None:
        """Load the engine.

        cpus: of the actor, the number of threads of an engine without a GPU.
        largest: media of the run's plan; None: not known.
        """
        log_shown()
        check_code(code)
        self._num_threads = max(1, int(cpus))
        self._questions = {question.name: question for question in job.questions()}
        self._generation = job.generation
        self._largest = largest
        self._guard = Guard(deaths, job.resources, self.calls_at_once(job))
        with self._guard.start():
            self._engine, self._broken = self._load(job)
        if job.model.engine != "simulated" and job.model.device != "cpu" and _has_gpu():
            self._guard.seconds_per_token = GPU_SECONDS_PER_TOKEN

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

            return VllmEngine(job, self._largest), (EngineDied,)
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


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
