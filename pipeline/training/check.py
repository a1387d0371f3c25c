"""Check training samples: prepare each as training would, and keep only counts and problems."""

import dataclasses
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.model.positions import TEXT
from pipeline.model.prompter import Vision
from pipeline.plan.planner import PROBE_THREADS
from pipeline.plan.sampler import exact_pts
from pipeline.stages.graph import stage
from pipeline.stages.pools import Pool
from pipeline.storage.storage import Storage
from pipeline.training.data.answer_boxes import (
    Marks,
    MarksError,
    are_inside,
    faults_1000,
    faults_pixels,
    find_marks,
    is_over_1000,
)
from pipeline.training.groups import Group, halves
from pipeline.training.sample import ROOT, PreparedMedia, Preparer, Sample, Size, max_tokens
from schemas.conversation import Conversation, DataProblem, ProblemType
from schemas.errors import ErrorType, UnitError
from schemas.job.finetune import FinetuneJob
from schemas.shown import redact_text
from schemas.tables.manifest import MediaItem
from schemas.tables.unit import Unit, UnitStatus

logger = logging.getLogger(__name__)

BATCH_SAMPLES = 16
"""Samples in one call of an actor; the progress bar advances by this number."""

_NO_LIMIT = 1 << 40


@dataclass(frozen=True, kw_only=True)
class Work:
    """One sample to check.

    sample: its number.
    conversations: those about the same media that training puts into one sample.
    """

    sample: int
    conversations: tuple[Conversation, ...]


@dataclass(frozen=True, kw_only=True)
class AnswerBoxes:
    """The boxes and points in one conversation's answers, checked as 0..1000 and as pixels.

    Only the whole data set shows which of the two scales they use.

    origin: the conversation's file and row.
    num_places: number of boxes and points.
    width, height: displayed size of its media; None without media, or with several sizes.
    is_over_1000: a coordinate is over 1000.
    is_inside: all coordinates, read as pixels, are inside the media.
    fault_1000, fault_pixels: what is wrong in each of the two scales; None if nothing.
    """

    origin: str
    num_places: int
    width: int | None
    height: int | None
    is_over_1000: bool
    is_inside: bool
    fault_1000: str | None
    fault_pixels: str | None


@dataclass(frozen=True, kw_only=True)
class Checked:
    """The result for one sample.

    num_tokens, num_learnt: also of what is too long; None if the sample could not be prepared.
    parts: the samples that training makes of it, in one row: itself, several where it is too long
        as a whole, or none where nothing of it can be learnt.
    problems: of its conversations, without those that depend on the scale of its boxes.
    """

    sample: int
    num_media: int
    num_tokens: int | None = None
    num_learnt: int | None = None
    parts: tuple[Size, ...] = ()
    problems: tuple[DataProblem, ...] = ()
    boxes: tuple[AnswerBoxes, ...] = ()


