"""Everything that can go wrong, and what then happens.

Exception
├── UserError            one clear message and exit code 2, before any work starts
│   ├── JobFileError     the job file
│   ├── ManifestError    the manifest, or the listing it came from
│   ├── StorageError     a bucket, folder or credentials
│   ├── ModelError       the checkpoint
│   ├── ResourceError    the cluster is too small, or its workers differ from the driver
│   └── CostError        the run would cost more than the job allows; exit code 4
└── UnitError            one unit: becomes that unit's row, with an ErrorType; no other is touched
"""

from dataclasses import dataclass
from enum import StrEnum

import pyarrow as pa


class ErrorType(StrEnum):
    """The closed list of what an error row can say. Names are stable; queries may rely on them.

    Each carries what it means and what to do; docs/output-schema.md is made of these.
    """

    meaning: str
    advice: str

    def __new__(cls, value: str, meaning: str, advice: str) -> "ErrorType":
        """Make a member that is its value, as StrEnum's are."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.meaning = meaning
        member.advice = advice
        return member

    MEDIA_MISSING = (
        "media_missing",
        "There is no object at the uri.",
        "Restore the object, then `reelscribe retry`; or correct the manifest.",
    )
    MEDIA_DENIED = (
        "media_denied",
        "The storage refused the credentials, or the uri leads to a private address.",
        "Give the job read access (`input.allow_private_hosts` lets it reach hosts inside), then "
        "`reelscribe retry`.",
    )
    MEDIA_UNREADABLE = (
        "media_unreadable",
        "The object is broken, truncated, or not media at all.",
        "Replace the object: other programs will hardly read it either.",
    )
    MEDIA_UNSUPPORTED = (
        "media_unsupported",
        "The object is media, but nothing here can decode it.",
        "Transcode it, for instance to H.264 in MP4.",
    )
    MEDIA_TOO_LARGE = (
        "media_too_large",
        "More pixels or bytes than the limits allow.",
        "Scale it down, or store it where byte ranges can be read.",
    )
    MEDIA_CHANGED = (
        "media_changed",
        "The object is not the one that was planned.",
        "`reelscribe retry` plans it anew, as it is now.",
    )
    DECODE_TIMEOUT = (
        "decode_timeout",
        "The media was not read or decoded within its deadline.",
        "Raise `resources.decode_timeout_seconds` if the file is sound, or replace it; then "
        "`reelscribe retry`.",
    )
    DECODER_CRASHED = (
        "decoder_crashed",
        "The media ended the process that decoded it, twice.",
        "Replace or transcode it; if other programs can read it, please report it.",
    )
    STORAGE_FAILED = (
        "storage_failed",
        "The storage did not answer, after retries.",
        "`reelscribe retry` later: it tries these units again, and only these.",
    )
    OVER_CONTEXT = (
        "over_context",
        "Prompt and answer are more tokens than the model's context.",
        "Shorten the windows, lower `sampling.fps` or `budget`, or raise `model.max_model_len`.",
    )
    BAD_REQUEST = (
        "bad_request",
        "The manifest row asks for something impossible.",
        "Correct the row; the message shows its values.",
    )
    TOKEN_MISMATCH = (
        "token_mismatch",
        "The engine was fed another number of tokens than was planned.",
        "Please report it, with the row: the two must never differ.",
    )
    OUT_OF_MEMORY = (
        "out_of_memory",
        "The unit alone in its batch was too large for the device.",
        "Lower `budget`, or `reelscribe retry` on a larger device or more of them.",
    )
    ENGINE_CRASHED = (
        "engine_crashed",
        "The engine's process ended three times while it was at this unit.",
        "`reelscribe retry`, on another device if there is one; if it comes again, report it.",
    )
    ENGINE_FAILED = (
        "engine_failed",
        "The engine raised on this unit.",
        "`reelscribe retry`; if it comes again, please report the message.",
    )


PASSING = frozenset(
    {
        ErrorType.MEDIA_MISSING,
        ErrorType.MEDIA_DENIED,
        ErrorType.MEDIA_CHANGED,
        ErrorType.DECODE_TIMEOUT,
        ErrorType.DECODER_CRASHED,
        ErrorType.STORAGE_FAILED,
        ErrorType.OUT_OF_MEMORY,
        ErrorType.ENGINE_CRASHED,
        ErrorType.ENGINE_FAILED,
    }
)
"""Errors that may be gone another time: a retry or a new run tries these units again."""


class UserError(Exception):
    """A mistake that the user can mend; shown as one message."""

    exit_code = 2


class JobFileError(UserError):
    """The job file is wrong."""


class ManifestError(UserError):
    """The manifest, or the listing it came from, is wrong."""


class StorageError(UserError):
    """A bucket, folder or credential does not work."""


class ModelError(UserError):
    """The checkpoint cannot be used."""


class ResourceError(UserError):
    """The cluster cannot run this job."""


class CostError(UserError):
    """The run is predicted to cost more than the job allows."""

    exit_code = 4


class UnitError(Exception):
    """One unit cannot be done. The message shows the values and says what to do.

    attempts: how often it was tried.
    """

    def __init__(self, error_type: ErrorType, message: str, attempts: int = 1) -> None:
        super().__init__(message)
        self.error_type = error_type
        self.attempts = attempts

    def __reduce__(self) -> tuple[type["UnitError"], tuple[ErrorType, str, int]]:
        """Pickle with all arguments; the default would forget the type."""
        return UnitError, (self.error_type, str(self), self.attempts)


@dataclass(frozen=True, kw_only=True)
class ErrorRecord:
    """What an error row says: the stage it happened in, the type, the message, how often tried."""

    stage: str
    type: str
    message: str
    attempts: int = 1

    @classmethod
    def from_error(cls, stage: str, error: UnitError) -> "ErrorRecord":
        """Record ``error`` as it happened in ``stage``; very long messages are cut."""
        return cls(
            stage=stage,
            type=error.error_type.value,
            message=str(error)[:2000],
            attempts=error.attempts,
        )


def _field(name: str, type_: pa.DataType, description: str) -> pa.Field:
    return pa.field(name, type_, nullable=False, metadata={"description": description})


ERROR = pa.struct(
    [
        _field("stage", pa.string(), "the step it happened in: plan, decode or engine"),
        _field("type", pa.string(), "one of the closed list of error types"),
        _field("message", pa.string(), "the values, and what to do"),
        _field("attempts", pa.int32(), "how often it was tried"),
    ]
)
