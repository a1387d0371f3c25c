"""Settings of the simulated engine: how long a model of a published size would take.

Assumptions, not measurements: arithmetic and memory traffic of a model of that size, over what the
makers of a GPU say it does, times a usual efficiency (``pipeline/engines/simulated.py``).
"""

from typing import Literal

from pydantic import Field

from schemas.section import Section

SimulatedSize = Literal["2B", "4B", "8B", "32B", "30B-A3B", "235B-A22B"]
SimulatedGpu = Literal["l40s", "a100", "h100", "h200"]


class Simulated(Section):
    """What the simulated engine pretends to be. Each `seconds_` that is given is taken as it is."""

    size: SimulatedSize = Field("8B", description="Which published size.")
    gpu: SimulatedGpu = Field("h100", description="On which GPU.")
    speed: float = Field(
        1.0, gt=0, description="Times as fast; 100: a night's work in minutes, to study scale."
    )
    max_num_seqs: int = Field(
        64, ge=1, description="Answers written at the same time, as by continuous batching."
    )
    output_tokens: int = Field(
        120,
        ge=1,
        description="Of an answer in the mean; each has a quarter to 7/4 of it, at most its "
        "max_new_tokens.",
    )
    seconds_per_vision_token: float | None = Field(None, ge=0, description="The vision encoder's.")
    seconds_per_prompt_token: float | None = Field(None, ge=0, description="Reading a prompt's.")
    seconds_per_step: float | None = Field(
        None, ge=0, description="Of a step that writes one token of each answer at work."
    )
    seconds_per_cached_token: float | None = Field(
        None, ge=0, description="Of a step, for each token that an answer at work looks back on."
    )
