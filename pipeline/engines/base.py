"""What every engine offers, and the error that all engines share."""

from collections.abc import Sequence
from typing import Protocol

from schemas.errors import ErrorType, UnitError
from schemas.job.generation import Generation
from schemas.tables.unit import AnsweredUnit, PreparedUnit, Prompt


class Engine(Protocol):
    """A loaded model that answers units."""

    def generate(
        self, units: Sequence[PreparedUnit], generation: Generation | None = None
    ) -> list[AnsweredUnit]:
        """Answer every prompt of every unit.

        units: with frames (``uint8 [T, H, W, 3]`` of each image and video, as bytes) and token ids.
        generation: replaces the job's settings; ``max_new_tokens`` stays that of the task.

        Returns one row per unit, in the order of ``units``. Failed units are returned unchanged; a
        unit that cannot be answered has its error set, and the other units are not affected.
        """
        ...


def token_mismatch(prompt: Prompt, num_tokens: int) -> UnitError:
    """The error for a prompt of ``num_tokens`` tokens where the plan has another number."""
    return UnitError(
        ErrorType.TOKEN_MISMATCH,
        f"{prompt.task}: {prompt.num_prompt_tokens} prompt tokens were planned, the prompt has "
        f"{num_tokens}: the file's header and its decoded frames disagree",
    )
