"""Everything that can go wrong, and what happens then.

Exception
├── UserError            one message and exit code 2; ``code`` is its section in docs/errors.md
│   ├── JobFileError     job-file: the job file or an option
│   ├── ManifestError    manifest: the manifest, a listing, or a training data set
│   ├── StorageError     storage: a bucket, a folder, or credentials
│   ├── ModelError       model: the checkpoint or its engine
│   ├── ResourceError    resources: the cluster is too small, or its workers differ from the driver
│   └── CostError        cost: the predicted cost is over the limit; exit code 4
└── UnitError            one unit: its row gets an ErrorType; no other unit is affected
"""

from enum import StrEnum


class ErrorType(StrEnum):
    """The closed list of error types in rows. Names are stable: queries may rely on them.

    Each has its meaning and advice, from which docs/output-schema.md is generated. docs/errors.md
    has a section for each.
    """

    meaning: str
    advice: str

    def __new__(cls, value: str, meaning: str, advice: str) -> "ErrorType":
        """Make a member that equals its value, like other StrEnum members."""
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
        "The storage refused the credentials, the uri leads to a private address, or the server's "
        "certificate is not trusted.",
        "Give the job read access (`input.allow_private_hosts` allows private addresses), or have "
        "the certificate corrected, then `reelscribe retry`.",
    )
    MEDIA_UNREADABLE = (
        "media_unreadable",
        "The object is broken, truncated, or not media at all.",
        "Replace the object: other programs will hardly read it either.",
    )
    MEDIA_UNSUPPORTED = (
        "media_unsupported",
        "The object is media, but it cannot be decoded or shown to the model.",
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
        "`reelscribe retry` plans it again, as it is now.",
    )
    DECODE_TIMEOUT = (
        "decode_timeout",
        "The media was not read or decoded within its deadline.",
        "If other programs can read it, raise `resources.decode_timeout_seconds`, else replace it; "
        "then `reelscribe retry`.",
    )
    DECODER_CRASHED = (
        "decoder_crashed",
        "The process that decoded the media died, twice.",
        "Replace or transcode it; if other programs can read it, please report it.",
    )
    STORAGE_FAILED = (
        "storage_failed",
        "The storage did not answer, after retries.",
        "`reelscribe retry` later.",
    )
    OVER_CONTEXT = (
        "over_context",
        "Prompt and answer are more tokens than the model's context.",
        "Shorten the windows, lower `sampling.fps` or `budget`, or raise `model.max_model_len`.",
    )
    TOO_MANY_UNITS = (
        "too_many_units",
        "The video is longer than `limits.max_units_per_item` allows.",
        "If it is that long, raise the limit or `sampling.segmentation.seconds`; else replace it.",
    )
    BAD_REQUEST = (
        "bad_request",
        "The manifest row requests something impossible.",
        "Correct the row; the message shows its values.",
    )
    TOKEN_MISMATCH = (
        "token_mismatch",
        "The engine received another number of tokens than planned.",
        "Please report it, with the row: the two numbers must never differ.",
    )
    OUT_OF_MEMORY = (
        "out_of_memory",
        "The unit, alone in its batch, was too large for the device.",
        "Lower `budget`, or use a device with more memory, then `reelscribe retry`.",
    )
    ENGINE_CRASHED = (
        "engine_crashed",
        "The engine's process died three times while it worked on this unit.",
        "`reelscribe retry`, on another device if there is one; if it happens again, report it.",
    )
    ENGINE_FAILED = (
        "engine_failed",
        "The engine raised an exception on this unit.",
        "`reelscribe retry`; if it happens again, please report the message.",
    )


TRANSIENT = frozenset(
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
"""Types that may not occur again: a retry or a new run tries these units again."""


class UserError(Exception):
    """A mistake that the user can correct; shown as one message.

    code: the anchor of its section in docs/errors.md; empty for wrong arguments of a command,
        whose message is enough.
    """

    exit_code = 2
    code = ""


class JobFileError(UserError):
    """The job file, or an option that replaces one of its values, cannot be used."""

    code = "job-file"


class ManifestError(UserError):
    """The manifest, the listing in its place, or a training data set cannot be used."""

    code = "manifest"


class StorageError(UserError):
    """A bucket, a folder or credentials do not work."""

    code = "storage"


class ModelError(UserError):
    """The checkpoint or its engine cannot be used."""

    code = "model"


class ResourceError(UserError):
    """The cluster cannot run this job."""

    code = "resources"


class CostError(UserError):
    """The predicted cost of the run is over the job's limit."""

    exit_code = 4
    code = "cost"


class UnitError(Exception):
    """One unit cannot be done. The message shows the values and says what to do.

    attempts: how often the unit was tried.
    """

    def __init__(self, error_type: ErrorType, message: str, attempts: int = 1) -> None:
        super().__init__(message)
        self.error_type = error_type
        self.attempts = attempts

    def __reduce__(self) -> tuple[type["UnitError"], tuple[ErrorType, str, int]]:
        """Pickle all arguments; the default would lose the type."""
        return UnitError, (self.error_type, str(self), self.attempts)
