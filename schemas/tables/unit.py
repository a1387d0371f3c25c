"""A unit: what one model call sees. One row of the plan, and later one row of the output.

The same columns travel from the plan to the Parquet output; each stage adds its own:

    UNIT      the plan: ids, header facts, frame times, sizes, exact token counts
    PREPARED  + the frames (uint8) and the token ids, between the CPU decoders and the engine
    ANSWERED  - frames and token ids, + the raw answers
"""

import dataclasses
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Self

import pyarrow as pa

from schemas.tables.columns import Column, schema_of
from schemas.tables.error import ErrorRecord
from schemas.tables.media import FrameUris, Media, Part, Sampling


class UnitStatus(StrEnum):
    """State of a unit's row."""

    PLANNED = "planned"  # in the plan: can be done
    OK = "ok"  # every task answered and parsed
    PARTIAL = "partial"  # some task has no complete answer
    FAILED = "failed"  # no answer; `error` says why


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One task's prompt: its exact length in the plan, its token ids once prepared."""

    task: Annotated[str, Column("name of the task")]
    num_prompt_tokens: Annotated[int, Column("vision and text tokens together")]
    num_own_tokens: Annotated[
        int,
        Column("tokens after the last image or video, which no other prompt of the unit shares"),
    ] = 0
    input_ids: Annotated[tuple[int, ...] | None, Column("token ids; null in the plan")] = None


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One row of the plan. ``sampling`` and ``media`` are None if the media could not be probed.

    A conversation has ``messages`` and ``parts`` instead.
    """

    unit_id: Annotated[
        str,
        Column(
            "hash of media_id, content_version, start and end, or messages, and of the manifest's "
            "tasks, intrinsics and sample_fps: the same question about the same span of the same "
            "content has the same id in every run"
        ),
    ]
    media_id: Annotated[str, Column("the manifest's, else a hash of the uri or the messages")]
    uri: Annotated[
        str,
        Column(
            "the manifest's uri, made absolute; a data: uri is its type and hash, urls are without "
            "secrets; for a conversation the uri of its first image or video, empty if it has none"
        ),
    ]
    unread_id: Annotated[
        str, Column("unit_id of the manifest row while its media cannot be read")
    ] = ""
    shard: Annotated[
        int, Column("number of the part of the run that is written as one file", pa.int32())
    ] = 0
    content_version: Annotated[
        str | None,
        Column(
            "the manifest's, else the object's etag, or size and time; also set if the media could "
            "not be read, so that `only_new` knows which version was tried"
        ),
    ] = None
    frames: FrameUris = ()
    attributes: Annotated[str | None, Column("the manifest's further columns, a JSON object")] = (
        None
    )
    media: Annotated[
        Media | None,
        Column("header facts; null if the media could not be read, and for conversations"),
    ] = None
    sampling: Annotated[
        Sampling | None,
        Column(
            "which frames the model sees, and at which size; null if the media could not be read, "
            "and for conversations"
        ),
    ] = None
    messages: Annotated[
        str | None,
        Column("a conversation's turns, as JSON: texts, and a placeholder for each image or video"),
    ] = None
    parts: Annotated[
        tuple[Part, ...],
        Column("the images and videos of a conversation, in order; empty if none", nullable=True),
    ] = ()
    prompts: Annotated[tuple[Prompt, ...], Column("one prompt for each task", nullable=True)] = ()
    num_shared_tokens: Annotated[
        int,
        Column(
            "tokens up to the end of the media: the beginning that all prompts of the unit share "
            "and the engine reads once",
            pa.int64(),
        ),
    ] = 0
    predicted_cost: Annotated[
        float,
        Column(
            "tokens that the engine reads, shared ones once, plus the longest possible answers; "
            "sets the order of the work and the ETA",
            unit="tokens",
        ),
    ] = 0.0
    attempts: Annotated[int, Column("earlier attempts, counted by `reelscribe retry`")] = 0
    status: Annotated[str, Column("planned, or failed with the reason")] = UnitStatus.PLANNED
    error: Annotated[ErrorRecord | None, Column("why the unit cannot be done")] = None

    @property
    def num_fed_tokens(self) -> int:
        """Tokens that an engine reads for all prompts of the unit; shared tokens count once."""
        return self.num_shared_tokens + sum(prompt.num_own_tokens for prompt in self.prompts)

    @property
    def seen(self) -> tuple[Part, ...]:
        """What the model sees, in order: one image or video, or those of the conversation."""
        if self.media is None or self.sampling is None:
            return self.parts
        return (Part(uri=self.uri, frames=self.frames, media=self.media, sampling=self.sampling),)

    def failed(self, error: ErrorRecord) -> Self:
        """Return the unit with status failed and no remaining cost."""
        error = dataclasses.replace(error, attempts=self.attempts + error.attempts)
        return dataclasses.replace(self, status=UnitStatus.FAILED, error=error, predicted_cost=0.0)


DecodeSeconds = Annotated[
    float, Column("time to decode, resize and build the prompts", unit="s", nullable=True)
]
BytesRead = Annotated[
    int | None, Column("bytes that the decoder read from storage", pa.int64(), unit="bytes")
]


@dataclass(frozen=True, kw_only=True)
class PreparedUnit(Unit):
    """A unit with its frames and token ids."""

    frame_data: Annotated[
        bytes | None,
        Column("uint8 [T, H, W, 3], row-major RGB; a conversation's parts one after the other"),
    ] = None
    decode_seconds: DecodeSeconds = 0.0
    bytes_read: BytesRead = None


@dataclass(frozen=True, kw_only=True)
class RawAnswer:
    """The text that the engine generated for one task's prompt."""

    task: Annotated[str, Column("name of the task")]
    raw_text: Annotated[
        str, Column("the generated text; of an embedding the vector, float32 in base64")
    ]
    finish_reason: Annotated[
        str,
        Column(
            "stop: end of turn, or a vector; length: max_new_tokens reached; loop: stopped because "
            "it repeated itself"
        ),
    ]
    num_prompt_tokens: Annotated[
        int, Column("counted on the engine's input, not copied from the plan")
    ]
    num_output_tokens: Annotated[int, Column("tokens generated")]
    opens_reasoning: Annotated[
        bool, Column("the text begins inside `<think>`, which the prompt opened")
    ] = False
    attempts: Annotated[int, Column("how often the answer was generated", pa.int8())] = 1


