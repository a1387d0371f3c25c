"""The sections ``generation`` and ``summary`` of a job file."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from schemas.job.section import Section


def _on_or_off(value: Any) -> Any:
    """Read YAML's ``on`` and ``off``, which are booleans there, as the words."""
    return ("on" if value else "off") if isinstance(value, bool) else value


class Retry(Section):
    """Settings with which an answer that could not be parsed is generated again, once."""

    temperature: float = Field(0.7, ge=0, le=5, description="Instead of the value in `generation`.")
    top_p: float = Field(0.8, gt=0, le=1, description="Instead of the value in `generation`.")
    top_k: int = Field(20, ge=0, lt=1 << 31, description="Instead of the value in `generation`.")
    repetition_penalty: float = Field(
        1.1,
        gt=0,
        allow_inf_nan=False,
        description="Instead of the value in `generation`, for answers in prose: lists, tables and "
        "JSON repeat themselves by their form.",
    )


class Generation(Section):
    """How answers are generated. Greedy by default, so that a run is reproducible."""

    defaults: Literal["auto", "greedy", "checkpoint"] = Field(
        "auto",
        description="Defaults of the other settings. greedy: as listed here. checkpoint: "
        "temperature, top_p, top_k and repetition_penalty of its `generation_config.json`. auto: "
        "checkpoint for answers with reasoning, in which models repeat themselves when greedy, "
        "with 8,192 new tokens; greedy for others.",
    )
    reasoning: Annotated[Literal["off", "on", "auto"], BeforeValidator(_on_or_off)] = Field(
        "off",
        description="Whether the model reasons before it answers, by the switch of the "
        "checkpoint's chat template. auto: what the template does without the switch. A "
        "checkpoint that only reasons does so by default; `off` in the job file is then an error, "
        "and so is `on` for one that has no reasoning. Reasoning is never part of an answer: it "
        "is in `responses[].reasoning`.",
    )
    max_new_tokens: int = Field(
        512, ge=1, le=65536, description="Maximum length of an answer, in tokens."
    )
    temperature: float = Field(0.0, ge=0, le=5, description="0: greedy.")
    top_p: float = Field(1.0, gt=0, le=1, description="With temperature: nucleus sampling.")
    top_k: int = Field(
        0,
        ge=0,
        lt=1 << 31,
        description="With temperature: sample from the k likeliest tokens; 0: from all.",
    )
    repetition_penalty: float = Field(
        1.0, gt=0, allow_inf_nan=False, description="transformers' repetition penalty."
    )
    presence_penalty: float = Field(
        0.0,
        ge=-2,
        le=2,
        description="Subtracted from the logit of each token that the answer already has.",
    )
    constrained: bool = Field(
        True,
        description="Constrain answers to the task's JSON Schema during generation: `custom` "
        "with a `json_schema`, `fields` with `keys`.",
    )
    stop_loops: bool = Field(
        True,
        description="Stop an answer that repeats itself; its status is then looped.",
    )
    retry: Retry | None = Field(
        default_factory=Retry,
        description="An unparsed or looped answer is generated once more with these settings, and "
        "the new one is kept if it can be parsed; null: no second attempt.",
    )
    seed: int = Field(
        0,
        ge=0,
        lt=1 << 63,
        description="With temperature: the same seed draws the same random numbers, in any batch.",
    )


class Summary(Section):
    """A second stage: a summary of each video, from the text of its units' captions."""

    prompt: str = Field(
        "These are notes on the consecutive parts of one video, each with its time. Write one "
        "summary of the whole video, in the order of time, that says nothing beyond the notes.",
        min_length=1,
        description="The prompt; the captions follow it, each with its time.",
    )
    max_new_tokens: int = Field(512, ge=1, description="Maximum length of a summary, in tokens.")
