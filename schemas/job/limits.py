"""The sections ``cost``, ``limits`` and ``on_finish`` of a job file."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from schemas.job.section import Section


def as_share(value: Any) -> Any:
    """Read ``1%`` as 0.01; other values stay as they are, to be checked as numbers."""
    if isinstance(value, str) and value.strip().endswith("%"):
        try:
            return float(value.strip()[:-1]) / 100
        except ValueError:
            return value
    return value


class Cost(Section):
    """The price of an engine, from which the plan predicts the price of a run."""

    per_hour: float | None = Field(
        None,
        gt=0,
        description="Price of one engine replica for an hour: its GPUs, and its share of the "
        "machines with the decoders.",
    )
    currency: str = Field(
        "USD", min_length=1, max_length=16, description="Currency of that price; a label only."
    )
    calibration: str | None = Field(
        None,
        min_length=1,
        description="A file written by `reelscribe calibrate`; default: the output's "
        "calibration.json, or the times of the latest run of the same model, whichever is newer.",
    )


class Limits(Section):
    """Limits of a run."""

    max_units_per_item: int = Field(
        20_000,
        ge=1,
        description="A video that would be more units is one error row, too_many_units. By "
        "default, windows of 60 s for two weeks of video.",
    )
    max_failed: Annotated[float, BeforeValidator(as_share), Field(ge=0, le=1)] | None = Field(
        None,
        description="A complete run ends with exit code 3 if a larger share of its units failed: "
        "`1%` or 0.01.",
    )
    max_cost: float | None = Field(
        None,
        gt=0,
        description="A run with a higher predicted cost is not started, exit code 4. In money "
        "if `cost.per_hour` is set, else in engine hours.",
    )


class OnFinish(Section):
    """What is notified when a run is complete."""

    command: tuple[str, ...] = Field(
        (),
        description="A program and its arguments, run without a shell. `REELSCRIBE_SUMMARY` is the "
        "path of summary.json, `REELSCRIBE_RUN_ID` the run, `REELSCRIBE_STATUS` ok or "
        "too_many_failed.",
    )
    webhook_env: str | None = Field(
        None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="Name of an environment variable with a url, to which summary.json is sent by "
        "POST. The url itself is not in the job file, since it may contain a token.",
    )
    timeout: float = Field(
        60.0, gt=0, description="Maximum seconds for the command, and for the webhook."
    )
