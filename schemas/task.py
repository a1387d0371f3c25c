"""A task: a question about a unit, with a typed answer."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from random import Random
from typing import Any, Literal

import pyarrow as pa

from schemas.tables.manifest import Intrinsics

EMBEDDING = "embedding"
"""The task whose answer is a vector: its checkpoints answer nothing else."""

REASONING_BEGINS, REASONING_ENDS = "<think>", "</think>"
"""The tags around a model's reasoning; each is one token of the checkpoints."""


class AnswerStatus(StrEnum):
    """Result of reading one answer."""

    OK = "ok"  # parsed without changes
    REPAIRED = "repaired"  # parsed after repairs; `note` names them
    UNPARSED = "unparsed"  # no typed value could be read; the raw text is kept
    TRUNCATED = "truncated"  # cut at max_new_tokens; the complete elements are kept
    LOOPED = "looped"  # stopped because it repeated itself; the elements before that are kept
    FAILED = "failed"  # the unit failed before or in the engine


@dataclass(frozen=True, kw_only=True)
class Question:
    """One task with the settings of the job file that its prompt and parser may use.

    name: of the question's column and answers; that of the task, unless the job file gives another.
    json_schema, tools: JSON text.
    add_vision_id: number the media as the chat template does: "Picture 1: ".
    instruction: of an embedding, the system turn before the media; None for other tasks.
    dimensions: of an embedding, how many numbers of the vector are kept; None: all.
    """

    task: str
    name: str = ""
    labels: tuple[str, ...] = ()
    strict_labels: bool = False
    query: str | None = None
    keys: tuple[str, ...] = ()
    style: str | None = None
    json_schema: str | None = None
    tools: str | None = None
    add_vision_id: bool = False
    instruction: str | None = None
    dimensions: int | None = None
    prompt: str | None = None
    max_new_tokens: int = 512

    def __post_init__(self) -> None:
        """Name the question as its task, unless it has a name."""
        if not self.name:
            object.__setattr__(self, "name", self.task)

    @property
    def has_own_name(self) -> bool:
        """Whether the job file gives the question a name, and so a column, of its own."""
        return self.name != self.task

    @property
    def is_vector(self) -> bool:
        """Whether the answer is a vector, and no text is generated."""
        return self.task == EMBEDDING


@dataclass(frozen=True, kw_only=True)
class View:
    """What the model saw, as far as a parser needs it.

    width, height: the media's displayed size in pixels, to which boxes are scaled.
    pts_seconds: PTS of the sampled frames, ascending; empty for images.
    start_seconds, end_seconds: the time span of the unit, on the same clock; None for images.
    intrinsics: from the manifest; None where it has none.
    """

    media_type: str
    width: int
    height: int
    pts_seconds: tuple[float, ...] = ()
    start_seconds: float | None = None
    end_seconds: float | None = None
    intrinsics: Intrinsics | None = None


@dataclass(frozen=True, kw_only=True)
class Parsed:
    """A typed answer: ``value`` fits the task's column (None if nothing could be read)."""

    value: Any
    status: AnswerStatus
    note: str | None = None


MarkKind = Literal["object", "text", "point", "track", "object in space", "block"]
"""Kinds of marks in a picture. The report can hide each kind; COCO and YOLO take object, track."""

MetricKind = Literal["caption", "events", "text", "text_boxes", "label_boxes", "moments"]
"""Kinds of comparison with gold. ``jobs.evaluate.metrics`` has the functions of each."""

SubtitleTrack = Literal["events", "captions", "text"]
"""Subtitle files that ``reelscribe export`` writes for a video."""


@dataclass(frozen=True, kw_only=True)
class Mark:
    """One place in a picture, in pixels of the displayed original.

    label: the category, the text in the box, or another name of the place.
    track_id: distinguishes things with the same label; None if the answer has no such id.
    pts_seconds: PTS of the frame that has the mark; None for images.
    box: x1, y1, x2, y2. point: x, y. One of them is given.
    """

    label: str
    track_id: str | None = None
    pts_seconds: float | None = None
    box: tuple[float, float, float, float] | None = None
    point: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Span:
    """A time span, in seconds of PTS, with its caption."""

    start_seconds: float
    end_seconds: float
    caption: str


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """What the report and the exports show of one typed value.

    headline: text about the whole unit, such as a caption; stands above everything else.
    text: any other text, shown under the task's name.
    """

    headline: str | None = None
    text: str | None = None
    events: tuple[Span, ...] = ()
    marks: tuple[Mark, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task. Each module in ``pipeline/tasks`` defines one as ``TASK``.

    version: part of the recipe; raised when the prompt or the parser changes what answers mean.
    media_types: the kinds of media that the task applies to: image, video, or messages.
    prompt: the text after the media. Takes the question and the media type.
    parse: raw answer text -> typed value. Never raises, whatever the model wrote.
    write: typed value -> answer text in the model's own format, from which ``parse`` reads the same
        value; the training target. Of the question it uses only the labels.
    simulate: a plausible answer text that ``parse`` reads without repairs. The simulated engine
        writes it.
    draw: typed value (not None) -> what the report and the exports show of it.
    mark_kind: the kind of the drawing's marks; None if the task draws no marks.
    metric: how answers are compared with gold; None if gold cannot have the task.
    subtitles: the subtitle track that takes the drawing; None if no track does.
    is_prose: answers are sentences. Others repeat themselves by their form, as tables and lists of
        coordinates do, and a repetition penalty would break them.
    json_schema: the JSON Schema that constrains answers; None if the task has none.
    """

    name: str
    version: int
    media_types: frozenset[str]
    column: "pa.Field[Any]"
    prompt: Callable[[Question, str], str]
    parse: Callable[[str, Question, View], Parsed]
    write: Callable[[Any, Question, View], str]
    simulate: Callable[[Question, View, Random], str]
    draw: Callable[[Any], Drawing]
    mark_kind: MarkKind | None
    metric: MetricKind | None
    subtitles: SubtitleTrack | None
    is_prose: bool
    json_schema: Callable[[Question], dict[str, Any] | None] | None = None


def box_type() -> pa.DataType:
    """Corners in pixels of the displayed original, x right, y down, x1 <= x2 and y1 <= y2."""
    return pa.struct(
        [pa.field(name, pa.float32(), nullable=False) for name in ("x1", "y1", "x2", "y2")]
    )


def box_1000_type() -> pa.DataType:
    """The model's own numbers for the same corners: 0..1000 of the width and height."""
    return pa.struct(
        [pa.field(name, pa.int16(), nullable=False) for name in ("x1", "y1", "x2", "y2")]
    )


def point_type() -> pa.DataType:
    """A point in pixels of the displayed original, x right, y down."""
    return pa.struct([pa.field(name, pa.float32(), nullable=False) for name in ("x", "y")])


def point_1000_type() -> pa.DataType:
    """The model's own numbers for a point: 0..1000 of the width and height."""
    return pa.struct([pa.field(name, pa.int16(), nullable=False) for name in ("x", "y")])
