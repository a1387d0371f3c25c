"""A unit: what one model call sees. One row of the plan, and later one row of the output.

The same columns travel from the plan to the Parquet output; each stage adds its own:

    UNIT      the plan: ids, header facts, frame choice, sizes, exact token counts
    PREPARED  + the frames (uint8) and the token ids, between the CPU decoders and the engine
    ANSWERED  - frames, + the raw answers
"""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

import pyarrow as pa

from schemas.errors import ERROR, ErrorRecord


class UnitStatus(StrEnum):
    """State of a unit's row."""

    PLANNED = "planned"  # in the plan: can be done
    OK = "ok"  # every task answered and parsed
    PARTIAL = "partial"  # some task has no complete answer
    FAILED = "failed"  # no answer; `error` says why


def described(
    name: str, type_: pa.DataType, description: str, *, unit: str = "", nullable: bool = True
) -> pa.Field:
    """Make a field that carries its meaning, and its unit of measure if it has one."""
    metadata = {"description": description} | ({"unit": unit} if unit else {})
    return pa.field(name, type_, nullable=nullable, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Media:
    """Header facts of a media item. Width and height are as displayed, after rotation."""

    media_type: str
    content_version: str | None = None
    size_bytes: int | None = None
    container: str | None = None
    codec: str | None = None
    pixel_format: str | None = None
    has_alpha: bool = False
    width: int
    height: int
    rotation: int = 0
    begin_seconds: float | None = None
    duration_seconds: float | None = None
    average_fps: float | None = None
    num_frames: int | None = None
    is_vfr: bool | None = None


MEDIA = pa.struct(
    [
        described("media_type", pa.string(), "image or video", nullable=False),
        described(
            "content_version",
            pa.string(),
            "etag, else size and modification time, of the object; a changed object is a new unit",
        ),
        described("size_bytes", pa.int64(), "size of the object", unit="bytes"),
        described("container", pa.string(), "container or image format, FFmpeg's or Pillow's name"),
        described("codec", pa.string(), "video codec, FFmpeg's name; null for images"),
        described("pixel_format", pa.string(), "FFmpeg's pixel format, or Pillow's mode"),
        described("has_alpha", pa.bool_(), "has transparency (put onto white)", nullable=False),
        described(
            "width",
            pa.int32(),
            "after rotation; pixels are taken as square, whatever the pixel aspect ratio",
            unit="px",
            nullable=False,
        ),
        described("height", pa.int32(), "after rotation", unit="px", nullable=False),
        described(
            "rotation",
            pa.int32(),
            "clockwise turn that the header asked for and that was applied (EXIF or display "
            "matrix); a mirrored EXIF orientation is applied too",
            unit="degrees",
            nullable=False,
        ),
        described("begin_seconds", pa.float64(), "PTS of the first frame", unit="s"),
        described("duration_seconds", pa.float64(), "of the video stream", unit="s"),
        described("average_fps", pa.float64(), "from the header", unit="frames/s"),
        described(
            "num_frames", pa.int64(), "from the header; null where the container does not say"
        ),
        described(
            "is_vfr",
            pa.bool_(),
            "frame times are irregular; null where the header cannot tell",
        ),
    ]
)


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Which frames of the unit the model sees, and how large.

    A frame is chosen by time: frame k of ``num_frames`` is the one on display at
    ``start_seconds + k * (end_seconds - start_seconds) / num_frames``. The plan fixes these times,
    the decoder adds the indices and PTS of the frames it found there.
    """

    start_seconds: float | None = None
    end_seconds: float | None = None
    sample_fps: float | None = None
    num_frames: int
    resized_height: int
    resized_width: int
    grid_thw: tuple[int, int, int]
    num_vision_tokens: int
    frame_indices: tuple[int | None, ...] | None = None
    pts_seconds: tuple[float, ...] | None = None
    decoder: str | None = None

    def times_seconds(self) -> list[float]:
        """The planned sample times, ``num_frames`` of them, on the PTS clock."""
        if self.start_seconds is None or self.end_seconds is None:
            return []
        step = (self.end_seconds - self.start_seconds) / self.num_frames
        return [self.start_seconds + k * step for k in range(self.num_frames)]


SAMPLING = pa.struct(
    [
        described("start_seconds", pa.float64(), "the unit's stretch begins (PTS)", unit="s"),
        described("end_seconds", pa.float64(), "the unit's stretch ends (PTS)", unit="s"),
        described("sample_fps", pa.float64(), "frames the model sees per second", unit="frames/s"),
        described(
            "num_frames", pa.int32(), "frames the model sees; even for videos", nullable=False
        ),
        described("resized_height", pa.int32(), "of the frames", unit="px", nullable=False),
        described("resized_width", pa.int32(), "of the frames", unit="px", nullable=False),
        described(
            "grid_thw",
            pa.list_(pa.int32()),
            "patches in time, height and width (image_grid_thw, video_grid_thw)",
            nullable=False,
        ),
        described(
            "num_vision_tokens", pa.int32(), "tokens that the language model gets", nullable=False
        ),
        described(
            "frame_indices",
            pa.list_(pa.int64()),
            "index of each frame in presentation order; an index is null where a seek led to the "
            "frame and the container does not tell",
        ),
        described(
            "pts_seconds",
            pa.list_(pa.float64()),
            "presentation time of each frame, as ffprobe prints it; of a frame that is on display "
            "since before the unit's start, that earlier time",
            unit="s",
        ),
        described("decoder", pa.string(), "what decoded it: torchcodec, pyav or pillow"),
    ]
)


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One task's prompt: its exact length in the plan, its token ids once prepared."""

    task: str
    num_prompt_tokens: int
    input_ids: tuple[int, ...] | None = None


PROMPT = pa.struct(
    [
        described("task", pa.string(), "name of the task", nullable=False),
        described(
            "num_prompt_tokens", pa.int32(), "vision and text tokens together", nullable=False
        ),
        described("input_ids", pa.list_(pa.int32()), "token ids; null in the plan"),
    ]
)


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One row of the plan. ``sampling`` and ``media`` are None if the media could not be probed."""

    unit_id: str
    media_id: str
    uri: str
    frames: tuple[str, ...] = ()
    attributes: str | None = None
    media: Media | None = None
    sampling: Sampling | None = None
    prompts: tuple[Prompt, ...] = ()
    predicted_cost: float = 0.0
    status: str = UnitStatus.PLANNED
    error: ErrorRecord | None = None

    def failed(self, error: ErrorRecord) -> Self:
        """The same unit, as one that cannot be done; it costs nothing more."""
        return dataclasses.replace(self, status=UnitStatus.FAILED, error=error, predicted_cost=0.0)


UNIT = pa.schema(
    [
        described(
            "unit_id",
            pa.string(),
            "hash of media_id, content_version, start and end: the same stretch of the same "
            "content has the same id in every run",
            nullable=False,
        ),
        described(
            "media_id", pa.string(), "the manifest's, else a hash of the uri", nullable=False
        ),
        described(
            "uri",
            pa.string(),
            "the manifest's, made absolute; of a data: uri type and hash, of urls no secrets",
            nullable=False,
        ),
        described("frames", pa.list_(pa.string()), "the manifest's frame list; empty if none"),
        described("attributes", pa.string(), "the manifest's further columns, a JSON object"),
        described("media", MEDIA, "header facts; null if the media could not be read"),
        described("sampling", SAMPLING, "what of it the model sees; null if it could not be read"),
        described("prompts", pa.list_(PROMPT), "one for each task"),
        described(
            "predicted_cost",
            pa.float64(),
            "prompt tokens plus the tokens that may be generated; orders the work and the ETA",
            unit="tokens",
            nullable=False,
        ),
        described("status", pa.string(), "planned, or failed with the reason", nullable=False),
        described("error", ERROR, "why it cannot be done"),
    ]
)

PREPARED = (
    UNIT.append(described("frame_data", pa.large_binary(), "uint8 [T, H, W, 3], row-major RGB"))
    .append(described("decode_seconds", pa.float64(), "decoding, resizing and prompting", unit="s"))
    .append(described("bytes_read", pa.int64(), "read from storage by the decoder", unit="bytes"))
)


@dataclass(frozen=True, kw_only=True)
class PreparedUnit(Unit):
    """A unit with its frames: ``uint8 [T, resized_height, resized_width, 3]``, as bytes."""

    frame_data: bytes | None = None
    decode_seconds: float = 0.0
    bytes_read: int | None = None


@dataclass(frozen=True, kw_only=True)
class RawAnswer:
    """What the engine said to one task's prompt.

    num_prompt_tokens: counted on the tensor that was fed, not copied from the plan.
    finish_reason: ``stop`` (end of turn) or ``length`` (max_new_tokens reached).
    opens_reasoning: the text begins inside ``<think>``, which the prompt had opened.
    """

    task: str
    raw_text: str
    finish_reason: str
    num_prompt_tokens: int
    num_output_tokens: int
    opens_reasoning: bool = False


RAW_ANSWER = pa.struct(
    [
        pa.field("task", pa.string(), nullable=False),
        pa.field("raw_text", pa.string(), nullable=False),
        pa.field("finish_reason", pa.string(), nullable=False),
        pa.field("num_prompt_tokens", pa.int32(), nullable=False),
        pa.field("num_output_tokens", pa.int32(), nullable=False),
        pa.field("opens_reasoning", pa.bool_(), nullable=False),
    ]
)

ANSWERED = (
    UNIT.append(PREPARED.field("decode_seconds"))
    .append(PREPARED.field("bytes_read"))
    .append(described("answers", pa.list_(RAW_ANSWER), "one for each prompt"))
    .append(described("engine_seconds", pa.float64(), "share of the batch's time", unit="s"))
)


@dataclass(frozen=True, kw_only=True)
class AnsweredUnit(Unit):
    """A unit with the engine's raw answers; frames and token ids are gone."""

    decode_seconds: float = 0.0
    bytes_read: int | None = None
    answers: tuple[RawAnswer, ...] = ()
    engine_seconds: float = 0.0


def to_table(rows: Iterable[Any], schema: pa.Schema) -> pa.Table:
    """Write dataclass rows as an Arrow table with exactly ``schema``."""
    return pa.Table.from_pylist([dataclasses.asdict(row) for row in rows], schema=schema)


def from_table(table: pa.Table, cls: type[Any] = Unit) -> list[Any]:
    """Read rows of ``cls`` (Unit, PreparedUnit or AnsweredUnit) back from an Arrow table."""
    return [_unit(row, cls) for row in table.to_pylist()]


def _unit(row: dict[str, Any], cls: type[Any]) -> Any:
    row["frames"] = tuple(row["frames"] or ())
    row["media"] = Media(**row["media"]) if row["media"] else None
    row["sampling"] = Sampling(**_tuples(row["sampling"])) if row["sampling"] else None
    row["prompts"] = tuple(Prompt(**_tuples(p)) for p in row["prompts"] or ())
    row["error"] = ErrorRecord(**row["error"]) if row["error"] else None
    if "answers" in row:
        row["answers"] = tuple(RawAnswer(**a) for a in row["answers"] or ())
    return cls(**row)


def _tuples(row: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}
