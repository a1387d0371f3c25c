"""Turn media items into units with exact token counts, from their headers alone."""

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from pipeline.choose import Chooser, Chosen, digest
from pipeline.isolate import Isolated, Limits
from pipeline.parse import TASKS
from pipeline.prompt import Prompter, Vision
from pipeline.read_messages import split_messages
from pipeline.segment import part_sampling
from pipeline.storage import Storage
from schemas.errors import ErrorRecord, ErrorType, ResourceError, UnitError
from schemas.job import Job, SamplingSpec
from schemas.manifest import MediaItem
from schemas.task import Question
from schemas.unit import Part, Prompt, Unit

logger = logging.getLogger(__name__)

PROBE_THREADS = 16
"""Headers are read by so many threads: the time goes into waiting for the storage."""


class Planner:
    """Plans media items: header facts, stretches, frames, sizes, tokens, cost."""

    def __init__(
        self, job: Job, max_model_len: int, storage: Storage, isolated: Isolated | None = None
    ) -> None:
        """Load the tokenizer.

        max_model_len: longest prompt plus answer in tokens; longer units are refused.
        isolated: where media are probed; else in this process, which a broken one can end.
        """
        self._job = job
        self._questions = job.questions()
        self._max_model_len = max_model_len
        self._chooser = Chooser(budget=job.budget, storage=storage)
        self._isolated = isolated
        # How long a video is, is not known yet; to find its shots may take all of its frames.
        frames = 10 if job.sampling.segmentation.kind == "shots" else 1
        self._limits = Limits.of(job.resources, times=frames)
        self._prompter = Prompter(job.model.source, job.model.revision)

    def plan(self, items: Sequence[MediaItem]) -> list[Unit]:
        """Plan items, in order. Every item gives at least one unit: a failed one says why."""
        return [unit for units in self.plan_each(items) for unit in units]

    def plan_each(self, items: Sequence[MediaItem]) -> Iterator[list[Unit]]:
        """Plan items, in order: the units of one, then of the next."""
        with ThreadPoolExecutor(PROBE_THREADS) as pool:
            yield from pool.map(self.plan_item, items)

    def plan_item(self, item: MediaItem) -> list[Unit]:
        """Plan one item; never raises for what is wrong with the item."""
        try:
            return self._units(item)
        except UnitError as error:
            problem = error
        except ResourceError:  # the machine's fault, not the item's
            raise
        except Exception as error:  # the stage's boundary: hostile media costs its own row only
            logger.exception("planning %s", item.media_id)
            problem = UnitError(
                ErrorType.MEDIA_UNREADABLE, f"probing failed: {type(error).__name__}: {error}"
            )
        unit = self._unit(item, None, item.start_seconds, item.end_seconds)
        return [unit.failed(ErrorRecord.from_error("plan", problem))]

    def _units(self, item: MediaItem) -> list[Unit]:
        if item.messages is not None:
            return [self._conversation(item, item.messages)]
        units = []
        for planned in self._choose(item, self._job.sampling):
            media = planned.media
            unit = self._unit(item, media.content_version, *(planned.stretch or (None, None)))
            unit = dataclasses.replace(unit, media=media, sampling=planned.sampling)
            units.append(self._priced(unit, item, media.media_type, [planned.vision]))
        return units

    def _conversation(self, item: MediaItem, messages: str) -> Unit:
        """Plan a conversation: each of its images and videos is one part, in one piece."""
        found: list[Chosen] = []
        _, media = split_messages(messages)
        for k, part in enumerate(media, start=1):
            sampling = part_sampling(self._job.sampling, part.settings)
            try:
                found += self._choose(part, sampling)
            except UnitError as error:
                where = f"{part.media_type} {k} of {len(media)} in the messages"
                raise UnitError(error.error_type, f"{where}: {error}", error.attempts) from None
        versions = [planned.media.content_version for planned in found]
        unit = dataclasses.replace(
            self._unit(item, digest(*versions), None, None),
            parts=tuple(
                Part(uri=m.uri, frames=m.frames, media=planned.media, sampling=planned.sampling)
                for m, planned in zip(media, found, strict=True)
            ),
        )
        return self._priced(unit, item, "messages", [planned.vision for planned in found])

    def _choose(self, item: MediaItem, sampling: SamplingSpec) -> list[Chosen]:
        if self._isolated is None:
            return self._chooser.choose(item, sampling)
        chosen: list[Chosen] = self._isolated.call(
            self._chooser.choose,
            item,
            sampling,
            limits=self._limits,
            modules=self._chooser.storage.modules(item.frames or (item.uri,)),
        )
        return chosen

    def _unit(
        self, item: MediaItem, version: str | None, start: float | None, end: float | None
    ) -> Unit:
        stretch = [None if t is None else f"{t:.6f}" for t in (start, end)]
        asked = [None if t is None else f"{t:.6f}" for t in (item.start_seconds, item.end_seconds)]
        # What else an answer follows from; the rest is the recipe's.
        further = [item.messages] if item.messages is not None else []
        if item.intrinsics:
            further.append(repr(dataclasses.astuple(item.intrinsics)))
        if item.frames and item.sample_fps is not None:
            further.append(f"sample_fps={item.sample_fps:g}")
        if item.tasks:
            further.append(f"tasks={sorted(item.tasks)}")
        return Unit(
            unit_id=digest(item.media_id, version, *stretch, *further),
            unread_id=digest(item.media_id, None, *asked, *further),
            media_id=item.media_id,
            uri=item.uri,
            content_version=item.content_version or version,
            frames=item.frames,
            attributes=item.attributes,
            messages=split_messages(item.messages)[0] if item.messages is not None else None,
        )

    def _priced(self, unit: Unit, item: MediaItem, kind: str, visions: Sequence[Vision]) -> Unit:
        """Add the tasks' exact prompt lengths, and refuse what the context cannot hold.

        kind: image, video or messages.
        """
        questions = self._asked(item, kind)
        prompts, cost = [], 0.0
        shared: dict[tuple[object, ...], int] = {}
        for question in questions:
            if unit.messages is not None:
                length = self._prompter.chat_length(
                    unit.messages, visions, add_vision_id=question.add_vision_id
                )
            else:
                text = TASKS[question.task].prompt(question, kind)
                length = self._prompter.length(visions[0], text, question.tools)
            prompts.append(
                Prompt(
                    task=question.task,
                    num_prompt_tokens=length.num_tokens,
                    num_own_tokens=length.num_own_tokens,
                )
            )
            # Only these two change what stands before the media.
            begin = (question.tools, question.add_vision_id)
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
                    f"{question.task}: {prompt.num_prompt_tokens} prompt tokens "
                    f"({num_vision_tokens} of them vision) and {question.max_new_tokens} "
                    f"for the answer are over the context of {self._max_model_len}; lower "
                    "budget.unit_tokens, frame_tokens or sampling.max_frames, or use windows",
                )
                return unit.failed(ErrorRecord.from_error("plan", error))
        return unit

    def _asked(self, item: MediaItem, kind: str) -> list[Question]:
        asked = [
            question
            for question in self._questions
            if kind in TASKS[question.task].media_types
            and (not item.tasks or question.task in item.tasks)
        ]
        if not asked:
            is_chat = kind == "messages"
            what = "these are messages: add the task chat" if is_chat else f"this is of type {kind}"
            raise UnitError(
                ErrorType.BAD_REQUEST,
                f"no task to ask: the job has {[q.task for q in self._questions]}, the manifest "
                f"row asks for {list(item.tasks) or 'all'}, and {what}",
            )
        return asked
