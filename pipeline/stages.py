"""The stages: what an actor of each kind sets up once, and does with each batch."""

import dataclasses
import functools
import logging
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
import pyarrow as pa

from pipeline.decode import Frames, decode_unit, decoder_modules
from pipeline.guard import Guard
from pipeline.isolate import Isolated, Limits
from pipeline.parse import TASKS
from pipeline.plan import PROBE_THREADS, Planner
from pipeline.prompt import Prompter, Vision
from pipeline.same_code import check_code
from pipeline.second_attempt import ask_again
from pipeline.storage import Storage
from pipeline.summary import Note, Summariser, summary_job
from pipeline.write import RunKey, annotation_row, write_part
from schemas.annotation import RESPONSE, TIMINGS
from schemas.errors import ERROR, ErrorRecord, ErrorType, ResourceError, StorageError, UnitError
from schemas.job import Generation, Job
from schemas.manifest import MediaItem
from schemas.unit import (
    ANSWERED,
    PREPARED,
    UNIT,
    AnsweredUnit,
    Part,
    PreparedUnit,
    Prompt,
    Unit,
    UnitStatus,
    from_table,
    to_table,
)

logger = logging.getLogger(__name__)

TABLE_BYTES = 32 << 20
"""Frames that go on in one table. Each table costs milliseconds on its way, however small."""

OUTAGE_UNITS = 32
"""So many units one after another that the storage failed are no accident of theirs."""

