"""The stage that decodes: units in, frames and token ids out."""

import dataclasses
import logging
import time
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from pipeline.model.prompter import Prompter, Vision
from pipeline.storage.storage import Storage
from pipeline.tasks.embedding import messages_of
from pipeline.tasks.registry import TASKS
from pipeline.workers.code_version import check_code
from pipeline.workers.isolated_decoder import IsolatedDecoder
from schemas.errors import ErrorType, ResourceError, UnitError
from schemas.job.job import Job
from schemas.shown import log_shown
from schemas.tables.columns import from_table, to_table
from schemas.tables.error import ErrorRecord
from schemas.tables.unit import PREPARED, PreparedUnit, Prompt, Unit, UnitStatus

logger = logging.getLogger(__name__)


TABLE_BYTES = 32 << 20
"""Bytes of frames in one output table. Even a small table takes milliseconds to pass on."""


class Prepare:
    """Stage: UNIT in, PREPARED out. Decodes in a child process."""

    def __init__(
        self,
        job: Job,
        storage: Storage,
        code: str,
        *,
        num_children: int = 1,
        quiet: bool = False,
    ) -> None:
        """Load the tokenizer.

        num_children: how many threads may call this object at a time.
        quiet: of ``IsolatedDecoder``, for a process with a terminal.
        """
        log_shown()
        check_code(code)
        self._decoder = IsolatedDecoder(
            job.resources,
            storage,
            num_children=num_children,
            num_threads=max(1, int(job.resources.cpus_per_decoder)),
            quiet=quiet,
        )
        self._decoder_name = job.sampling.decoder
        self._questions = {question.name: question for question in job.questions()}
        self._prompter = Prompter.of(job)

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        """Decode unit by unit; yields small units together, large ones alone."""
        held: list[PreparedUnit] = []
        num_bytes = 0
        for unit in from_table(batch, Unit):
            held.append(self.prepare(unit))
            num_bytes += len(held[-1].frame_data or b"")
            if num_bytes >= TABLE_BYTES:
                yield to_table(held, PREPARED)
                held, num_bytes = [], 0
        if held:
            yield to_table(held, PREPARED)

    def prepare(self, unit: Unit) -> PreparedUnit:
        """Decode one unit and build its prompts. An error of the unit becomes a failed unit.

        Raises:
            ResourceError: the machine is at fault.
        """
        fields = {field.name: getattr(unit, field.name) for field in dataclasses.fields(unit)}
        waiting = PreparedUnit(**fields)
        if unit.status == UnitStatus.FAILED:
            return waiting
        started = time.perf_counter()
        try:
            prepared = self._prepare(waiting)
        except UnitError as error:
            problem = error
        except ResourceError:
            raise
        except Exception as error:  # the stage's boundary: hostile media cost only their own row
            logger.exception("decoding %s", unit.unit_id)
            problem = UnitError(
                ErrorType.MEDIA_UNREADABLE, f"decoding failed: {type(error).__name__}: {error}"
            )
        else:
            return dataclasses.replace(prepared, decode_seconds=time.perf_counter() - started)
        failed = waiting.failed(ErrorRecord.from_error("decode", problem))
        return dataclasses.replace(failed, decode_seconds=time.perf_counter() - started)

    def _prepare(self, unit: PreparedUnit) -> PreparedUnit:
        decoded = [self._decoder.decode(part, self._decoder_name) for part in unit.seen]
        visions = [
            Vision.of(part.media.media_type, part.sampling, frames.pts_seconds)
            for part, frames in zip(unit.seen, decoded, strict=True)
        ]
        parts = tuple(
            dataclasses.replace(
                part, media=frames.media(part.media), sampling=frames.sampling(part.sampling)
            )
            for part, frames in zip(unit.seen, decoded, strict=True)
        )
        is_chat = unit.messages is not None
        read = [frames.bytes_read for frames in decoded if frames.bytes_read is not None]
        return dataclasses.replace(
            unit,
            media=None if is_chat else parts[0].media,
            sampling=None if is_chat else parts[0].sampling,
            parts=parts if is_chat else (),
            prompts=tuple(self._prompt(unit, prompt, visions) for prompt in unit.prompts),
            frame_data=b"".join(np.ascontiguousarray(f.pixels).data for f in decoded),
            bytes_read=sum(read) if read else None,
        )

    def _prompt(self, unit: Unit, prompt: Prompt, visions: list[Vision]) -> Prompt:
        """Add the token ids to a prompt; the engine compares their number with the plan."""
        question = self._questions[prompt.task]
        kind = visions[0].media_type if unit.messages is None else "messages"
        messages = messages_of(question, unit.messages, kind)
        if messages is not None:
            ids = self._prompter.chat_ids(messages, visions, add_vision_id=question.add_vision_id)
        else:
            text = TASKS[question.task].prompt(question, kind)
            ids = self._prompter.input_ids(visions[0], text, question.tools)
        return dataclasses.replace(prompt, input_ids=tuple(ids))
