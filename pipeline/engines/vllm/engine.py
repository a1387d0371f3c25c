"""The engine for GPUs: vLLM, with continuous batching.

One vLLM engine lives as long as its actor. ``generate`` is thread-safe: concurrent calls share one
queue. The actor makes several at a time, each for one block of the plan, so that vLLM stays busy.
"""

import asyncio
import dataclasses
import itertools
import logging
import threading
from collections.abc import Coroutine, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

from vllm.sampling_params import RequestOutputKind
from vllm.usage.usage_lib import UsageContext
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from pipeline.engines.answer_schema import grammar_of
from pipeline.engines.largest import LargestMedia
from pipeline.engines.token_sampling import loop_end
from pipeline.engines.vllm.adapter import adapter_request
from pipeline.engines.vllm.admission import Admission, num_cache_tokens
from pipeline.engines.vllm.args import engine_args, send_no_usage_data, vllm_version
from pipeline.engines.vllm.inputs import (
    Medium,
    check_read,
    engine_input,
    media_of,
    sampling_params,
)
from pipeline.engines.vllm.pooling import read_vector, vector_params
from pipeline.engines.vllm.prefix import kept_by
from pipeline.model.prompter import Prompter
from schemas.errors import ErrorType, ModelError, UnitError
from schemas.job.generation import Generation
from schemas.job.job import Job
from schemas.tables.error import ErrorRecord
from schemas.tables.unit import AnsweredUnit, PreparedUnit, Prompt, RawAnswer, UnitStatus
from schemas.task import REASONING_BEGINS, REASONING_ENDS, Question

logger = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")

_ATTEMPTS = 2
"""A request is repeated once if vLLM reports an error, such as media evicted from its cache."""

_QUEUE_FACTOR = 1.25
"""Prompt tokens submitted to vLLM, as a multiple of its cache: so some requests always wait."""


class EngineDied(Exception):
    """vLLM's process ended: the actor must be replaced, and its units must be answered again."""


@dataclass(frozen=True, kw_only=True)
class _Reply:
    """What vLLM answers to a request: token ids, why they end, prompt tokens of its cache.

    vector: in place of token ids, as an answer's text; None if text was generated.
    """

    ids: list[int]
    reason: str
    num_cached_tokens: int
    vector: str | None = None


@dataclass(frozen=True, kw_only=True)
class _Answer:
    """A prompt's answer, and the prompt tokens that vLLM read for it."""

    raw: RawAnswer
    num_read_tokens: int


