"""The reference engine: transformers' own model, in batches formed by token budget.

The media of a unit are encoded and prefilled once for all its tasks. Frames stay uint8 until they
are on the device, where they are cut into patches and normalised.
"""

import dataclasses
import logging
import time
from collections.abc import Mapping, Sequence

import torch

from pipeline.engines.base import token_mismatch
from pipeline.engines.transformers.batches import Root, halves, roots_of, unit_batches
from pipeline.engines.transformers.decoding import AnswersTooLong
from pipeline.engines.transformers.generator import Generator
from schemas.errors import ErrorType, UnitError
from schemas.job.generation import Generation
from schemas.job.job import Job
from schemas.tables.error import ErrorRecord
from schemas.tables.unit import AnsweredUnit, PreparedUnit, RawAnswer, UnitStatus

logger = logging.getLogger(__name__)


class TransformersEngine:
    """Answers units with a checkpoint of one of ``MODEL_TYPES``, on one device.

    generator: runs one batch through the model.
    """

    def __init__(self, job: Job, *, num_threads: int | None = None) -> None:
        """Load the checkpoint.

        num_threads: CPU threads to use; None leaves torch's default.

        Raises:
            ModelError: the weights cannot be loaded.
        """
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        self._generation = job.generation
        self._max_new_tokens = {q.name: q.max_new_tokens for q in job.questions()}
        self.generator = Generator(job)

    def generate(
        self, units: Sequence[PreparedUnit], generation: Generation | None = None
    ) -> list[AnsweredUnit]:
        """Answer every prompt of every unit; see ``Engine.generate``.

        Raises:
            torch.AcceleratorError: the device is broken; the actor must be replaced.
        """
        answered: dict[int, AnsweredUnit] = {}
        roots: dict[int, list[Root]] = {}
        for k, unit in enumerate(units):
            if unit.status == UnitStatus.FAILED:
                answered[k] = AnsweredUnit.of(unit)
            elif error := _find_token_mismatch(unit):
                answered[k] = _failed(unit, error)
            else:
                pad_ids = self.generator.prompter.pad_ids.values()
                roots[k] = roots_of(unit, self._max_new_tokens, pad_ids)
        for batch in unit_batches(roots, self.generator.limit.fits):
            answered |= self._answer_batch(units, roots, batch, generation or self._generation)
        return [answered[k] for k in range(len(units))]

    def _answer_batch(
        self,
        units: Sequence[PreparedUnit],
        roots: Mapping[int, list[Root]],
        batch: list[int],
        generation: Generation,
    ) -> dict[int, AnsweredUnit]:
        """Answer the units of a batch, by their index.

        If the batch fails, its halves are tried; a unit that fails alone becomes an error row.
        """
        started = time.perf_counter()
        try:
            if len(batch) == 1:
                answers = [self._answer_unit(roots[batch[0]], generation)]
            else:
                answers = self.generator.answer([roots[k] for k in batch], generation)
            answer_of = dict(zip(batch, answers, strict=True))
        except AnswersTooLong as error:
            problem = UnitError(ErrorType.OUT_OF_MEMORY, str(error))
        except torch.OutOfMemoryError as error:
            problem = UnitError(
                ErrorType.OUT_OF_MEMORY,
                f"the device ran out of memory: {str(error).splitlines()[0]}; lower "
                "budget.unit_tokens, or take a GPU with more memory or the engine vllm",
            )
        except torch.AcceleratorError:
            raise  # the CUDA context is lost: only a new process helps
        except UnitError as error:
            problem = error
        except Exception as error:  # one unit's failure must not fail the others
            logger.exception("generating for %s", [units[k].unit_id for k in batch])
            problem = UnitError(ErrorType.ENGINE_FAILED, f"{type(error).__name__}: {error}")
        else:
            seconds = time.perf_counter() - started
            total = sum(units[k].predicted_cost for k in batch) or 1.0
            answered = {}
            for k, raw in answer_of.items():
                in_order = tuple(raw[prompt.task] for prompt in units[k].prompts)
                answered[k] = dataclasses.replace(
                    AnsweredUnit.of(units[k], in_order),
                    engine_seconds=seconds * units[k].predicted_cost / total,
                )
            return answered
        _free_cache()
        if len(batch) == 1:
            return {batch[0]: _failed(units[batch[0]], problem)}
        middle = len(batch) // 2
        return self._answer_batch(units, roots, batch[:middle], generation) | self._answer_batch(
            units, roots, batch[middle:], generation
        )

    def _answer_unit(self, roots: Sequence[Root], generation: Generation) -> dict[str, RawAnswer]:
        """Answer a unit; if it needs too much memory, one half of its prompts after the other."""
        try:
            return self.generator.answer([roots], generation)[0]
        except (AnswersTooLong, torch.OutOfMemoryError):
            if (parts := halves(roots)) is None:
                raise
        _free_cache()
        first, second = (self._answer_unit(part, generation) for part in parts)
        return first | second


def _free_cache() -> None:
    """Give the memory of a failed batch back to the GPU."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _failed(unit: PreparedUnit, error: UnitError) -> AnsweredUnit:
    return AnsweredUnit.of(unit.failed(ErrorRecord.from_error("engine", error)))


def _find_token_mismatch(unit: PreparedUnit) -> UnitError | None:
    """Find a prompt whose length differs from the plan, before its batch runs."""
    for prompt in unit.prompts:
        num_tokens = len(prompt.input_ids or ())
        if num_tokens != prompt.num_prompt_tokens:
            return token_mismatch(prompt, num_tokens)
    return None
