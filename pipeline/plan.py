"""Turn media items into units with exact token counts, from their headers alone.

Exact: the frames' sizes follow from the header, their times from the header's index, or, where
there is none, from the packets around the few times at which a timestamp gains a digit.
"""

import dataclasses
import hashlib
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from pipeline.budget import Size, image_size, video_size
from pipeline.container import open_video
from pipeline.parse import TASKS
from pipeline.probe import VideoProbe, probe_image
from pipeline.prompt import Prompter, Vision, pair_seconds
from pipeline.segment import num_frames, stretches
from pipeline.storage import MediaFile, Storage
from schemas.errors import ErrorRecord, ErrorType, UnitError
from schemas.job import Job
from schemas.manifest import MediaItem, guess_media_type
from schemas.task import Question
from schemas.unit import Media, Prompt, Sampling, Unit

logger = logging.getLogger(__name__)

DEFAULT_LIST_FPS = 2.0
"""Frames a second of a frame list that does not say, as in the model's reference code."""

PROBE_THREADS = 16
"""Headers are read by so many threads: the time goes into waiting for the storage."""


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
        if item.frames:
            return [self._frame_list_unit(item)]
        media_type = item.media_type or guess_media_type(item.uri)
        with self._storage.open_media(item.uri, header_only=True) as file:
            if file.size_bytes == 0:
                raise UnitError(ErrorType.MEDIA_UNREADABLE, "the file is empty")
            if media_type == "image":
                return [self._image_unit(item, probe_image(file))]
            if media_type == "video":
                return self._video_units(item, file)
            try:
                return [self._image_unit(item, probe_image(file))]
            except UnitError:
                return self._video_units(item, file)

    def _image_unit(self, item: MediaItem, media: Media) -> Unit:
        if item.start_seconds is not None or item.end_seconds is not None:
            raise UnitError(ErrorType.BAD_REQUEST, "an image has no start_seconds or end_seconds")
        size = image_size(media.height, media.width, self._job.budget)
        unit = self._unit(item, media, None, None)
        return self._priced(unit, item, media, _sampling(size, 1), ())

    def _video_units(self, item: MediaItem, file: MediaFile) -> list[Unit]:
        with open_video(file) as (container, stream):
            probe = VideoProbe(file, container, stream)
            spans = stretches(probe.media, item.start_seconds, item.end_seconds, self._job.sampling)
            units: list[Unit] = []
            least = probe.media.begin_seconds or 0.0
            for start, end in spans:
                unit, least = self._video_unit(item, probe, start, end, least)
                units.append(unit)
            return units

    def _video_unit(
        self, item: MediaItem, probe: VideoProbe, start: float, end: float, least: float
    ) -> tuple[Unit, float]:
        """Plan a stretch. ``least``: time of the last frame pair before it; its own is returned."""
        media = probe.media
        count = num_frames(start, end, media.average_fps, self._job.sampling)
        size = video_size(count, media.height, media.width, self._job.budget)
        sampling = dataclasses.replace(
            _sampling(size, count),
            start_seconds=start,
            end_seconds=end,
            sample_fps=count / (end - start),
        )
        unit = self._unit(item, media, start, end)
        pts = planned_pts(sampling.times_seconds(), max(least, 0.0), probe.displayed_pts)
        return self._priced(unit, item, media, sampling, pts), pair_seconds(pts[-2:])[0]

    def _frame_list_unit(self, item: MediaItem) -> Unit:
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
        size = video_size(count, media.height, media.width, self._job.budget)
        sampling = dataclasses.replace(
            _sampling(size, count),
            start_seconds=0.0,
            end_seconds=len(item.frames) / fps,
            sample_fps=fps,
        )
        pts = [min(k, len(item.frames) - 1) / fps for k in range(count)]
        unit = self._unit(item, media, None, None)
        return self._priced(unit, item, media, sampling, pts)

    def _unit(
        self, item: MediaItem, media: Media | None, start: float | None, end: float | None
    ) -> Unit:
        version = media.content_version if media else None
        stretch = [None if t is None else f"{t:.6f}" for t in (start, end)]
        return Unit(
            unit_id=_digest(item.media_id, version, *stretch),
            media_id=item.media_id,
            uri=item.uri,
            frames=item.frames,
            attributes=item.attributes,
            media=media,
        )

    def _priced(
        self, unit: Unit, item: MediaItem, media: Media, sampling: Sampling, pts: Sequence[float]
    ) -> Unit:
        """Add the tasks' exact prompt lengths, and refuse what the context cannot hold."""
        vision = Vision.of(media.media_type, sampling, pts)
        questions = self._asked(item, media.media_type)
        prompts, cost = [], 0.0
        for question in questions:
            text = TASKS[question.task].prompt(question, media.media_type)
            tokens = self._prompter.num_tokens(vision, text)
            prompts.append(Prompt(task=question.task, num_prompt_tokens=tokens))
            cost += tokens + question.max_new_tokens
        unit = dataclasses.replace(
            unit, sampling=sampling, prompts=tuple(prompts), predicted_cost=cost
        )
        for prompt, question in zip(prompts, questions, strict=True):
            total = prompt.num_prompt_tokens + question.max_new_tokens
            if total > self._max_model_len:
                error = UnitError(
                    ErrorType.OVER_CONTEXT,
                    f"{question.task}: {prompt.num_prompt_tokens} prompt tokens "
                    f"({sampling.num_vision_tokens} of them vision) and {question.max_new_tokens} "
                    f"for the answer are over the context of {self._max_model_len}; lower "
                    "budget.unit_tokens, frame_tokens or sampling.max_frames, or use windows",
                )
                return unit.failed(ErrorRecord.from_error("plan", error))
        return unit

    def _asked(self, item: MediaItem, media_type: str) -> list[Question]:
        asked = [
            question
            for question in self._questions
            if media_type in TASKS[question.task].media_types
            and (not item.tasks or question.task in item.tasks)
        ]
        if not asked:
            raise UnitError(
                ErrorType.BAD_REQUEST,
                f"no task to ask: the job has {[q.task for q in self._questions]}, the manifest "
                f"row asks for {list(item.tasks) or 'all'}, and this is a {media_type}",
            )
        return asked


def planned_pts(
    times: list[float], least: float, displayed_pts: Callable[[float], float]
) -> list[float]:
    """Frame times from which the prompt's length follows exactly.

    times: the planned sample times, an even number; a frame's PTS is at or before its sample time.
    least: a time that none of the frames is before.
    displayed_pts: the exact PTS of the frame on display at a time; may have to read packets.

    A timestamp's length changes only where it gains a digit (10.0 s, 100.0 s, ...). Away from
    there the sample time stands for the PTS; near there the exact PTS is taken.
    """
    pts = list(times)
    for k in range(0, len(pts), 2):
        if _digits(pair_seconds(pts[k : k + 2])[0] + 1e-5) > _digits(least):
            pts[k : k + 2] = [displayed_pts(t) for t in times[k : k + 2]]
        least = pair_seconds(pts[k : k + 2])[0]
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
