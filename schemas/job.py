"""The job file: what a person writes in YAML. Unknown keys are errors; every field has a default
that suits a first run, but ``input`` and ``output``.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BeforeValidator,
    Field,
    ValidationError,
    model_validator,
)

from schemas.errors import JobFileError
from schemas.job_errors import explain
from schemas.limits import Cost, Limits, OnFinish
from schemas.model import Model
from schemas.resources import Resources
from schemas.section import Section
from schemas.task import Question
from schemas.task_spec import TaskSpec, as_task, asked_questions
from schemas.yaml_file import read_mapping

SectionT = TypeVar("SectionT", bound=Section)

ANY_FILE = "**/*"


class Input(Section):
    """Where the media items come from: a manifest, or a listing made at the start."""

    manifest: str | None = Field(
        None,
        min_length=1,
        description="Parquet, JSONL or CSV with a `uri` column; a path or s3:// uri.",
    )
    scan: str | None = Field(
        None, min_length=1, description="A folder or s3:// prefix to list instead of a manifest."
    )
    glob: str = Field(ANY_FILE, description="With `scan`: which files, relative to it.")
    allow_private_hosts: bool = Field(
        False,
        description="Let https:// uris of the manifest reach private and loopback addresses.",
    )

    only_new: bool = Field(
        False,
        description="Take only media that the output table does not have under this recipe: known "
        "by content version, so changed objects are taken again; renamed ones are not, where the "
        "storage's etag is the MD5 of the content.",
    )
    since: str | None = Field(
        None,
        min_length=1,
        description="With `scan`: only objects written since then: `24h`, `7d`, or a date or time.",
    )
    sample: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Take this share of the items, the same ones whenever it is run again.",
    )
    limit: int | None = Field(
        None, ge=1, description="Take at most so many items; with `only_new`, new ones."
    )

    @model_validator(mode="after")
    def _one_source(self) -> "Input":
        if (self.manifest is None) == (self.scan is None):
            raise ValueError("give exactly one of `manifest` and `scan`")
        if self.since is not None and self.scan is None:
            raise ValueError("`since` goes by the objects' times, which only `scan` knows")
        if self.scan is None and self.glob != ANY_FILE:
            raise ValueError("`glob` chooses among the files of `scan`; a manifest names its own")
        return self


class Segmentation(Section):
    """How long videos become several units."""

    kind: Literal["none", "window", "shots"] = Field(
        "window",
        description="none: one unit an item; window: stretches of equal length; shots: where the "
        "picture cuts, shots longer than `seconds` in windows.",
    )
    seconds: float = Field(60.0, gt=0, description="Length of a window.")
    overlap_seconds: float = Field(
        0.0,
        ge=0,
        description="Each window begins so long before the last one ends: what happens at a border "
        "is seen whole in one of them.",
    )
    min_seconds: float = Field(
        2.0,
        ge=0,
        description="A shot, or a last window's own part, that is shorter joins the one before it.",
    )
    shot_threshold: float = Field(
        27.0,
        gt=0,
        le=255,
        description="With shots: how different two frames are at a cut, of 255; more finds fewer.",
    )

    @model_validator(mode="after")
    def _moves_on(self) -> "Segmentation":
        if self.overlap_seconds > self.seconds / 2:
            raise ValueError(
                f"overlap_seconds {self.overlap_seconds:g} is over half of seconds {self.seconds:g}"
            )
        return self


class SamplingSpec(Section):
    """Which frames of a video the model sees."""

    fps: float = Field(2.0, gt=0, le=240, description="Frames a second; see `num_frames`.")
    num_frames: int | None = Field(
        None,
        ge=1,
        description="This many frames of every unit, instead of `fps`; rounded up to an even "
        "number, and no more than there are.",
    )
    min_frames: int = Field(4, ge=1, description="With `fps`: at least so many, if there are.")
    max_frames: int = Field(768, ge=2, description="With `fps`: at most so many, spread evenly.")
    segmentation: Segmentation = Field(default_factory=Segmentation, description="Long videos.")
    clock: Literal["media", "unit"] = Field(
        "media",
        description="What the times that the model reads and answers count from: the file's own "
        "clock (PTS), or the unit's begin, for a model that knows short clips only. The table has "
        "PTS either way.",
    )
    frames: Literal["exact", "nearest", "keyframes"] = Field(
        "exact",
        description="exact: the frame on display at the sample time. nearest: the closest of those "
        "that others refer to, which is less work where there are B-frames. "
        "keyframes: the key frame before it, for a rough look at an archive; a frame may then be "
        "seen many times. Where the text of a time could be of another length than planned, the "
        "exact frame is taken. The rows have the true times.",
    )
    decoder: Literal["auto", "torchcodec", "pyav"] = Field(
        "auto",
        description="auto is pyav. torchcodec gives the same frames and times, at several times "
        "the memory.",
    )

    @model_validator(mode="after")
    def _ordered(self) -> "SamplingSpec":
        if self.min_frames > self.max_frames:
            raise ValueError(f"min_frames {self.min_frames} is over max_frames {self.max_frames}")
        return self


TokenRange = Annotated[tuple[int, int], Field(description="[least, most]")]


class Budget(Section):
    """How large images and frames may be. A token is 32 x 32 pixels; of a video, 2 frames deep."""

    image_tokens: TokenRange = Field((4, 16384), description="[least, most] tokens of an image.")
    frame_tokens: TokenRange = Field(
        (128, 768),
        description="[least, most] size of a video frame in 32 x 32 px squares; frames go in "
        "pairs, so the model gets half as many tokens.",
    )
    unit_tokens: int = Field(
        24576,
        ge=4,
        description="Vision tokens of one video unit, unless frame_tokens' least is more.",
    )
    video_rule: Literal["per_frame", "per_clip"] = Field(
        "per_frame",
        description="per_frame: as the model's reference code (qwen-vl-utils); per_clip: as "
        "transformers' video processor, frames x height x width within [frame_tokens least, "
        "unit_tokens x 2] squares.",
    )

    @model_validator(mode="after")
    def _ordered(self) -> "Budget":
        for name in ("image_tokens", "frame_tokens"):
            least, most = getattr(self, name)
            if not 1 <= least <= most:
                raise ValueError(
                    f"{name} must be [least, most] with 1 <= least <= most, got {[least, most]}"
                )
        return self


class Retry(Section):
    """How an answer that could not be read is asked for again, once."""

    temperature: float = Field(0.7, ge=0, le=5, description="Instead of generation's.")
    top_p: float = Field(0.8, gt=0, le=1, description="Instead of generation's.")
    top_k: int = Field(20, ge=0, description="Instead of generation's.")
    repetition_penalty: float = Field(1.1, gt=0, description="Instead of generation's.")


class Generation(Section):
    """How answers are generated. Greedy by default, so that a run can be repeated."""

    defaults: Literal["auto", "greedy", "checkpoint"] = Field(
        "auto",
        description="What the settings are that are not given: greedy, as listed here; or "
        "checkpoint, temperature, top_p, top_k and repetition_penalty as its "
        "`generation_config.json` has them. auto: checkpoint for Thinking ones, which repeat "
        "themselves when greedy, and 8,192 new tokens; greedy for others.",
    )
    max_new_tokens: int = Field(512, ge=1, le=65536, description="Longest answer, in tokens.")
    temperature: float = Field(0.0, ge=0, le=5, description="0: greedy.")
    top_p: float = Field(1.0, gt=0, le=1, description="With temperature: nucleus.")
    top_k: int = Field(0, ge=0, description="With temperature: the k best tokens; 0: all.")
    repetition_penalty: float = Field(1.0, gt=0, description="transformers' repetition penalty.")
    presence_penalty: float = Field(
        0.0, ge=-2, le=2, description="Taken off the score of each token the answer has already."
    )
    constrained: bool = Field(
        True,
        description="Hold answers to the task's JSON Schema while they are generated: `custom` "
        "with a `json_schema`, `fields` with `keys`.",
    )
    stop_loops: bool = Field(
        True,
        description="Stop an answer that repeats itself over and over; its status is then looped.",
    )
    retry: Retry | None = Field(
        default_factory=Retry,
        description="An answer that is unparsed or looped is asked for once more, with these "
        "changes, and kept if it can be read; null: never.",
    )
    seed: int = Field(
        0, ge=0, lt=1 << 63, description="With temperature: same seed, same answers, in any batch."
    )


class Summary(Section):
    """A second stage: one summary of each video out of its units' captions, from text alone."""

    prompt: str = Field(
        "These are notes on the consecutive parts of one video, each with its time. Write one "
        "summary of the whole video, in the order of time, that says nothing beyond the notes.",
        min_length=1,
        description="What is asked; the captions follow it, each with its time.",
    )
    max_new_tokens: int = Field(512, ge=1, description="Longest summary, in tokens.")