class VllmEngine:
    """Answers units with vLLM, on the GPUs of its actor.

    async_llm: vLLM's ``AsyncLLM``. kept: what it keeps of a unit's shared beginning. name: its
    version, model runner and prefix cache, as it reports them.
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
        reasoning_ids = self._optional_reasoning()
        self._grammars = {q.name: grammar_of(q, reasoning_ids) for q in constrained}
        self._adapter = adapter_request(job.model)
        self._numbers = itertools.count()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="vllm", daemon=True).start()
        send_no_usage_data()
        args = engine_args(job, largest, opens_reasoning=self._opens_reasoning)

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
        cache = config.cache_config
        self.kept = kept_by(cache)
        self.name = f"vLLM {vllm_version()}, model runner {runner}, {self.kept}"
        self._max_model_len = int(config.model_config.max_model_len)
        self._admission = Admission(
            int(_QUEUE_FACTOR * (cache.num_gpu_blocks or 0) * cache.block_size)
        )

    def _optional_reasoning(self) -> tuple[int, int] | None:
        """Token ids around reasoning that no prompt opens, but an answer may; None if none may."""
        if self._opens_reasoning or not self._prompter.expects_reasoning:
            return None
        tags = [REASONING_BEGINS, REASONING_ENDS]
        begin, end = self._prompter.tokenizer.convert_tokens_to_ids(tags)
        return begin, end

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
        tokens = num_cache_tokens(unit, self.kept)
        await self._admission.enter(tokens)
        started = self._admission.read_clock()
        try:
            self._check_context(unit)
            # In a thread: cutting and hashing patches would block the other units.
            media = await asyncio.to_thread(media_of, unit)
            # All at once: vLLM encodes their media once, and has the next prompt wait for a state
            # that this step computes. The shortest first: the end of its last whole block, where a
            # state is kept, is the most likely one to lie in what all of them share.
            order = sorted(unit.prompts, key=lambda prompt: prompt.num_prompt_tokens)
            found = await _all_or_none(
                self._answer_prompt(unit, prompt, media, generation) for prompt in order
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
            answers = {one.raw.task: one.raw for one in found}
            num_read = sum(one.num_read_tokens for one in found)
            return dataclasses.replace(
                AnsweredUnit.of(unit, tuple(answers[prompt.task] for prompt in unit.prompts)),
                engine_seconds=seconds,
                num_read_again=max(0, num_read - unit.num_fed_tokens),
                engine=self.name,
            )
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
    ) -> "_Answer":
        question = self._questions[prompt.task]
        row = f"{unit.unit_id}/{prompt.task}"
        grammar = self._grammars.get(prompt.task)
        params: Any
        if question.is_vector:
            ask, params = self._pool, vector_params()
        else:
            ask, params = self._request, sampling_params(generation, question, row, grammar)
        for attempt in range(_ATTEMPTS):
            request = engine_input(prompt, media, self._prompter.pad_ids)
            if request["type"] == "multimodal" and attempt == 0:
                # Leaves only the hash of media that vLLM's process has from another prompt. If it
                # has them no more, the second attempt sends them, whatever the cache here says.
                inject = self.async_llm.input_processor.inject_into_mm_cache
                inject(request["mm_hashes"], request["mm_kwargs"])
            found = await ask(request, params, f"{row}/{next(self._numbers)}")
            if found.reason != "error":
                break
        if found.reason not in ("stop", "length", "loop"):
            raise UnitError(ErrorType.ENGINE_FAILED, f"{prompt.task}: vLLM aborted: {found.reason}")
        num_prompt_tokens = len(request["prompt_token_ids"])
        raw = RawAnswer(
            task=prompt.task,
            raw_text=self._prompter.decode(found.ids) if found.vector is None else found.vector,
            finish_reason=found.reason,
            num_prompt_tokens=num_prompt_tokens,
            num_output_tokens=len(found.ids),
            opens_reasoning=self._opens_reasoning,
        )
        return _Answer(raw=raw, num_read_tokens=num_prompt_tokens - found.num_cached_tokens)

    async def _pool(self, request: Any, params: Any, request_id: str) -> "_Reply":
        """Send a request for a vector."""
        stream = self.async_llm.encode(request, params, request_id, lora_request=self._adapter)
        vector, num_cached = await read_vector(stream, request)
        reason = "error" if vector is None else "stop"
        return _Reply(ids=[], reason=reason, num_cached_tokens=num_cached, vector=vector)

    async def _request(self, request: Any, params: Any, request_id: str) -> "_Reply":
        """Send a request, and end it at a loop."""
        stop_loops = params.output_kind != RequestOutputKind.FINAL_ONLY
        ids: list[int] = []
        num_checked, num_cached, reason = 0, 0, "error"
        stream = self.async_llm.generate(request, params, request_id, lora_request=self._adapter)
        async with aclosing(stream):  # leaving it early cancels the request
            async for output in stream:
                check_read(output.prompt_token_ids or (), request)
                num_cached = output.num_cached_tokens or num_cached
                (completion,) = output.outputs
                ids, reason = list(completion.token_ids), completion.finish_reason
                if stop_loops:
                    # An answer that has ended by itself is no loop, whatever its last tokens are.
                    lengths = range(num_checked + 1, len(ids) + (reason != "stop"))
                    num_checked = len(ids)
                    if (end := _first_loop(ids, lengths)) is not None:
                        ids, reason = ids[:end], "loop"
                        break
        return _Reply(ids=ids, reason=reason, num_cached_tokens=num_cached)


async def _all_or_none(work: Iterable[Coroutine[Any, Any, ResultT]]) -> tuple[ResultT, ...]:
    """Wait for all results; the first that fails ends the others, which nobody would read."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return tuple(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _first_loop(ids: Sequence[int], lengths: range) -> int | None:
    """The number of tokens to keep, if the answer was a loop at one of these lengths."""
    return next((end for n in lengths if (end := loop_end(ids[:n])) is not None), None)
