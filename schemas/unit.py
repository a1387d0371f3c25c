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
from schemas.manifest import Intrinsics
from schemas.part import FRAMES, MEDIA, PART, SAMPLING, Media, Part, Sampling, described


class UnitStatus(StrEnum):
    """State of a unit's row."""

    PLANNED = "planned"  # in the plan: can be done
    OK = "ok"  # every task answered and parsed
    PARTIAL = "partial"  # some task has no complete answer
    FAILED = "failed"  # no answer; `error` says why


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One task's prompt: its exact length in the plan, its token ids once prepared.

    num_own_tokens: of it those that no other prompt of the unit shares.
    """

    task: str
    num_prompt_tokens: int
    num_own_tokens: int = 0
    input_ids: tuple[int, ...] | None = None


PROMPT = pa.struct(
    [
        described("task", pa.string(), "name of the task", nullable=False),
        described(
            "num_prompt_tokens", pa.int32(), "vision and text tokens together", nullable=False
        ),
        described(
            "num_own_tokens",
            pa.int32(),
            "of them those after the last image or video: the task's own text",
            nullable=False,
        ),
        described("input_ids", pa.list_(pa.int32()), "token ids; null in the plan"),
    ]
)


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One row of the plan. ``sampling`` and ``media`` are None if the media could not be probed.

    A conversation has ``messages`` and ``parts`` instead.
    """

    unit_id: str
    media_id: str
    uri: str
    unread_id: str = ""
    content_version: str | None = None
    frames: tuple[str, ...] = ()
    attributes: str | None = None
    media: Media | None = None
    sampling: Sampling | None = None
    messages: str | None = None
    parts: tuple[Part, ...] = ()
    prompts: tuple[Prompt, ...] = ()
    num_shared_tokens: int = 0
    predicted_cost: float = 0.0
    attempts: int = 0
    status: str = UnitStatus.PLANNED
    error: ErrorRecord | None = None

    @property
    def num_fed_tokens(self) -> int:
        """Tokens that an engine reads for all its prompts, what they share once."""
        return self.num_shared_tokens + sum(prompt.num_own_tokens for prompt in self.prompts)

    @property
    def seen(self) -> tuple[Part, ...]:
        """What the model sees, in order: one image or video, or those of the conversation."""
        if self.media is None or self.sampling is None:
            return self.parts
        return (Part(uri=self.uri, frames=self.frames, media=self.media, sampling=self.sampling),)

    def failed(self, error: ErrorRecord) -> Self:
        """The same unit, as one that cannot be done; it costs nothing more."""
        error = dataclasses.replace(error, attempts=self.attempts + error.attempts)
        return dataclasses.replace(self, status=UnitStatus.FAILED, error=error, predicted_cost=0.0)


UNIT = pa.schema(
    [
        described(
            "unit_id",
            pa.string(),
            "hash of media_id, content_version, start and end, or messages, and of the manifest's "
            "tasks, intrinsics and sample_fps: the same question about the same stretch of the "
            "same content has the same id in every run",
            nullable=False,
        ),
        described(
            "media_id",
            pa.string(),
            "the manifest's, else a hash of the uri or the messages",
            nullable=False,
        ),
        described(
            "uri",
            pa.string(),
            "the manifest's, made absolute; of a data: uri type and hash, of urls no secrets; of a "
            "conversation that of its first image or video, empty if it has none",
            nullable=False,
        ),
        described(
            "unread_id",
            pa.string(),
            "the unit_id that the manifest's row has as long as its media cannot be read",
            nullable=False,
        ),
        described(
            "content_version",
            pa.string(),
            "the manifest's, else the object's etag, or size and time; also where the media could "
            "not be read, so that `only_new` knows what was tried",
        ),
        FRAMES,
        described("attributes", pa.string(), "the manifest's further columns, a JSON object"),
        described(
            "media",
            MEDIA,
            "header facts; null if the media could not be read, and for conversations",
        ),
        described(
            "sampling",
            SAMPLING,
            "what of it the model sees; null if it could not be read, and for conversations",
        ),
        described(
            "messages",
            pa.string(),
            "of a conversation its turns, JSON: the text, and where an image or video stands",
        ),
        described(
            "parts",
            pa.list_(PART),
            "the images and videos of a conversation, in order; empty if none",
        ),
        described("prompts", pa.list_(PROMPT), "one for each task"),
        described(
            "num_shared_tokens",
            pa.int64(),
            "up to the end of the media: what the tasks' prompts begin with, which the engine "
            "reads once for all of them",
            nullable=False,
        ),
        described(
            "predicted_cost",
            pa.float64(),
            "tokens that the engine reads, what tasks share once, plus those that may be "
            "generated; orders the work and the ETA",
            unit="tokens",
            nullable=False,
        ),
        described(
            "attempts",
            pa.int32(),
            "how often `reelscribe retry` found it failed before",
            nullable=False,
        ),
        described("status", pa.string(), "planned, or failed with the reason", nullable=False),
        described("error", ERROR, "why it cannot be done"),
    ]
)