class Checker(Preparer):
    """Prepares samples as training does, and reports what is wrong with them."""

    def __init__(self, job: FinetuneJob, storage: Storage, *, headers_only: bool) -> None:
        """Load the tokenizer.

        headers_only: read headers of media instead of decoding them.

        Raises:
            ModelError: the checkpoint has no tokenizer.
        """
        # Without a limit, so that the tokens of an over-long sample are counted too.
        model = job.model.model_copy(update={"max_model_len": _NO_LIMIT})
        super().__init__(job.model_copy(update={"model": model}), storage)
        self._limit = max_tokens(job)
        self._headers_only = headers_only

    def check(self, work: Work) -> Checked:
        """Check one sample; whatever is wrong with it is in the result."""
        group = work.conversations
        checked = Checked(sample=work.sample, num_media=len(group[0].media))
        problems: list[DataProblem] = []
        try:
            sample = self.prepare(group)
        except Exception as error:  # such as a template or tokenizer that refuses a text
            logger.exception("preparing %s", group[0].origin)
            message = redact_text(f"preparing failed: {type(error).__name__}: {error}")
            problems += _problems(group, ProblemType.BAD_ROW, message)
        else:
            if isinstance(sample, DataProblem):
                message = sample.message.removeprefix(f"{sample.type}: ")
                problems += _problems(group, sample.type, message)
            else:
                problems += self._length_problems(group, sample)
                checked = dataclasses.replace(
                    checked,
                    num_tokens=sample.num_tokens,
                    num_learnt=sample.num_learnt,
                    parts=tuple(self._parts(group, sample)),
                )
        box_problems, boxes = self._check_boxes(group)
        return dataclasses.replace(checked, problems=(*problems, *box_problems), boxes=tuple(boxes))

    def _parts(self, group: Group, sample: Sample) -> list[Size]:
        """The samples that training makes of a group; see ``Samples``."""
        if sample.num_tokens <= self._limit:
            return [sample.size]
        if len(group) == 1:
            return []
        made = [(half, self._sample(sample.origin, half, sample.media)) for half in halves(group)]
        return [part for half, joined in made for part in self._parts(half, joined)]

    def _length_problems(self, group: Sequence[Conversation], sample: Sample) -> list[DataProblem]:
        """Conversations that exceed the limit alone; training splits those that do so together."""
        num_vision = int((sample.types != TEXT).sum())
        num_shared = int((sample.branches == ROOT).sum())
        wrong: list[DataProblem] = []
        for k, conversation in enumerate(group, start=1):
            num_tokens = num_shared + int((sample.branches == k).sum())
            if num_tokens > self._limit:
                message = (
                    f"{num_tokens:,} tokens ({num_vision:,} of them vision) are over "
                    f"model.max_model_len = {self._limit:,}; lower budget or sampling, or raise it"
                )
                wrong += _problems([conversation], ProblemType.OVER_LONG, message)
        return wrong

    def prepare_media(self, item: MediaItem) -> PreparedMedia:
        """Plan one image or video, and decode it unless only headers are read.

        Raises:
            UnitError: it cannot be read.
        """
        if not self._headers_only:
            return super().prepare_media(item)
        unit = self._planned(item)
        assert unit.media is not None and unit.sampling is not None
        return PreparedMedia(
            media_type=unit.media.media_type,
            pixels=np.empty((0, 0, 0, 3), np.uint8),
            grid_thw=unit.sampling.grid_thw,
            vision=Vision.of(unit.media.media_type, unit.sampling, self._exact_pts(unit)),
        )

    def _planned(self, item: MediaItem) -> Unit:
        (unit,) = self._planner.plan_item(item)
        if unit.status == UnitStatus.FAILED:
            assert unit.error is not None
            error_type = ErrorType(unit.error.type)  # type: ignore[call-arg]  # looked up by value
            raise UnitError(error_type, unit.error.message)
        return unit

    def _exact_pts(self, unit: Unit) -> list[float]:
        """The frame times from which the planner counts the prompt's tokens exactly."""
        assert unit.media is not None and unit.sampling is not None
        if unit.media.media_type == "image":
            return []
        if unit.frames:
            assert unit.sampling.sample_fps is not None
            last = len(unit.frames) - 1
            times = unit.sampling.times_seconds()
            return [min(k, last) / unit.sampling.sample_fps for k in range(len(times))]
        found: list[float] = self._probes.call(
            exact_pts,
            unit.seen[0],
            self._storage,
            limits=self._limits,
            modules=self._storage.modules((unit.uri,)),
        )
        return found

    def _check_boxes(
        self, group: Sequence[Conversation]
    ) -> tuple[list[DataProblem], list[AnswerBoxes]]:
        """Check the boxes and points in the answers of each conversation that has any."""
        problems: list[DataProblem] = []
        found: dict[str, list[Marks]] = {}
        for conversation in group:
            try:
                marks = _find_marks(conversation)
            except MarksError as error:
                problems += _problems([conversation], ProblemType.BAD_BOX, str(error))
            else:
                if marks:
                    found.setdefault(conversation.origin, []).extend(marks)
        size = self._media_size(group[0].media) if found else None
        return problems, [_answer_boxes(origin, marks, size) for origin, marks in found.items()]

    def _media_size(self, media: Sequence[MediaItem]) -> tuple[int, int] | None:
        """The displayed size of all media; None without media, or with several sizes."""
        try:
            found = [self._planned(item).media for item in dict.fromkeys(media)]
        except UnitError:
            return None  # `prepare` reports it
        sizes = {(m.width, m.height) for m in found if m is not None}
        return sizes.pop() if len(sizes) == 1 else None


def _find_marks(conversation: Conversation) -> list[Marks]:
    answers = [turn for turn in conversation.turns if turn.role == "assistant"]
    answers = answers[-1:] if conversation.only_last else answers
    return [marks for turn in answers for part in turn.parts for marks in find_marks(str(part))]


def _answer_boxes(origin: str, found: list[Marks], size: tuple[int, int] | None) -> AnswerBoxes:
    width, height = size or (None, None)
    unknown_size = ["its media have no size in common, so boxes in pixels cannot be converted"]
    return AnswerBoxes(
        origin=origin,
        num_places=sum(len(marks.places) for marks in found),
        width=width,
        height=height,
        is_over_1000=is_over_1000(found),
        is_inside=size is not None and are_inside(found, *size),
        fault_1000=_first(faults_1000(found)),
        fault_pixels=_first(faults_pixels(found, *size) if size else unknown_size),
    )


def _problems(group: Sequence[Conversation], type_: ProblemType, message: str) -> list[DataProblem]:
    """The same problem for each conversation of a sample."""
    origins = dict.fromkeys(c.origin for c in group)
    return [DataProblem(origin=origin, type=type_, message=message) for origin in origins]


def _first(faults: Sequence[str]) -> str | None:
    if len(faults) < 2:
        return faults[0] if faults else None
    return f"{faults[0]}; and {len(faults) - 1:,} more"


class Check:
    """Stage: samples in (column ``work``), results out (column ``checked``), as objects."""

    def __init__(self, job: FinetuneJob, storage: Storage, headers_only: bool) -> None:
        self._checker = Checker(job, storage, headers_only=headers_only)
        # Reads of headers mostly wait, so several run at once; decoding needs memory, so one does.
        self._threads = PROBE_THREADS if headers_only else 1

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Check a batch of samples."""
        with ThreadPoolExecutor(self._threads) as pool:
            checked = list(pool.map(self._checker.check, batch["work"]))
        return {"checked": np.array(checked, dtype=object)}


def build_check(
    works: Sequence[Work], job: FinetuneJob, storage: Storage, *, headers_only: bool, actors: int
) -> Any:
    """Make a lazy Ray Dataset with a column ``checked`` of ``Checked``, in any order."""
    import ray

    blocks = max(actors, -(-len(works) // (4 * BATCH_SAMPLES)))
    rows = ray.data.from_items([{"work": work} for work in works], override_num_blocks=blocks)
    args = (job, storage, headers_only)
    pool = Pool(num_actors=actors, num_cpus=1)
    return stage(rows, Check, args, pool, batch_size=BATCH_SAMPLES, batch_format="numpy")
