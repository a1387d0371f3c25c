"""Turn media items into units with exact token counts, from their headers.

Only ``segmentation: shots`` decodes frames, to find the cuts.
"""

import dataclasses
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from pipeline.manifest.messages import split_messages
from pipeline.model.prompter import Prompter, Vision
from pipeline.plan.sampler import FrameSampler, SampledMedia
from pipeline.plan.segment import part_sampling
from pipeline.storage.ids import digest
from pipeline.storage.storage import Storage
from pipeline.tasks.embedding import messages_of
from pipeline.tasks.registry import TASKS
from pipeline.workers.child_limits import ChildLimits
from pipeline.workers.child_process import Isolated
from schemas.errors import ErrorType, ResourceError, UnitError
from schemas.job.job import Job
from schemas.job.sampling import SamplingSpec
from schemas.tables.error import ErrorRecord
from schemas.tables.manifest import MediaItem
from schemas.tables.media import Part
from schemas.tables.unit import Prompt, Unit
from schemas.task import Question

T = TypeVar("T")

logger = logging.getLogger(__name__)

PROBE_THREADS = 16
"""Threads that read headers; they mostly wait for the storage."""


def _media_key(item: MediaItem) -> object:
    """Equal for items that have one media file; each conversation is apart."""
    is_apart = item.messages is not None or bool(item.frames)
    return object() if is_apart else (item.uri, item.media_type)


def _outcome(item: MediaItem, work: Callable[[], T]) -> T | UnitError:
    """Return what ``work`` returns, or its error: the stage's boundary.

    Raises:
        ResourceError: the machine is at fault.
    """
    try:
        return work()
    except UnitError as error:
        return error
    except ResourceError:
        raise
    except Exception as error:  # hostile media cost only their own row
        logger.exception("planning %s", item.media_id)
        return UnitError(
            ErrorType.MEDIA_UNREADABLE, f"probing failed: {type(error).__name__}: {error}"
        )


