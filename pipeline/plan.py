"""Turn media items into units with exact token counts, from their headers alone.

Exact: the frames' sizes follow from the header, their times from the header's index, or, where
there is none, from the packets around the few times at which a timestamp gains a digit.
"""

import dataclasses
import hashlib
import logging
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pipeline.budget import Size, image_size, video_size
from pipeline.container import open_video
from pipeline.parse import TASKS
from pipeline.probe import VideoProbe, probe_image
from pipeline.prompt import Prompter, Vision, pair_seconds
from pipeline.read_messages import split_messages
from pipeline.segment import num_frames, part_sampling, stretches
from pipeline.shots import shot_starts
from pipeline.storage import MediaFile, Storage
from schemas.errors import ErrorRecord, ErrorType, UnitError
from schemas.job import Job, SamplingSpec
from schemas.manifest import MediaItem, guess_media_type
from schemas.task import Question
from schemas.unit import Media, Part, Prompt, Sampling, Unit

logger = logging.getLogger(__name__)

DEFAULT_LIST_FPS = 2.0
"""Frames a second of a frame list that does not say, as in the model's reference code."""

PROBE_THREADS = 16
"""Headers are read by so many threads: the time goes into waiting for the storage."""


@dataclass(frozen=True, kw_only=True)
class _Planned:
    """What the model is to see of an image, a stretch of video or a frame list.

    stretch: start and end of a stretch of video; else None.
    """

    media: Media
    sampling: Sampling
    pts_seconds: Sequence[float] = ()
    stretch: tuple[float, float] | None = None

    @property
    def vision(self) -> Vision:
        return Vision.of(self.media.media_type, self.sampling, self.pts_seconds)


