"""A task: a question about a unit, with a typed answer."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import pyarrow as pa

from schemas.manifest import Intrinsics


class AnswerStatus(StrEnum):
    """How a task's answer came out."""

    OK = "ok"  # parsed as the format says
    REPAIRED = "repaired"  # parsed after mending; `note` says what was mended
    UNPARSED = "unparsed"  # no typed answer could be read; the raw text is kept
    TRUNCATED = "truncated"  # cut at max_new_tokens; what could be read is kept
    LOOPED = "looped"  # stopped where it repeated itself; what was read before is kept
    FAILED = "failed"  # the unit failed before or in the engine


@dataclass(frozen=True, kw_only=True)
class Question:
    """One task as a job asks it: the settings that a task file may use in its prompt.

    json_schema, tools: JSON, as text.
    add_vision_id: number the media, as the chat template does it: "Picture 1: ".
    """

    task: str
    labels: tuple[str, ...] = ()
    query: str | None = None
    keys: tuple[str, ...] = ()
    style: str | None = None
    json_schema: str | None = None
    tools: str | None = None
    add_vision_id: bool = False
    prompt: str | None = None
    max_new_tokens: int = 512


@dataclass(frozen=True, kw_only=True)
class View:
    """What the model saw, as far as a parser must know it.

    width, height: the media's displayed size in pixels, to which boxes are scaled.
    pts_seconds: PTS of the sampled frames, ascending; empty for images.
    start_seconds, end_seconds: the stretch of the video, on the same clock; None for images.
    intrinsics: as the manifest gives it.
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


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task. Each module in ``pipeline/tasks`` defines one of these as ``TASK``.

    version: raised when the prompt or the parser changes what answers mean; part of the recipe.
    media_types: the kinds of media the question makes sense for: image, video, or messages.
    prompt: the text that follows the media.
    parse: raw answer text -> typed value; never raises, whatever the model wrote.
    write: typed value -> answer text in the model's own format, from which ``parse`` reads the same
        value; what a model is trained to say. Of the questions' settings it heeds the labels.
    json_schema: what answers are constrained to, if anything; None: the task has none.
    """

    name: str
    version: int
    media_types: frozenset[str]
    column: pa.Field
    prompt: Callable[[Question, str], str]
    parse: Callable[[str, Question, View], Parsed]
    write: Callable[[Any, Question, View], str]
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