class Planner:
    """Plans media items: header facts, time spans, frames, sizes, tokens, cost."""

    def __init__(
        self, job: Job, max_model_len: int, storage: Storage, isolated: Isolated | None = None
    ) -> None:
        """Load the tokenizer.

        max_model_len: maximum of prompt plus answer tokens; longer units fail.
        isolated: child processes that probe the media; None: this process, which broken media can
            crash.
        """
        self._job = job
        self._questions = job.questions()
        self._max_model_len = max_model_len
        self._sampler = FrameSampler(
            budget=job.budget, storage=storage, max_units=job.limits.max_units_per_item
        )
        self._isolated = isolated
        # Finding shots may decode the whole video, whose duration is not known yet.
        times = 10 if job.sampling.segmentation.kind == "shots" else 1
        self._limits = ChildLimits.of(job.resources, times=times)
        self._prompter = Prompter.of(job)

    def plan(self, items: Sequence[MediaItem]) -> list[Unit]:
        """Plan items, in order. Each gives one or more units; a failed unit has its error."""
        return [unit for units in self.plan_each(items) for unit in units]

    def plan_each(self, items: Sequence[MediaItem]) -> Iterator[list[Unit]]:
        """Plan items, in order; yields the units of one item at a time.

        Items of one media file that follow each other share one reading of its header.
        """
        groups = [list(group) for _, group in itertools.groupby(items, _media_key)]
        with ThreadPoolExecutor(PROBE_THREADS) as pool:
            for planned in pool.map(self._plan_group, groups):
                yield from planned

    def plan_item(self, item: MediaItem) -> list[Unit]:
        """Plan one item. An error of the item becomes a failed unit, not an exception.

        Raises:
            ResourceError: the machine is at fault.
        """
        (units,) = self._plan_group([item])
        return units

    def _plan_group(self, items: list[MediaItem]) -> list[list[Unit]]:
        """Plan items of one media file, or one conversation."""
        first, outcomes = items[0], list[list[Unit] | UnitError]()
        if first.messages is not None:
            outcomes = [_outcome(first, partial(self._plan_conversation, first, first.messages))]
        else:
            choose = partial(self._choose_each, items, self._job.sampling)
            chosen = _outcome(first, choose)
            for k, item in enumerate(items):
                found = chosen if isinstance(chosen, UnitError) else chosen[k]
                if isinstance(found, UnitError):
                    outcomes.append(found)
                else:
                    outcomes.append(_outcome(item, partial(self._units, item, found)))
        return [
            [self._failed(item, outcome)] if isinstance(outcome, UnitError) else outcome
            for item, outcome in zip(items, outcomes, strict=True)
        ]

    def _failed(self, item: MediaItem, problem: UnitError) -> Unit:
        unit = self._unit(item, None, item.start_seconds, item.end_seconds)
        return unit.failed(ErrorRecord.from_error("plan", problem))

    def _units(self, item: MediaItem, chosen: list[SampledMedia]) -> list[Unit]:
        units = []
        for planned in chosen:
            media = planned.media
            unit = self._unit(item, media.content_version, *(planned.span or (None, None)))
            unit = dataclasses.replace(unit, media=media, sampling=planned.sampling)
            units.append(self._with_prompts(unit, item, media.media_type, [planned.vision]))
        return units

    def _plan_conversation(self, item: MediaItem, messages: str) -> list[Unit]:
        """Plan a conversation as one unit: each of its images and videos is one part."""
        found: list[SampledMedia] = []
        _, media = split_messages(messages)
        for k, part in enumerate(media, start=1):
            sampling = part_sampling(self._job.sampling, part.settings)
            try:
                (chosen,) = self._choose_each([part], sampling)
                if isinstance(chosen, UnitError):
                    raise chosen
            except UnitError as error:
                where = f"{part.media_type} {k} of {len(media)} in the messages"
                raise UnitError(error.error_type, f"{where}: {error}", error.attempts) from None
            found += chosen
        versions = [planned.media.content_version for planned in found]
        unit = dataclasses.replace(
            self._unit(item, digest(*versions), None, None),
            parts=tuple(
                Part(uri=m.uri, frames=m.frames, media=planned.media, sampling=planned.sampling)
                for m, planned in zip(media, found, strict=True)
            ),
        )
        visions = [planned.vision for planned in found]
        return [self._with_prompts(unit, item, "messages", visions)]

    def _choose_each(
        self, items: list[MediaItem], sampling: SamplingSpec
    ) -> list[list[SampledMedia] | UnitError]:
        if self._isolated is None:
            return self._sampler.choose_each(items, sampling)
        found: list[list[SampledMedia] | UnitError] = self._isolated.call(
            self._sampler.choose_each,
            items,
            sampling,
            limits=dataclasses.replace(
                self._limits, timeout_seconds=self._limits.timeout_seconds + len(items) - 1
            ),
            modules=self._sampler.storage.modules(items[0].frames or (items[0].uri,)),
        )
        return found

    def _unit(
        self, item: MediaItem, version: str | None, start: float | None, end: float | None
    ) -> Unit:
        span = [None if t is None else f"{t:.6f}" for t in (start, end)]
        requested = [
            None if t is None else f"{t:.6f}" for t in (item.start_seconds, item.end_seconds)
        ]
        # What else in the manifest row determines answers; the job's settings are in the recipe.
        further = [item.messages] if item.messages is not None else []
        if item.intrinsics:
            further.append(repr(dataclasses.astuple(item.intrinsics)))
        if item.frames and item.sample_fps is not None:
            further.append(f"sample_fps={item.sample_fps:g}")
        if item.tasks:
            further.append(f"tasks={sorted(item.tasks)}")
        return Unit(
            unit_id=digest(item.media_id, version, *span, *further),
            unread_id=digest(item.media_id, None, *requested, *further),
            media_id=item.media_id,
            uri=item.uri,
            content_version=item.content_version or version,
            frames=item.frames,
            attributes=item.attributes,
            messages=split_messages(item.messages)[0] if item.messages is not None else None,
        )

    def _with_prompts(
        self, unit: Unit, item: MediaItem, kind: str, visions: Sequence[Vision]
    ) -> Unit:
        """Add the exact prompt lengths of the tasks; fail the unit if one exceeds the context.

        kind: image, video or messages.
        """
        questions = self._questions_for(item, kind)
        prompts, cost = [], 0.0
        shared: dict[tuple[object, ...], int] = {}
        for question in questions:
            messages = messages_of(question, unit.messages, kind)
            if messages is not None:
                length = self._prompter.chat_length(
                    messages, visions, add_vision_id=question.add_vision_id
                )
            else:
                text = TASKS[question.task].prompt(question, kind)
                length = self._prompter.length(visions[0], text, question.tools)
            prompts.append(
                Prompt(
                    task=question.name,
                    num_prompt_tokens=length.num_tokens,
                    num_own_tokens=length.num_own_tokens,
                )
            )
            # Only these three change the prompt before the media.
            begin = (question.tools, question.add_vision_id, question.instruction)
            shared[begin] = length.num_tokens - length.num_own_tokens
            cost += length.num_own_tokens + question.max_new_tokens
        num_shared_tokens = sum(shared.values())
        unit = dataclasses.replace(
            unit,
            prompts=tuple(prompts),
            num_shared_tokens=num_shared_tokens,
            predicted_cost=num_shared_tokens + cost,
        )
        num_vision_tokens = sum(vision.num_slots * vision.tokens_per_slot for vision in visions)
        for prompt, question in zip(prompts, questions, strict=True):
            total = prompt.num_prompt_tokens + question.max_new_tokens
            if total > self._max_model_len:
                error = UnitError(
                    ErrorType.OVER_CONTEXT,
                    f"{question.name}: {prompt.num_prompt_tokens} prompt tokens "
                    f"({num_vision_tokens} of them vision) and {question.max_new_tokens} "
                    f"for the answer are over the context of {self._max_model_len} tokens; lower "
                    "budget.unit_tokens, frame_tokens or sampling.max_frames, or use windows",
                )
                return unit.failed(ErrorRecord.from_error("plan", error))
        return unit

    def _questions_for(self, item: MediaItem, kind: str) -> list[Question]:
        """The job's questions about this kind of media that the manifest row requests.

        Raises:
            UnitError: there are none.
        """
        questions = [
            question
            for question in self._questions
            if kind in TASKS[question.task].media_types
            and (not item.tasks or question.name in item.tasks)
        ]
        if not questions:
            names = [question.name for question in self._questions]
            hint = "add the task chat" if kind == "messages" else "add a task for it"
            raise UnitError(
                ErrorType.BAD_REQUEST,
                f"no task fits: the job has {names}, the manifest's row requests "
                f"{list(item.tasks) or 'all'}, and the unit is of type {kind}: {hint}",
            )
        return questions
