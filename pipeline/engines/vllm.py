"""The engine for GPUs: vLLM, which writes many answers at once and begins a new one where one ends.

One engine of vLLM's lives as long as its actor. ``generate`` is safe for threads: what calls at the
same time ask for stands in one queue. Its actor makes several, each for one block of the plan.
"""

import asyncio
import dataclasses
import itertools
import logging
import threading
import time
from collections.abc import Coroutine, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from pipeline.engines.grammar import grammar_of
from pipeline.engines.sampling import loop_end
from pipeline.engines.vllm_args import adapter_request, engine_args
from pipeline.engines.vllm_input import Medium, media_of, rendered, sampling_params
from pipeline.prompt import Prompter
from schemas.errors import ErrorRecord, ErrorType, ModelError, UnitError
from schemas.job import Generation, Job
from schemas.task import Question
from schemas.unit import AnsweredUnit, PreparedUnit, Prompt, RawAnswer, UnitStatus

logger = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")

_ATTEMPTS = 2
"""A request that vLLM gives up, such as one whose media have left its cache, is made once more."""

_AHEAD = 1.25
"""Prompt tokens that are given to vLLM, of what its cache holds: some always wait for a place."""


class EngineDied(Exception):
    """vLLM's process is gone: this actor must be replaced, and its units be done again."""


class VllmEngine:
    """Generates answers with vLLM, on the GPUs of its actor."""

    def __init__(self, job: Job) -> None:
        """Start vLLM and load the checkpoint: a minute or more.

        Raises:
            ModelError: vLLM cannot load it.
        """
        self._generation = job.generation
        self._questions: dict[str, Question] = {q.task: q for q in job.questions()}
        self._prompter = Prompter(job.model.source, job.model.revision)
        self._opens_reasoning = self._prompter.opens_reasoning
        constrained = job.questions() if job.generation.constrained else ()
        self._grammars = {question.task: grammar_of(question) for question in constrained}
        self._adapter = adapter_request(job.model)
        self._numbers = itertools.count()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="vllm", daemon=True).start()
        args = engine_args(job, reasons=self._opens_reasoning)

        async def start() -> Any:
            return AsyncLLM.from_engine_args(args)

        try:
            self._engine = self._run(start())
        except (ValueError, OSError, RuntimeError, NotImplementedError) as error:
            raise ModelError(f"vLLM cannot run {job.model.source}: {error}") from error
        config = self._engine.vllm_config
        self._max_model_len = int(config.model_config.max_model_len)
        cache = config.cache_config
        self._room = _Room(int(_AHEAD * (cache.num_gpu_blocks or 0) * cache.block_size))

    def generate(
        self, units: Sequence[PreparedUnit], generation: Generation | None = None
    ) -> list[AnsweredUnit]:
        """Answer every prompt of every unit; units come back in order, failed ones as they were.

        generation: instead of the job's; max_new_tokens stays that of the question.

        Raises:
            EngineDied: vLLM's process is gone.
        """
        return self._run(self._answer_all(units, generation or self._generation))

    def close(self) -> None:
        """End vLLM's processes."""
        self._engine.shutdown()

    def _run(self, work: Coroutine[Any, Any, ResultT]) -> ResultT:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _answer_all(
        self, units: Sequence[PreparedUnit], generation: Generation
    ) -> list[AnsweredUnit]:
        return list(await asyncio.gather(*(self._answered(unit, generation) for unit in units)))

    async def _answered(self, unit: PreparedUnit, generation: Generation) -> AnsweredUnit:
        """Answer one unit; if it cannot be done, it says why."""
        if unit.status == UnitStatus.FAILED:
            return AnsweredUnit.of(unit)
        tokens = _num_tokens(unit)
        await self._room.enter(tokens)
        began = self._room.share()
        try:
            self._check_context(unit)
            # Hashing and cutting of patches takes a while; the others go on meanwhile.
            media = await asyncio.to_thread(media_of, unit)
            answers = await asyncio.gather(
                *(self._answer(unit, prompt, media, generation) for prompt in unit.prompts)
            )
        except EngineDeadError:
            raise EngineDied("vLLM's process ended") from None
        except UnitError as error:
            problem = error
        except Exception as error:  # the stage's boundary: one unit's trouble stays its own
            logger.exception("generating for %s", unit.unit_id)
            cause = error.__cause__ or error
            problem = UnitError(ErrorType.ENGINE_FAILED, f"{type(cause).__name__}: {cause}")
        else:
            seconds = self._room.share() - began
            done = AnsweredUnit.of(unit, tuple(answers))
            return dataclasses.replace(done, engine_seconds=seconds)
        finally:
            await self._room.leave(tokens)
        return AnsweredUnit.of(unit.failed(ErrorRecord.from_error("engine", problem)))

    def _check_context(self, unit: PreparedUnit) -> None:
        """The plan knows the job's limit; that of vLLM may be less, where memory is short."""
        for prompt in unit.prompts:
            fed, most = len(prompt.input_ids or ()), self._questions[prompt.task].max_new_tokens
            if fed + most > self._max_model_len:
                raise UnitError(
                    ErrorType.OVER_CONTEXT,
                    f"{prompt.task}: {fed} prompt tokens and up to {most} of an answer are over "
                    f"the {self._max_model_len} that vLLM has memory for: shorten the windows, "
                    "lower budget or max_new_tokens, or give it more GPU memory",
                )

    async def _answer(
        self,
        unit: PreparedUnit,
        prompt: Prompt,
        media: Sequence[Medium],
        generation: Generation,
    ) -> RawAnswer:
        question = self._questions[prompt.task]
        row = f"{unit.unit_id}/{prompt.task}"
        grammar = self._grammars.get(prompt.task)
        params = sampling_params(generation, question, row, grammar)
        for _ in range(_ATTEMPTS):
            asked = rendered(prompt, media, self._prompter.pad_ids)
            ids, reason = await self._ask(asked, params, f"{row}/{next(self._numbers)}")
            if reason != "error":
                break
        if reason not in ("stop", "length", "loop"):
            raise UnitError(ErrorType.ENGINE_FAILED, f"{prompt.task}: vLLM gave up: {reason}")
        return RawAnswer(
            task=prompt.task,
            raw_text=self._prompter.decode(ids),
            finish_reason=reason,
            num_prompt_tokens=len(asked["prompt_token_ids"]),
            num_output_tokens=len(ids),
            opens_reasoning=self._opens_reasoning,
        )

    async def _ask(self, asked: Any, params: Any, request_id: str) -> tuple[list[int], str]:
        """Token ids of an answer, with the one that ends it, and why it ended."""
        if asked["type"] == "multimodal":
            # Media that vLLM's process has from another prompt are left out: the hash suffices.
            inject = self._engine.input_processor.inject_into_mm_cache
            inject(asked["mm_hashes"], asked["mm_kwargs"])
        looks = params.output_kind != RequestOutputKind.FINAL_ONLY
        ids: list[int] = []
        looked, reason = 0, "error"
        stream = self._engine.generate(asked, params, request_id, lora_request=self._adapter)
        async with aclosing(stream):  # leaving it early takes the request back
            async for output in stream:
                if list(output.prompt_token_ids or ()) != asked["prompt_token_ids"]:
                    raise UnitError(
                        ErrorType.TOKEN_MISMATCH,
                        f"vLLM was fed {len(output.prompt_token_ids or ())} prompt tokens, not the "
                        f"{len(asked['prompt_token_ids'])} that were prepared",
                    )
                (completion,) = output.outputs
                ids, reason = list(completion.token_ids), completion.finish_reason
                if looks:
                    # An answer that has ended by itself is no loop, whatever its last tokens are.
                    lengths = range(looked + 1, len(ids) + (reason != "stop"))
                    looked = len(ids)
                    if (end := _first_loop(ids, lengths)) is not None:
                        return ids[:end], "loop"
        return ids, reason


