"""Check training samples: prepare each as training would, and keep counts and problems only."""

import dataclasses
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.build import stage
from pipeline.choose import planned_pts
from pipeline.container import open_video
from pipeline.plan import PROBE_THREADS
from pipeline.probe import VideoProbe
from pipeline.prompt import TEXT, Vision
from pipeline.storage import Storage
from pipeline.training.answer_boxes import (
    Marks,
    MarksError,
    are_inside,
    faults_1000,
    faults_pixels,
    find_marks,
    is_over_1000,
)
from pipeline.training.sample import ROOT, Picture, Preparer, Sample
from schemas.conversation import Conversation, DataProblem, ProblemType
from schemas.errors import ErrorType, UnitError
from schemas.finetune import FinetuneJob
from schemas.manifest import MediaItem
from schemas.unit import Unit, UnitStatus, to_table

logger = logging.getLogger(__name__)

BATCH_SAMPLES = 16
"""Samples of one call of an actor: results, and the progress, come in such steps."""

_NO_LIMIT = 1 << 40


@dataclass(frozen=True, kw_only=True)
class Work:
    """A sample to check: conversations that training shows together. sample: its number."""

    sample: int
    conversations: tuple[Conversation, ...]


@dataclass(frozen=True, kw_only=True)
class AnswerBoxes:
    """The boxes and points in one conversation's answers, judged as 0..1000 and as pixels.

    Which of the two they are shows only when the whole data set is seen.

    width, height: displayed size of its media; None if there are none, or of several sizes.
    is_over_1000: a coordinate is over 1000. is_inside: all lie within the media.
    fault_1000, fault_pixels: what is wrong if they are the one or the other; None if nothing.
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
    """What is told of one sample. Tokens are None if it could not be prepared."""

    sample: int
    num_media: int
    num_tokens: int | None = None
    num_learnt: int | None = None
    problems: tuple[DataProblem, ...] = ()
    boxes: tuple[AnswerBoxes, ...] = ()


_PROBLEM = pa.struct([(name, pa.string()) for name in ("origin", "type", "message")])
_BOXES = pa.struct(
    [
        ("origin", pa.string()),
        ("num_places", pa.int64()),
        ("width", pa.int64()),
        ("height", pa.int64()),
        ("is_over_1000", pa.bool_()),
        ("is_inside", pa.bool_()),
        ("fault_1000", pa.string()),
        ("fault_pixels", pa.string()),
    ]
)
CHECKED = pa.schema(
    [
        ("sample", pa.int64()),
        ("num_media", pa.int64()),
        ("num_tokens", pa.int64()),
        ("num_learnt", pa.int64()),
        ("problems", pa.list_(_PROBLEM)),
        ("boxes", pa.list_(_BOXES)),
    ]
)


def from_checked(table: pa.Table) -> list[Checked]:
    """Read rows back from an Arrow table of CHECKED."""
    return [
        Checked(
            **row
            | {
                "problems": tuple(
                    DataProblem(**p | {"type": ProblemType(p["type"])}) for p in row["problems"]
                ),
                "boxes": tuple(AnswerBoxes(**b) for b in row["boxes"]),
            }
        )
        for row in table.to_pylist()
    ]


class Checker(Preparer):
    """Prepares samples as training does, and says what is wrong with them."""

    def __init__(self, job: FinetuneJob, storage: Storage, *, headers_only: bool) -> None:
        """Load the tokenizer.

        headers_only: read headers of media and do not decode them.

        Raises:
            ModelError: the checkpoint has none.
        """
        # An over-long sample is counted too: its length says what max_model_len it needs.
        model = job.model.model_copy(update={"max_model_len": _NO_LIMIT})
        super().__init__(job.model_copy(update={"model": model}), storage)
        self._limit = job.model.max_model_len
        self._headers_only = headers_only

    def check(self, work: Work) -> Checked:
        """Check one sample. Never raises for what is wrong with it."""
        group = work.conversations
        checked = Checked(sample=work.sample, num_media=len(group[0].media))
        wrong: list[DataProblem] = []
        try:
            sample = self.prepare(group)
        except Exception as error:  # the boundary: a template or tokenizer that refuses a text
            logger.exception("preparing %s", group[0].origin)
            message = f"preparing failed: {type(error).__name__}: {error}"
            wrong += _problems(group, ProblemType.BAD_ROW, message)
        else:
            if isinstance(sample, DataProblem):
                message = sample.message.removeprefix(f"{sample.type}: ")
                wrong += _problems(group, sample.type, message)
            else:
                wrong += self._length_problems(group, sample)
                checked = dataclasses.replace(
                    checked, num_tokens=sample.num_tokens, num_learnt=sample.num_learnt
                )
        no_boxes, boxes = self._boxes(group)
        return dataclasses.replace(checked, problems=(*wrong, *no_boxes), boxes=tuple(boxes))

    def _length_problems(self, group: Sequence[Conversation], sample: Sample) -> list[DataProblem]:
        """Conversations that are too long alone; those that are together, training takes apart."""
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

    def _picture(self, item: MediaItem) -> Picture:
        if not self._headers_only:
            return super()._picture(item)
        unit = self._planned(item)
        assert unit.media is not None and unit.sampling is not None
        return Picture(
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
        """Frame times that give the prompt its exact length, as the planner takes them."""
        assert unit.media is not None and unit.sampling is not None
        if unit.media.media_type == "image":
            return []
        times = unit.sampling.times_seconds()
        if unit.frames:
            assert unit.sampling.sample_fps is not None
            last = len(unit.frames) - 1
            return [min(k, last) / unit.sampling.sample_fps for k in range(len(times))]
        with self._storage.open_media(unit.uri, header_only=True) as file, open_video(file) as at:
            probe = VideoProbe(file, *at)
            return planned_pts(
                times, max(unit.media.begin_seconds or 0.0, 0.0), probe.displayed_pts
            )

    def _boxes(self, group: Sequence[Conversation]) -> tuple[list[DataProblem], list[AnswerBoxes]]:
        """Judge the boxes in the answers of each conversation that has any."""
        problems: list[DataProblem] = []
        found: dict[str, list[Marks]] = {}
        for conversation in group:
            try:
                marks = _find_marks(conversation)
            except MarksError as error:
                problems += _problems([conversation], ProblemType.BAD_BOX, str(error))
            else:
                found |= {conversation.origin: marks} if marks else {}
        size = self._size(group[0].media) if found else None
        return problems, [_judged(origin, marks, size) for origin, marks in found.items()]

    def _size(self, media: Sequence[MediaItem]) -> tuple[int, int] | None:
        """The displayed size that all media have; None if there is none, or not one."""
        try:
            found = [self._planned(item).media for item in dict.fromkeys(media)]
        except UnitError:
            return None  # `prepare` says what is wrong
        sizes = {(m.width, m.height) for m in found if m is not None}
        return sizes.pop() if len(sizes) == 1 else None


def _find_marks(conversation: Conversation) -> list[Marks]:
    said = [turn for turn in conversation.turns if turn.role == "assistant"]
    return [marks for turn in said for part in turn.parts for marks in find_marks(str(part))]


def _judged(origin: str, found: list[Marks], size: tuple[int, int] | None) -> AnswerBoxes:
    width, height = size or (None, None)
    in_pixels = ["which picture its boxes are in, and so the size of it, is not known"]
    return AnswerBoxes(
        origin=origin,
        num_places=sum(len(marks.places) for marks in found),
        width=width,
        height=height,
        is_over_1000=is_over_1000(found),
        is_inside=size is not None and are_inside(found, *size),
        fault_1000=_first(faults_1000(found)),
        fault_pixels=_first(faults_pixels(found, *size) if size else in_pixels),
    )


def _problems(group: Sequence[Conversation], type_: ProblemType, message: str) -> list[DataProblem]:
    """The same problem of each conversation of a sample."""
    return [DataProblem(origin=c.origin, type=type_, message=message) for c in group]


def _first(faults: Sequence[str]) -> str | None:
    if len(faults) < 2:
        return faults[0] if faults else None
    return f"{faults[0]}; and {len(faults) - 1:,} more"


class Check:
    """Stage: samples in, CHECKED rows out. Pixels stay inside."""

    def __init__(self, job: FinetuneJob, storage: Storage, headers_only: bool) -> None:
        self._checker = Checker(job, storage, headers_only=headers_only)
        # Headers are waited for, many at a time; of pixels memory holds one sample's.
        self._threads = PROBE_THREADS if headers_only else 1

    def __call__(self, batch: dict[str, Any]) -> pa.Table:
        """Check a batch of samples."""
        with ThreadPoolExecutor(self._threads) as pool:
            return to_table(pool.map(self._checker.check, batch["work"]), CHECKED)


def build_check(
    works: Sequence[Work], job: FinetuneJob, storage: Storage, *, headers_only: bool, actors: int
) -> Any:
    """The check's chain, as a lazy Ray Dataset of CHECKED rows, in any order."""
    import ray

    blocks = max(actors, -(-len(works) // (4 * BATCH_SAMPLES)))
    rows = ray.data.from_items([{"work": work} for work in works], override_num_blocks=blocks)
    args = (job, storage, headers_only)
    return stage(
        rows, Check, args, actors, num_cpus=1, batch_size=BATCH_SAMPLES, batch_format="numpy"
    )
