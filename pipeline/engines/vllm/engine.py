"""The engine for GPUs: vLLM, with continuous batching.

One vLLM engine lives as long as its actor. ``generate`` is thread-safe: concurrent calls share one
queue. The actor makes several at a time, each for one block of the plan, so that vLLM stays busy.
"""

import asyncio
import dataclasses
import itertools
import logging
import threading
import time
from collections.abc import Coroutine, Iterable, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from vllm.sampling_params import RequestOutputKind
from vllm.usage.usage_lib import UsageContext
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from pipeline.engines.answer_schema import grammar_of
from pipeline.engines.largest import LargestMedia
from pipeline.engines.token_sampling import loop_end
from pipeline.engines.vllm.adapter import adapter_request
from pipeline.engines.vllm.args import engine_args, send_no_usage_data, vllm_version
from pipeline.engines.vllm.inputs import Medium, engine_input, media_of, sampling_params
from pipeline.model.prompter import Prompter
from schemas.errors import ErrorType, ModelError, UnitError
from schemas.job.generation import Generation
from schemas.job.job import Job
from schemas.tables.error import ErrorRecord
from schemas.tables.unit import AnsweredUnit, PreparedUnit, Prompt, RawAnswer, UnitStatus
from schemas.task import Question

logger = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")

_ATTEMPTS = 2
"""A request is repeated once if vLLM reports an error, such as media evicted from its cache."""

_QUEUE_FACTOR = 1.25
"""Prompt tokens submitted to vLLM, as a multiple of its cache: so some requests always wait."""


class EngineDied(Exception):
    """vLLM's process ended: the actor must be replaced, and its units must be answered again."""