class Job(Section):
    """A job file."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")] = Field(
        "annotate", description="Lower-case letters, digits and dashes; run ids start with it."
    )
    input: Input = Field(description="Where the media items come from.")
    output: str = Field(min_length=1, description="Folder or s3:// prefix of the output table.")
    model: Model = Field(default_factory=Model, description="The checkpoint and its engine.")
    sampling: SamplingSpec = Field(default_factory=SamplingSpec, description="Frames of videos.")
    budget: Budget = Field(default_factory=Budget, description="Sizes of what the model sees.")
    generation: Generation = Field(default_factory=Generation, description="Answers.")
    tasks: tuple[Annotated[TaskSpec, BeforeValidator(as_task)], ...] = Field(
        (TaskSpec(name="caption"),),
        description="What to ask: names, or a name with settings, `{objects: {labels: [car]}}`.",
    )
    summary: Summary | None = Field(
        None,
        description="With the task `caption`: write a summary of each video into the table "
        "`items`; `{}` for the defaults.",
    )
    resources: Resources = Field(default_factory=Resources, description="Spread of the work.")
    cost: Cost = Field(default_factory=Cost, description="What an engine costs.")
    limits: Limits = Field(default_factory=Limits, description="What a run may come to.")
    on_finish: OnFinish = Field(default_factory=OnFinish, description="Whom a complete run tells.")
    storage_options: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="fsspec options per protocol, e.g. `{s3: {endpoint_url: ..., key: ..., secret: "
        "...}}`; never stored or logged. The usual environment variables (AWS_ACCESS_KEY_ID, "
        "AWS_ENDPOINT_URL, ...) work without it.",
        repr=False,
    )

    @model_validator(mode="after")
    def _distinct_tasks(self) -> "Job":
        names = [task.name for task in self.tasks]
        if not names:
            raise ValueError("tasks must name at least one task")
        if len(set(names)) != len(names):
            raise ValueError(f"a task may be asked once, got {names}")
        if self.summary is not None and "caption" not in names:
            raise ValueError("summary is made of captions: add the task caption")
        gpus = self.resources.gpus_per_replica
        if self.model.engine == "transformers" and gpus != "auto" and gpus > 1:
            raise ValueError(
                f"resources.gpus_per_replica is {gpus:g}, but the engine transformers runs on one: "
                "leave it at auto, or share the model out by the engine vllm"
            )
        return self

    def questions(self) -> tuple[Question, ...]:
        """The tasks as the engine asks them, in the job's order."""
        return asked_questions(self.tasks, self.generation.max_new_tokens)

    def public_dict(self) -> dict[str, Any]:
        """The job without secrets, for ``run.json``.

        Storage options are left out as a whole, and so is a command, whose arguments may be some.
        """
        return self.model_dump(mode="json", exclude={"storage_options", "on_finish"})