_ACCOUNT = ("task", "num_prompt_tokens", "num_output_tokens", "attempts", "status")
COMMITTED = pa.schema(
    [
        pa.field("unit_id", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("error", ERROR),
        pa.field("predicted_cost", pa.float64(), nullable=False),
        pa.field("num_vision_tokens", pa.int64(), nullable=False),
        pa.field("num_text_tokens", pa.int64(), nullable=False),
        pa.field("num_output_tokens", pa.int64(), nullable=False),
        pa.field("engine_seconds", pa.float64(), nullable=False),
        pa.field("responses", pa.list_(pa.struct([RESPONSE.field(name) for name in _ACCOUNT]))),
        pa.field("timings", TIMINGS),
    ]
)
"""What comes back to the driver of each committed unit: for progress, costs, log and metrics."""

_NOTE = pa.struct(
    [
        pa.field("start_seconds", pa.float64()),
        pa.field("end_seconds", pa.float64()),
        pa.field("text", pa.string()),
    ]
)
UNSUMMARISED = pa.schema(
    [pa.field("item_id", pa.string(), nullable=False), pa.field("notes", pa.list_(_NOTE))]
)
SUMMARISED = UNSUMMARISED.append(pa.field("summary", pa.string())).append(
    pa.field("summary_note", pa.string())
)


class Plan:
    """Stage: manifest rows in, units out."""

    def __init__(self, job: Job, max_model_len: int, storage: Storage, code: str) -> None:
        check_code(code)
        isolated = Isolated("pipeline.choose", PROBE_THREADS)
        self._planner = Planner(job, max_model_len, storage, isolated)

    def __call__(self, batch: dict[str, Any]) -> pa.Table:
        """Plan a batch of media items."""
        items: list[MediaItem] = list(batch["item"])
        return to_table(self._planner.plan(items), UNIT)


class Prepare:
    """Stage: units in, frames and token ids out. Decodes in a child process."""

    def __init__(self, job: Job, storage: Storage, code: str) -> None:
        check_code(code)
        self._isolated = Isolated("pipeline.decode")
        self._job = job
        self._storage = storage
        self._questions = {question.task: question for question in job.questions()}
        self._prompter = Prompter(job.model.source, job.model.revision)
        self._num_threads = max(1, int(job.resources.cpus_per_decoder))

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        """Decode unit by unit; small ones go on together, large ones alone."""
        held: list[PreparedUnit] = []
        num_bytes = 0
        for unit in from_table(batch):
            held.append(self.prepare(unit))
            num_bytes += len(held[-1].frame_data or b"")
            if num_bytes >= TABLE_BYTES:
                yield to_table(held, PREPARED)
                held, num_bytes = [], 0
        if held:
            yield to_table(held, PREPARED)

    def prepare(self, unit: Unit) -> PreparedUnit:
        """Decode one unit and build its prompts; a unit that cannot be done says why."""
        fields = {field.name: getattr(unit, field.name) for field in dataclasses.fields(unit)}
        waiting = PreparedUnit(**fields)
        if unit.status == UnitStatus.FAILED:
            return waiting
        started = time.perf_counter()
        try:
            prepared = self._prepare(waiting)
        except UnitError as error:
            problem = error
        except ResourceError:  # the machine's fault, not the unit's
            raise
        except Exception as error:  # the stage's boundary: hostile media costs its own row only
            logger.exception("decoding %s", unit.unit_id)
            problem = UnitError(
                ErrorType.MEDIA_UNREADABLE, f"decoding failed: {type(error).__name__}: {error}"
            )
        else:
            return dataclasses.replace(prepared, decode_seconds=time.perf_counter() - started)
        failed = waiting.failed(ErrorRecord.from_error("decode", problem))
        return dataclasses.replace(failed, decode_seconds=time.perf_counter() - started)

    def _prepare(self, unit: PreparedUnit) -> PreparedUnit:
        decoded = [self._decode(part) for part in unit.seen]
        visions = [
            Vision.of(part.media.media_type, part.sampling, frames.pts_seconds)
            for part, frames in zip(unit.seen, decoded, strict=True)
        ]
        parts = tuple(
            dataclasses.replace(part, sampling=frames.sampling(part.sampling))
            for part, frames in zip(unit.seen, decoded, strict=True)
        )
        is_chat = unit.messages is not None
        read = [frames.bytes_read for frames in decoded if frames.bytes_read is not None]
        return dataclasses.replace(
            unit,
            sampling=None if is_chat else parts[0].sampling,
            parts=parts if is_chat else (),
            prompts=tuple(self._prompt(unit, prompt, visions) for prompt in unit.prompts),
            frame_data=b"".join(np.ascontiguousarray(f.pixels).data for f in decoded),
            bytes_read=sum(read) if read else None,
        )

    def _decode(self, part: Part) -> Frames:
        decode = functools.partial(
            decode_unit, decoder=self._job.sampling.decoder, num_threads=self._num_threads
        )
        start, end = part.sampling.start_seconds or 0.0, part.sampling.end_seconds or 0.0
        limits = Limits.of(self._job.resources, more_seconds=10 * (end - start))
        modules = self._storage.modules(part.frames or (part.uri,))
        if part.media.media_type == "video" and not part.frames:
            modules |= decoder_modules(self._job.sampling.decoder)
        frames: Frames = self._isolated.call(
            decode, part, self._storage, limits=limits, modules=modules
        )
        return frames

    def _prompt(self, unit: Unit, prompt: Prompt, visions: list[Vision]) -> Prompt:
        """A prompt with its token ids, which are as many as planned."""
        question = self._questions[prompt.task]
        if unit.messages is not None:
            number = question.add_vision_id
            ids = self._prompter.chat_ids(unit.messages, visions, add_vision_id=number)
        else:
            text = TASKS[prompt.task].prompt(question, visions[0].media_type)
            ids = self._prompter.input_ids(visions[0], text, question.tools)
        return dataclasses.replace(prompt, input_ids=tuple(ids))


class Engine(Protocol):
    """What answers units: it has loaded all it needs."""

    def generate(
        self, units: Sequence[PreparedUnit], generation: Generation | None = None
    ) -> list[AnsweredUnit]:
        """Answer every prompt of every unit, in order; generation: instead of the job's."""
        ...


class Generate:
    """Stage: frames and token ids in, raw answers out. Holds the model."""

    CALLS_AT_ONCE: ClassVar = {"vllm": 3}
    """By engine, else 1. vLLM begins with the next block while the longest answers of one end."""

    def __init__(self, job: Job, deaths: Any, code: str, cpus: float) -> None:
        """cpus: of the actor, as many threads has an engine that computes on them."""
        check_code(code)
        self._num_threads = max(1, int(cpus))
        self._questions = {question.task: question for question in job.questions()}
        self._generation = job.generation
        self._guard = Guard(deaths, job.resources, self.calls_at_once(job))
        with self._guard.start():
            self._engine, self._broken = self._load(job)

    @classmethod
    def calls_at_once(cls, job: Job) -> int:
        """How many blocks the job's engine works on at a time."""
        return cls.CALLS_AT_ONCE.get(job.model.engine, 1)

    def _load(self, job: Job) -> tuple[Engine, tuple[type[Exception], ...]]:
        """Load the job's engine; with the exceptions after which its process is of no use."""
        if job.model.engine == "simulated":
            from pipeline.engines.simulated import SimulatedEngine

            return SimulatedEngine(job), ()
        if job.model.engine == "vllm":
            from pipeline.engines.vllm import EngineDied, VllmEngine

            return VllmEngine(job), (EngineDied,)
        import torch

        from pipeline.engines.transformers import TransformersEngine

        threads = None if torch.cuda.is_available() else self._num_threads
        return TransformersEngine(job, num_threads=threads), (torch.AcceleratorError,)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Answer a batch of units."""
        units: list[PreparedUnit] = from_table(batch, PreparedUnit)
        return to_table(self._guard.answer(units, self._answer), ANSWERED)

    def _answer(self, units: list[PreparedUnit]) -> list[AnsweredUnit]:
        generate = self._engine.generate
        try:
            return ask_again(generate, units, generate(units), self._questions, self._generation)
        except self._broken:
            # Its device or process is lost. Ray starts a new actor, which gets this batch again.
            logger.exception("the engine is lost, its actor ends")
            os._exit(1)


class Commit:
    """Stage: raw answers in, one committed Parquet file and a short account of it out."""

    def __init__(self, job: Job, key: RunKey, storage: Storage, code: str) -> None:
        check_code(code)
        self._output = job.output
        self._questions = {question.task: question for question in job.questions()}
        self._key = key
        self._storage = storage
        self._num_unread = 0

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Parse, write one file, and tell the driver what is in it.

        Raises:
            StorageError: the output cannot be written, or no media can be read any more.
        """
        units: list[AnsweredUnit] = from_table(batch, AnsweredUnit)
        for unit in units:
            if unit.error is not None and unit.error.stage == "plan":
                continue  # that was then
            is_unread = unit.error is not None and unit.error.type == ErrorType.STORAGE_FAILED
            self._num_unread = self._num_unread + 1 if is_unread else 0
        if self._num_unread >= OUTAGE_UNITS:  # going on would only make an error row of each unit
            message = units[-1].error.message if units[-1].error else ""
            raise StorageError(
                f"the storage of the media is away: the last {self._num_unread} units failed by "
                f"it, the last one says: {message}. Run the same command again once it answers"
            )
        rows = [annotation_row(unit, self._questions, self._key) for unit in units]
        write_part(rows, self._output, self._key, self._storage)
        account = [
            {
                "unit_id": unit.unit_id,
                "status": row["status"],
                "error": row["error"],
                "predicted_cost": unit.predicted_cost,
                "num_vision_tokens": _vision_tokens(unit) if unit.answers else 0,
                "num_text_tokens": (
                    unit.num_fed_tokens - _vision_tokens(unit) if unit.answers else 0
                ),
                "engine_seconds": unit.engine_seconds,
                "num_output_tokens": sum(answer.num_output_tokens for answer in unit.answers),
                "responses": row["responses"],
                "timings": row["timings"],
            }
            for unit, row in zip(units, rows, strict=True)
        ]
        return pa.Table.from_pylist(account, schema=COMMITTED)


def _vision_tokens(unit: Unit) -> int:
    return sum(part.sampling.num_vision_tokens for part in unit.seen)


class Summarise:
    """Stage: what is said of the units of videos in, a summary of each out. Holds the model."""

    def __init__(self, job: Job, max_model_len: int, deaths: Any, code: str, cpus: float) -> None:
        assert job.summary is not None
        asked = summary_job(job, job.summary)
        self._generate = Generate(asked, deaths, code, cpus)
        self._summariser = Summariser(
            asked.questions()[0],
            Prompter(job.model.source, job.model.revision),
            max_model_len,
            lambda units: from_table(self._generate(to_table(units, PREPARED)), AnsweredUnit),
        )

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Summarise a batch of videos: SUMMARISED rows, as they came."""
        rows = batch.to_pylist()
        videos = [(row["item_id"], [Note(**note) for note in row["notes"]]) for row in rows]
        for row, (summary, note) in zip(rows, self._summariser.summaries(videos), strict=True):
            row |= {"summary": summary, "summary_note": note}
        return pa.Table.from_pylist(rows, schema=SUMMARISED)