class VllmEngine:
    """Answers units with vLLM, on the GPUs of its actor.

    async_llm: vLLM's ``AsyncLLM``. name: its version and model runner.
    """

    def __init__(self, job: Job, largest: LargestMedia | None = None) -> None:
        """Start vLLM and load the checkpoint: a minute or more.

        largest: media of the run, for which memory is reserved; None: what the job allows.

        Raises:
            ModelError: vLLM cannot load it.
        """
        self._generation = job.generation
        self._questions: dict[str, Question] = {q.name: q for q in job.questions()}
        self._prompter = Prompter.of(job)
        self._opens_reasoning = self._prompter.opens_reasoning
        constrained = job.questions() if job.generation.constrained else ()
        self._grammars = {question.name: grammar_of(question) for question in constrained}
        self._adapter = adapter_request(job.model)
        self._numbers = itertools.count()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="vllm", daemon=True).start()
        send_no_usage_data()
        args = engine_args(job, largest, has_reasoning=self._prompter.expects_reasoning)

        async def start() -> Any:
            # The usage context decides vLLM's default batch: that of its class for offline work.
            llm = AsyncLLM.from_engine_args(args, usage_context=UsageContext.LLM_CLASS)
            # vLLM keeps the reply: later, between filling its cache of media and sending a request,
            # nothing waits, so both sides of the cache see the media in one order.
            await llm.get_supported_tasks()
            return llm

        try:
            self.async_llm = self._run(start())
        except (ValueError, OSError, RuntimeError, NotImplementedError) as error:
            raise ModelError(f"vLLM cannot run {job.model.source}: {error}") from error
        config = self.async_llm.vllm_config
        # vLLM chooses by platform and model; VLLM_USE_V2_MODEL_RUNNER=0 is the way back.
        runner = "V2" if config.use_v2_model_runner else "V1"
        self.name = f"vLLM {vllm_version()}, model runner {runner}"
        self._max_model_len = int(config.model_config.max_model_len)
        cache = config.cache_config
        self._admission = _Admission(
            int(_QUEUE_FACTOR * (cache.num_gpu_blocks or 0) * cache.block_size)
        )

    def generate(
        self, units: Sequence[PreparedUnit], generation: Generation | None = None
    ) -> list[AnsweredUnit]:
        """Answer every prompt of every unit; see ``Engine.generate``.

        Raises:
            EngineDied: vLLM's process ended.
        """
        return self._run(self._answer_all(units, generation or self._generation))

    def close(self) -> None:
        """End vLLM's processes."""
        self.async_llm.shutdown()

    def _run(self, work: Coroutine[Any, Any, ResultT]) -> ResultT:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _answer_all(
        self, units: Sequence[PreparedUnit], generation: Generation
    ) -> list[AnsweredUnit]:
        return list(await asyncio.gather(*(self._answer_unit(unit, generation) for unit in units)))

    async def _answer_unit(self, unit: PreparedUnit, generation: Generation) -> AnsweredUnit:
        """Answer one unit; a failure becomes its error."""
        if unit.status == UnitStatus.FAILED:
            return AnsweredUnit.of(unit)
        tokens = _num_tokens(unit)
        await self._admission.enter(tokens)
        started = self._admission.read_clock()
        try:
            self._check_context(unit)
            # In a thread: cutting and hashing patches would block the other units.
            media = await asyncio.to_thread(media_of, unit)
            answers = await _all_or_none(
                self._answer_prompt(unit, prompt, media, generation) for prompt in unit.prompts
            )
        except EngineDeadError:
            raise EngineDied("vLLM's process ended") from None
        except UnitError as error:
            problem = error
        except Exception as error:  # one unit's failure must not fail the others
            logger.exception("generating for %s", unit.unit_id)
            cause = error.__cause__ or error
            problem = UnitError(ErrorType.ENGINE_FAILED, f"{type(cause).__name__}: {cause}")
        else:
            seconds = self._admission.read_clock() - started
            done = AnsweredUnit.of(unit, answers)
            return dataclasses.replace(done, engine_seconds=seconds, engine=self.name)
        finally:
            await self._admission.leave(tokens)
        return AnsweredUnit.of(unit.failed(ErrorRecord.from_error("engine", problem)))

    def _check_context(self, unit: PreparedUnit) -> None:
        """Check the context that vLLM has memory for, which may be less than the plan's."""
        for prompt in unit.prompts:
            num_prompt = len(prompt.input_ids or ())
            max_new_tokens = self._questions[prompt.task].max_new_tokens
            if num_prompt + max_new_tokens > self._max_model_len:
                raise UnitError(
                    ErrorType.OVER_CONTEXT,
                    f"{prompt.task}: {num_prompt} prompt tokens and up to {max_new_tokens} answer "
                    f"tokens are over the {self._max_model_len} that vLLM has memory for: shorten "
                    "the windows, lower budget or max_new_tokens, or use more GPU memory",
                )

    async def _answer_prompt(
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
        for attempt in range(_ATTEMPTS):
            request = engine_input(prompt, media, self._prompter.pad_ids)
            if request["type"] == "multimodal" and attempt == 0:
                # Leaves only the hash of media that vLLM's process has from another prompt. If it
                # has them no more, the second attempt sends them, whatever the cache here says.
                inject = self.async_llm.input_processor.inject_into_mm_cache
                inject(request["mm_hashes"], request["mm_kwargs"])
            ids, reason = await self._request(request, params, f"{row}/{next(self._numbers)}")
            if reason != "error":
                break
        if reason not in ("stop", "length", "loop"):
            raise UnitError(ErrorType.ENGINE_FAILED, f"{prompt.task}: vLLM aborted: {reason}")
        return RawAnswer(
            task=prompt.task,
            raw_text=self._prompter.decode(ids),
            finish_reason=reason,
            num_prompt_tokens=len(request["prompt_token_ids"]),
            num_output_tokens=len(ids),
            opens_reasoning=self._opens_reasoning,
        )

    async def _request(self, request: Any, params: Any, request_id: str) -> tuple[list[int], str]:
        """Send a request, and end it at a loop; returns the answer's ids and why it ended."""
        stop_loops = params.output_kind != RequestOutputKind.FINAL_ONLY
        ids: list[int] = []
        num_checked, reason = 0, "error"
        stream = self.async_llm.generate(request, params, request_id, lora_request=self._adapter)
        async with aclosing(stream):  # leaving it early cancels the request
            async for output in stream:
                if list(output.prompt_token_ids or ()) != request["prompt_token_ids"]:
                    raise UnitError(
                        ErrorType.TOKEN_MISMATCH,
                        f"vLLM read {len(output.prompt_token_ids or ())} prompt tokens, not the "
                        f"{len(request['prompt_token_ids'])} that were prepared",
                    )
                (completion,) = output.outputs
                ids, reason = list(completion.token_ids), completion.finish_reason
                if stop_loops:
                    # An answer that has ended by itself is no loop, whatever its last tokens are.
                    lengths = range(num_checked + 1, len(ids) + (reason != "stop"))
                    num_checked = len(ids)
                    if (end := _first_loop(ids, lengths)) is not None:
                        return ids[:end], "loop"
        return ids, reason


async def _all_or_none(work: Iterable[Coroutine[Any, Any, ResultT]]) -> tuple[ResultT, ...]:
    """Wait for all results; the first that fails ends the others, which nobody would read."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return tuple(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Admission:
    """Admits units in order up to a limit of prompt tokens, and gives each its share of time.

    limit: prompt tokens.
    """

    def __init__(self, limit: int) -> None:
        self._limit, self._num_tokens, self._num_units = limit, 0, 0
        self._changed = asyncio.Condition()
        self._clock, self._read_at = 0.0, time.perf_counter()

    async def enter(self, num_tokens: int) -> None:
        """Wait until the unit fits; a unit that exceeds the limit is admitted alone."""
        async with self._changed:
            await self._changed.wait_for(
                lambda: not self._num_units or self._num_tokens + num_tokens <= self._limit
            )
            self.read_clock()
            self._num_tokens, self._num_units = self._num_tokens + num_tokens, self._num_units + 1

    async def leave(self, num_tokens: int) -> None:
        """Release the unit's tokens."""
        async with self._changed:
            self.read_clock()
            self._num_tokens, self._num_units = self._num_tokens - num_tokens, self._num_units - 1
            self._changed.notify_all()

    def read_clock(self) -> float:
        """Read a clock in seconds that runs n times slower while n units are admitted.

        The difference of two readings is a unit's share of the engine's time between them.
        """
        now = time.perf_counter()
        if self._num_units:
            self._clock += (now - self._read_at) / self._num_units
        self._read_at = now
        return self._clock


def _num_tokens(unit: PreparedUnit) -> int:
    """Prompt tokens of a unit in the cache: vision tokens once, the text of each task."""
    vision = sum(part.sampling.num_vision_tokens for part in unit.seen)
    return vision + sum(len(p.input_ids or ()) - vision for p in unit.prompts)


def _first_loop(ids: Sequence[int], lengths: range) -> int | None:
    """The number of tokens to keep, if the answer was a loop at one of these lengths."""
    return next((end for n in lengths if (end := loop_end(ids[:n])) is not None), None)