@dataclass(frozen=True, kw_only=True)
class AnsweredUnit(Unit):
    """A unit with the engine's raw answers; frames and token ids are gone."""

    decode_seconds: DecodeSeconds = 0.0
    bytes_read: BytesRead = None
    answers: Annotated[
        tuple[RawAnswer, ...], Column("one answer for each prompt", nullable=True)
    ] = ()
    engine_seconds: Annotated[
        float, Column("the unit's share of its batch's time", unit="s", nullable=True)
    ] = 0.0
    num_read_again: Annotated[
        int,
        Column(
            "tokens of the shared beginning that the engine read again for further prompts: 0 if "
            "it kept all of it",
            pa.int64(),
            nullable=True,
        ),
    ] = 0
    engine: Annotated[
        str | None,
        Column("version of the engine and what it chose by itself; null if it chooses nothing"),
    ] = None

    @property
    def num_fed_tokens(self) -> int:
        """Tokens that the engine read for all prompts of the unit."""
        return super().num_fed_tokens + self.num_read_again

    @classmethod
    def of(cls, unit: PreparedUnit, answers: tuple[RawAnswer, ...] = ()) -> Self:
        """Make the answered unit of a prepared one, without frames and token ids."""
        names = {field.name for field in dataclasses.fields(cls)}
        kept = {f.name: getattr(unit, f.name) for f in dataclasses.fields(unit) if f.name in names}
        prompts = tuple(dataclasses.replace(p, input_ids=None) for p in unit.prompts)
        return cls(**(kept | {"prompts": prompts, "answers": answers}))


UNIT = schema_of(Unit)
PREPARED = schema_of(PreparedUnit)
ANSWERED = schema_of(AnsweredUnit)
