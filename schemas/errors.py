"""Everything that can go wrong, and what then happens.

Exception
├── UserError            one clear message and exit code 2, before any work starts
│   ├── JobFileError     the job file
│   ├── ManifestError    the manifest, or the listing it came from
│   ├── StorageError     a bucket, folder or credentials
│   ├── ModelError       the checkpoint
│   └── ResourceError    the cluster or machine is too small, or its workers differ from the driver
└── UnitError            one unit: becomes that unit's row, with an ErrorType; nothing else is touched
"""

from dataclasses import dataclass
from enum import StrEnum

import pyarrow as pa


class ErrorType(StrEnum):
    """The closed list of what an error row can say. Names are stable; queries may rely on them."""

    MEDIA_MISSING = "media_missing"  # no object at the uri
    MEDIA_DENIED = "media_denied"  # credentials refused, or an address inside the cluster
    MEDIA_UNREADABLE = "media_unreadable"  # broken, truncated, or not media at all
    MEDIA_UNSUPPORTED = "media_unsupported"  # readable, but nothing here can decode it
    MEDIA_TOO_LARGE = "media_too_large"  # more pixels or bytes than the limits allow
    MEDIA_CHANGED = "media_changed"  # the object is not the one that was planned
    STORAGE_FAILED = "storage_failed"  # the storage did not answer, after retries
    OVER_CONTEXT = "over_context"  # more tokens than the model's context
    BAD_REQUEST = "bad_request"  # the manifest row asks for something impossible
    TOKEN_MISMATCH = "token_mismatch"  # noqa: S105  planned and fed token counts differ
    OUT_OF_MEMORY = "out_of_memory"  # alone in its batch, and still too large for the device
    ENGINE_FAILED = "engine_failed"  # the engine raised on this unit


class UserError(Exception):
    """A mistake that the user can mend; shown as one message, exit code 2."""


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


class UnitError(Exception):
    """One unit cannot be done. The message shows the values and says what to do."""

    def __init__(self, error_type: ErrorType, message: str) -> None:
        super().__init__(message)
        self.error_type = error_type

    def __reduce__(self) -> tuple[type["UnitError"], tuple[ErrorType, str]]:
        """Pickle with both arguments; the default would forget the type."""
        return UnitError, (self.error_type, str(self))


@dataclass(frozen=True, kw_only=True)
class ErrorRecord:
    """What an error row says: the stage it happened in, the type, the message, how often tried."""

    stage: str
    type: str
    message: str
    attempts: int = 1

    @classmethod
    def from_error(cls, stage: str, error: UnitError, attempts: int = 1) -> "ErrorRecord":
        """Record ``error`` as it happened in ``stage``; very long messages are cut."""
        return cls(
            stage=stage, type=error.error_type.value, message=str(error)[:2000], attempts=attempts
        )


ERROR = pa.struct(
    [
        pa.field("stage", pa.string(), nullable=False),
        pa.field("type", pa.string(), nullable=False),
        pa.field("message", pa.string(), nullable=False),
        pa.field("attempts", pa.int32(), nullable=False),
    ]
)