def load_job(path: Path | None, overrides: dict[str, Any] | None = None) -> Job:
    """Read and check a job file; without one, the overrides are all there is.

    overrides: values that replace the file's, by dotted name, e.g. ``{"model.source": "..."}``.

    Raises:
        JobFileError: with every mistake on a line of its own.
    """
    return check_job(read_spec(path, overrides), f"the job file {path}" if path else "the job")


def read_spec(path: Path | None, overrides: dict[str, Any] | None) -> dict[str, Any]:
    """Read a job file's mapping, not yet checked, and put the overrides in.

    Raises:
        JobFileError: no such file, not YAML, or an override inside what is no section.
    """
    spec = read_mapping(path) if path else {}
    for dotted, value in (overrides or {}).items():
        *sections, last = dotted.split(".")
        target = spec
        for section in sections:
            inner = {} if target.get(section) is None else target[section]
            if not isinstance(inner, dict):
                raise JobFileError(f"{dotted}: {section} has no keys, set it as a whole")
            target[section] = target = dict(inner)  # a copy: it may be the caller's own
        target[last] = value
    return spec


def check_job(spec: dict[str, Any], origin: str) -> Job:
    """Check a job given as a mapping. ``origin`` names it in messages.

    Raises:
        JobFileError: with every mistake on a line of its own.
    """
    return check(Job, spec, origin)


def check(kind: type[SectionT], spec: dict[str, Any], origin: str) -> SectionT:
    """Check any kind of job file, given as a mapping.

    Raises:
        JobFileError: with every mistake on a line of its own.
    """
    try:
        return kind.model_validate(spec)
    except ValidationError as error:
        raise JobFileError(f"{origin} is not valid:\n{explain(error, kind)}") from None
