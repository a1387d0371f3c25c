"""The column ``error``: why a unit failed."""

from dataclasses import dataclass
from typing import Annotated

from schemas.errors import UnitError
from schemas.shown import redact_text
from schemas.tables.columns import Column, struct_of

MAX_MESSAGE_CHARACTERS = 2000


@dataclass(frozen=True, kw_only=True)
class ErrorRecord:
    """The error of one unit."""

    stage: Annotated[str, Column("the stage that failed: plan, decode or engine")]
    type: Annotated[str, Column("one of the closed list of error types")]
    message: Annotated[str, Column("the values, and what to do")]
    attempts: Annotated[int, Column("how often the unit was tried")] = 1

    @classmethod
    def from_error(cls, stage: str, error: UnitError) -> "ErrorRecord":
        """Make the record of an error that ``stage`` raised; a very long message is cut,
        and the secrets of addresses in it are hidden."""
        return cls(
            stage=stage,
            type=error.error_type.value,
            message=redact_text(str(error))[:MAX_MESSAGE_CHARACTERS],
            attempts=error.attempts,
        )


ERROR = struct_of(ErrorRecord)
