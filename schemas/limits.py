"""What a run may cost and come to, and who is told."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from schemas.section import Section


def as_share(value: Any) -> Any:
    """Read ``1%`` as 0.01; other values stay as they are, to be checked as numbers."""
    if isinstance(value, str) and value.strip().endswith("%"):
        try:
            return float(value.strip()[:-1]) / 100
        except ValueError:
            return value
    return value


class Cost(Section):
    """What an engine costs; the plan then says what a run will."""

    per_hour: float | None = Field(
        None,
        gt=0,
        description="Price of an hour of one engine replica: its GPUs, and its share of the "
        "machines with the decoders.",
    )
    currency: str = Field(
        "USD", min_length=1, max_length=16, description="Of that price: a label, nothing more."
    )
    calibration: str | None = Field(
        None,
        min_length=1,
        description="A file that `reelscribe calibrate` wrote; default: the output's "
        "calibration.json, or what the latest run of the same model took, whichever is newer.",
    )


class Limits(Section):
    """What a run may come to."""

    max_failed: Annotated[float, BeforeValidator(as_share), Field(ge=0, le=1)] | None = Field(
        None,
        description="A complete run of which a larger share of units failed ends with exit code 3: "
        "`1%` or 0.01.",
    )
    max_cost: float | None = Field(
        None,
        gt=0,
        description="A run that is predicted to cost more is not begun, exit code 4: in money "
        "where `cost.per_hour` is given, else in engine hours.",
    )


class OnFinish(Section):
    """Whom a complete run tells."""

    command: tuple[str, ...] = Field(
        (),
        description="A program and its arguments, run without a shell; `REELSCRIBE_SUMMARY` is the "
        "path of summary.json, `REELSCRIBE_RUN_ID` the run, `REELSCRIBE_STATUS` ok or "
        "too_many_failed.",
    )
    webhook_env: str | None = Field(
        None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="Environment variable with a url that gets summary.json by POST; a url with a "
        "token belongs into no file.",
    )
    timeout: float = Field(60.0, gt=0, description="Seconds for each.")