PREPARED = (
    UNIT.append(
        described(
            "frame_data",
            pa.large_binary(),
            "uint8 [T, H, W, 3], row-major RGB; of a conversation part after part",
        )
    )
    .append(described("decode_seconds", pa.float64(), "decoding, resizing and prompting", unit="s"))
    .append(described("bytes_read", pa.int64(), "read from storage by the decoder", unit="bytes"))
)


@dataclass(frozen=True, kw_only=True)
class PreparedUnit(Unit):
    """A unit with the frames of what is seen: ``uint8 [T, H, W, 3]`` each, as bytes."""

    frame_data: bytes | None = None
    decode_seconds: float = 0.0
    bytes_read: int | None = None


@dataclass(frozen=True, kw_only=True)
class RawAnswer:
    """What the engine said to one task's prompt.

    num_prompt_tokens: counted on the tensor that was fed, not copied from the plan.
    finish_reason: ``stop`` (end of turn), ``length`` (max_new_tokens reached) or ``loop``
        (stopped where it repeated itself).
    opens_reasoning: the text begins inside ``<think>``, which the prompt had opened.
    attempts: how often it was asked.
    """

    task: str
    raw_text: str
    finish_reason: str
    num_prompt_tokens: int
    num_output_tokens: int
    opens_reasoning: bool = False
    attempts: int = 1


RAW_ANSWER = pa.struct(
    [
        pa.field("task", pa.string(), nullable=False),
        pa.field("raw_text", pa.string(), nullable=False),
        pa.field("finish_reason", pa.string(), nullable=False),
        pa.field("num_prompt_tokens", pa.int32(), nullable=False),
        pa.field("num_output_tokens", pa.int32(), nullable=False),
        pa.field("opens_reasoning", pa.bool_(), nullable=False),
        pa.field("attempts", pa.int8(), nullable=False),
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

    @classmethod
    def of(cls, unit: PreparedUnit, answers: tuple[RawAnswer, ...] = ()) -> Self:
        """A prepared unit with its answers, without frames and token ids."""
        names = {field.name for field in dataclasses.fields(cls)}
        kept = {f.name: getattr(unit, f.name) for f in dataclasses.fields(unit) if f.name in names}
        prompts = tuple(dataclasses.replace(p, input_ids=None) for p in unit.prompts)
        return cls(**(kept | {"prompts": prompts, "answers": answers}))


def to_table(rows: Iterable[Any], schema: pa.Schema) -> pa.Table:
    """Write dataclass rows as an Arrow table with exactly ``schema``."""
    return pa.Table.from_pylist([dataclasses.asdict(row) for row in rows], schema=schema)


def from_table(table: pa.Table, cls: type[Any] = Unit) -> list[Any]:
    """Read rows of ``cls`` (Unit, PreparedUnit or AnsweredUnit) back from an Arrow table."""
    return [_unit(row, cls) for row in table.to_pylist()]


def _media(fields: dict[str, Any]) -> Media:
    intrinsics = fields.get("intrinsics")
    return Media(**fields | {"intrinsics": Intrinsics(**intrinsics) if intrinsics else None})


def part_from(row: dict[str, Any]) -> Part:
    """Read a part from a row of PART, or from any row with ``uri``, ``media`` and ``sampling``."""
    return Part(
        uri=row["uri"],
        frames=tuple(row.get("frames") or ()),
        media=_media(row["media"]),
        sampling=_sampling(row["sampling"]),
    )


def _unit(row: dict[str, Any], cls: type[Any]) -> Any:
    row["frames"] = tuple(row["frames"] or ())
    row["media"] = _media(row["media"]) if row["media"] else None
    row["sampling"] = _sampling(row["sampling"]) if row["sampling"] else None
    row["parts"] = tuple(part_from(part) for part in row["parts"] or ())
    row["prompts"] = tuple(Prompt(**_tuples(p)) for p in row["prompts"] or ())
    row["error"] = ErrorRecord(**row["error"]) if row["error"] else None
    if "answers" in row:
        row["answers"] = tuple(RawAnswer(**a) for a in row["answers"] or ())
    return cls(**row)


def _sampling(row: dict[str, Any]) -> Sampling:
    return Sampling(**_tuples(row | {"frames": row.get("frames") or "exact"}))


def _tuples(row: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}