class Planner:
    """Plans media items: header facts, stretches, frames, sizes, tokens, cost."""

    def __init__(self, job: Job, max_model_len: int, storage: Storage) -> None:
        """Load the tokenizer.

        max_model_len: longest prompt plus answer in tokens; longer units are refused.
        """
        self._job = job
        self._questions = job.questions()
        self._max_model_len = max_model_len
        self._storage = storage
        self._prompter = Prompter(job.model.source, job.model.revision)

    def plan(self, items: Sequence[MediaItem]) -> list[Unit]:
        """Plan items, in order. Every item gives at least one unit: a failed one says why."""
        with ThreadPoolExecutor(PROBE_THREADS) as pool:
            return [unit for units in pool.map(self.plan_item, items) for unit in units]

    def plan_item(self, item: MediaItem) -> list[Unit]:
        """Plan one item; never raises for what is wrong with the item."""
        try:
            return self._units(item)
        except UnitError as error:
            problem = error
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
        for planned in self._planned(item, self._job.sampling):
            media = planned.media
            unit = self._unit(item, media.content_version, *(planned.stretch or (None, None)))
            unit = dataclasses.replace(unit, media=media, sampling=planned.sampling)
            units.append(self._priced(unit, item, media.media_type, [planned.vision]))
        return units

    def _conversation(self, item: MediaItem, messages: str) -> Unit:
        """Plan a conversation: each of its images and videos is one part, in one piece."""
        found: list[_Planned] = []
        _, media = split_messages(messages)
        for k, part in enumerate(media, start=1):
            sampling = part_sampling(self._job.sampling, part.settings)
            try:
                found += self._planned(part, sampling)
            except UnitError as error:
                where = f"{part.media_type} {k} of {len(media)} in the messages"
                raise UnitError(error.error_type, f"{where}: {error}") from None
        versions = [planned.media.content_version for planned in found]
        unit = dataclasses.replace(
            self._unit(item, _digest(*versions), None, None),
            parts=tuple(
                Part(uri=m.uri, frames=m.frames, media=planned.media, sampling=planned.sampling)
                for m, planned in zip(media, found, strict=True)
            ),
        )
        return self._priced(unit, item, "messages", [planned.vision for planned in found])

    def _planned(self, item: MediaItem, sampling: SamplingSpec) -> list[_Planned]:
        """Probe an item. Several come of a video that ``sampling`` cuts."""
        if item.frames:
            return [self._frame_list(item)]
        media_type = item.media_type or guess_media_type(item.uri)
        with self._storage.open_media(item.uri, header_only=True) as file:
            if file.size_bytes == 0:
                raise UnitError(ErrorType.MEDIA_UNREADABLE, "the file is empty")
            if media_type == "image":
                return [self._image(item, probe_image(file))]
            if media_type == "video":
                return self._video(item, file, sampling)
            try:
                return [self._image(item, probe_image(file))]
            except UnitError:
                return self._video(item, file, sampling)

    def _image(self, item: MediaItem, media: Media) -> _Planned:
        if item.start_seconds is not None or item.end_seconds is not None:
            raise UnitError(ErrorType.BAD_REQUEST, "an image has no start_seconds or end_seconds")
        media = dataclasses.replace(media, intrinsics=item.intrinsics)
        size = image_size(media.height, media.width, self._job.budget, item.settings)
        return _Planned(media=media, sampling=_sampling(size, 1))

    def _video(self, item: MediaItem, file: MediaFile, sampling: SamplingSpec) -> list[_Planned]:
        cut, starts = sampling.segmentation, []
        if cut.kind == "shots":
            starts = shot_starts(file, cut.shot_threshold)
        with open_video(file) as (container, stream):
            probe = VideoProbe(file, container, stream)
            spans = stretches(probe.media, item.start_seconds, item.end_seconds, sampling, starts)
            found: list[_Planned] = []
            pairs = [(-math.inf, probe.media.begin_seconds or 0.0)]
            for start, end in spans:
                # Windows may overlap: of the one before, what was shown when this one begins.
                least = max(shown for at, shown in pairs if at <= start)
                planned = self._stretch(item, probe, sampling, (start, end), least)
                sample_times = planned.sampling.times_seconds()[1::2]
                shown = zip(sample_times, pair_seconds(planned.pts_seconds), strict=True)
                pairs = [(-math.inf, least), *shown]
                found.append(planned)
            return found

    def _stretch(
        self,
        item: MediaItem,
        probe: VideoProbe,
        spec: SamplingSpec,
        stretch: tuple[float, float],
        least: float,
    ) -> _Planned:
        """Plan a stretch. least: a time that none of its frames is before."""
        media, (start, end) = probe.media, stretch
        count = num_frames(start, end, media.average_fps, spec)
        size = video_size(count, media.height, media.width, self._job.budget, item.settings)
        sampling = dataclasses.replace(
            _sampling(size, count),
            start_seconds=start,
            end_seconds=end,
            origin_seconds=start if spec.clock == "unit" else 0.0,
            sample_fps=count / (end - start),
        )
        times = sampling.times_seconds()
        pts = planned_pts(times, least, probe.displayed_pts, sampling.origin_seconds)
        return _Planned(media=media, sampling=sampling, pts_seconds=pts, stretch=stretch)

    def _frame_list(self, item: MediaItem) -> _Planned:
        """A video given as images: all of them, ``sample_fps`` a second, the last twice if odd."""
        if item.start_seconds is not None or item.end_seconds is not None:
            raise UnitError(
                ErrorType.BAD_REQUEST, "a frame list has no start_seconds or end_seconds"
            )
        versions, first = [], None
        for uri in item.frames:
            with self._storage.open_media(uri, header_only=True) as file:
                versions.append(file.content_version)
                first = first or probe_image(file)
        assert first is not None
        fps = item.sample_fps or DEFAULT_LIST_FPS
        count = len(item.frames) + len(item.frames) % 2
        media = dataclasses.replace(
            first,
            media_type="video",
            content_version=_digest(*versions),
            size_bytes=None,
            container="frames",
            begin_seconds=0.0,
            duration_seconds=len(item.frames) / fps,
            average_fps=fps,
            num_frames=len(item.frames),
            is_vfr=False,
        )
        size = video_size(count, media.height, media.width, self._job.budget, item.settings)
        sampling = dataclasses.replace(
            _sampling(size, count),
            start_seconds=0.0,
            end_seconds=len(item.frames) / fps,
            sample_fps=fps,
        )
        pts = [min(k, len(item.frames) - 1) / fps for k in range(count)]
        return _Planned(media=media, sampling=sampling, pts_seconds=pts)

    def _unit(
        self, item: MediaItem, version: str | None, start: float | None, end: float | None
    ) -> Unit:
        stretch = [None if t is None else f"{t:.6f}" for t in (start, end)]
        further = [item.messages] if item.messages is not None else []
        if item.intrinsics:  # what the typed boxes follow from
            further.append(repr(dataclasses.astuple(item.intrinsics)))
        return Unit(
            unit_id=_digest(item.media_id, version, *stretch, *further),
            media_id=item.media_id,
            uri=item.uri,
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
        for question in questions:
            if unit.messages is not None:
                tokens = self._prompter.num_chat_tokens(
                    unit.messages, visions, add_vision_id=question.add_vision_id
                )
            else:
                text = TASKS[question.task].prompt(question, kind)
                tokens = self._prompter.num_tokens(visions[0], text, question.tools)
            prompts.append(Prompt(task=question.task, num_prompt_tokens=tokens))
            cost += tokens + question.max_new_tokens
        unit = dataclasses.replace(unit, prompts=tuple(prompts), predicted_cost=cost)
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


def planned_pts(
    times: list[float],
    least: float,
    displayed_pts: Callable[[float], float],
    origin_seconds: float = 0.0,
) -> list[float]:
    """Frame times from which the prompt's length follows exactly.

    times: the planned sample times, an even number; a frame's PTS is at or before its sample time.
    least: a time that none of the frames is before.
    displayed_pts: the exact PTS of the frame on display at a time; may have to read packets.
    origin_seconds: what the times in the prompt count from.

    A timestamp's length changes only where it gains a digit (10.0 s, 100.0 s, ...). Away from
    there the sample time stands for the PTS; near there the exact PTS is taken.
    """
    pts = list(times)

    def told(k: int) -> float:
        return pair_seconds([t - origin_seconds for t in pts[k : k + 2]])[0]

    before = max(least - origin_seconds, 0.0)
    for k in range(0, len(pts), 2):
        if _digits(told(k) + 1e-5) > _digits(before):
            pts[k : k + 2] = [displayed_pts(t) for t in times[k : k + 2]]
        before = told(k)
    return pts


def _digits(seconds: float) -> int:
    return len(f"{seconds:.1f}")


def _sampling(size: Size, count: int) -> Sampling:
    return Sampling(
        num_frames=count,
        resized_height=size.resized_height,
        resized_width=size.resized_width,
        grid_thw=size.grid_thw,
        num_vision_tokens=size.num_tokens,
    )


def _digest(*parts: str | None) -> str:
    return hashlib.sha256("\x1f".join(part or "" for part in parts).encode()).hexdigest()[:24]