class _Room:
    """Lets units in as long as their tokens are within a limit, in their order."""

    def __init__(self, limit: int) -> None:
        self._limit, self._used, self._inside = limit, 0, 0
        self._changed = asyncio.Condition()
        self._shared, self._at = 0.0, time.perf_counter()

    async def enter(self, tokens: int) -> None:
        """Wait for room; a unit that is over the limit by itself is let in alone."""
        async with self._changed:
            await self._changed.wait_for(
                lambda: not self._inside or self._used + tokens <= self._limit
            )
            self.share()
            self._used, self._inside = self._used + tokens, self._inside + 1

    async def leave(self, tokens: int) -> None:
        """Give the room free."""
        async with self._changed:
            self.share()
            self._used, self._inside = self._used - tokens, self._inside - 1
            self._changed.notify_all()

    def share(self) -> float:
        """Seconds that each unit inside has had of the engine, if it is shared out evenly.

        The difference of two readings is a unit's share of the time between them.
        """
        now = time.perf_counter()
        if self._inside:
            self._shared += (now - self._at) / self._inside
        self._at = now
        return self._shared


def _num_tokens(unit: PreparedUnit) -> int:
    """Prompt tokens of a unit: what it sees is in the cache once, each task's text by itself."""
    vision = sum(part.sampling.num_vision_tokens for part in unit.seen)
    return vision + sum(len(p.input_ids or ()) - vision for p in unit.prompts)


def _first_loop(ids: Sequence[int], lengths: range) -> int | None:
    """Where an answer is cut if it was a loop at one of these lengths."""
    return next((end for n in lengths if (end := loop_end(ids[:n])) is not None), None)
