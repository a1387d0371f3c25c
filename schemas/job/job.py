"""The job file: what a person writes in YAML. Unknown keys are errors.

All keys but ``input`` and ``output`` have defaults that suit a first run.
"""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from schemas.job.generation import Generation, Summary
from schemas.job.limits import Cost, Limits, OnFinish
from schemas.job.load import check, read_spec
from schemas.job.model import Model
from schemas.job.resources import Resources
from schemas.job.sampling import Budget, SamplingSpec
from schemas.job.section import Section
from schemas.job.task_spec import TaskSpec, as_task, check_distinct, task_questions
from schemas.task import Question

ANY_FILE = "**/*"


class Input(Section):
    """Where the media items come from: a manifest, or a listing made at the start."""

    manifest: str | None = Field(
        None,
        min_length=1,
        description="Parquet, JSONL or CSV with a `uri` column, or one image or video; a path or "
        "s3:// uri.",
    )
    scan: str | None = Field(
        None, min_length=1, description="A folder or s3:// prefix to list, instead of a manifest."
    )
    glob: str = Field(ANY_FILE, description="With `scan`: pattern of the files, relative to it.")
    allow_private_hosts: bool = Field(
        False,
        description="Let https:// uris of the manifest reach private and loopback addresses.",
    )
    only_new: bool = Field(
        False,
        description="Take only media that the output table does not have under this recipe, by "
        "content version: changed objects are annotated again; renamed ones are not, if the "
        "storage's etag is the MD5 of the content.",
    )
    mark_gone: bool | None = Field(
        None,
        description="With `only_new`: mark media that are not listed any more as gone, so that "
        "`latest` leaves them out. By default a `scan` does, without `since` and `sample`. `true` "
        "with a manifest says that it lists all media of the output.",
    )
    since: str | None = Field(
        None,
        min_length=1,
        description="With `scan`: only objects modified in the last `24h` or `7d`, or since a "
        "date or time.",
    )
    sample: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Take this share of the items, the same items in every run.",
    )
    limit: int | None = Field(
        None, ge=1, description="Maximum number of items; with `only_new`, of new items."
    )

    @model_validator(mode="after")
    def _one_source(self) -> "Input":
        if (self.manifest is None) == (self.scan is None):
            raise ValueError("give exactly one of `manifest` and `scan`")
        if self.since is not None and self.scan is None:
            raise ValueError("`since` needs the objects' times, which only `scan` reads")
        if self.scan is None and self.glob != ANY_FILE:
            raise ValueError("`glob` selects files of `scan`; it has no effect on a manifest")
        if self.mark_gone and not (self.only_new and self._is_whole):
            raise ValueError("`mark_gone` needs `only_new`, and neither `since` nor `sample`")
        return self

    @property
    def _is_whole(self) -> bool:
        return self.since is None and self.sample is None

    @property
    def marks_gone(self) -> bool:
        """Whether media that are not listed are marked as gone."""
        if self.mark_gone is not None:
            return self.mark_gone
        return self.only_new and self.scan is not None and self._is_whole


class Job(Section):
    """A job file."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")] = Field(
        "annotate", description="Lower-case letters, digits and dashes; run ids start with it."
    )
    input: Input = Field(description="Where the media items come from.")
    output: str = Field(min_length=1, description="Folder or s3:// prefix of the output table.")
    model: Model = Field(default_factory=Model, description="The checkpoint and its engine.")
    sampling: SamplingSpec = Field(
        default_factory=SamplingSpec, description="Which frames of a video the model sees."
    )
    budget: Budget = Field(default_factory=Budget, description="Size limits of images and frames.")
    generation: Generation = Field(
        default_factory=Generation, description="How answers are generated."
    )
    tasks: tuple[Annotated[TaskSpec, BeforeValidator(as_task)], ...] = Field(
        (TaskSpec(task="caption"),),
        description="The tasks: names, or a name with settings, `{objects: {labels: [car]}}`; "
        "several custom, fields or moments have names of their own.",
    )
    summary: Summary | None = Field(
        None,
        description="With the task `caption`: write a summary of each video into the table "
        "`items`; `{}` for the defaults.",
    )
    resources: Resources = Field(
        default_factory=Resources, description="How the work is distributed."
    )
    cost: Cost = Field(default_factory=Cost, description="Price of an engine.")
    limits: Limits = Field(default_factory=Limits, description="Limits of a run.")
    on_finish: OnFinish = Field(
        default_factory=OnFinish, description="What is notified when a run is complete."
    )
    storage_options: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="fsspec options per protocol, e.g. `{s3: {endpoint_url: ..., key: ..., secret: "
        '...}}`, and headers per https host, e.g. `{"https://archive.example.org": {headers: '
        "{X-Api-Key: ...}}}`, which no other host gets; never stored or logged. The usual "
        "environment variables (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, ...) work without it.",
        repr=False,
    )

    @model_validator(mode="after")
    def _distinct_tasks(self) -> "Job":
        names = [task.name for task in self.tasks]
        if not names:
            raise ValueError("tasks must name at least one task")
        check_distinct(self.tasks)
        if self.summary is not None and "caption" not in names:
            raise ValueError("summary needs captions: add the task caption")
        gpus = self.resources.gpus_per_replica
        if self.model.engine == "transformers" and gpus != "auto" and gpus > 1:
            raise ValueError(
                f"resources.gpus_per_replica is {gpus:g}, but the engine transformers uses "
                "one GPU: leave it at auto, or use the engine vllm, which splits a model over GPUs"
            )
        return self

    def questions(self) -> tuple[Question, ...]:
        """Return the questions of the tasks, in the job's order."""
        return task_questions(self.tasks, self.generation.max_new_tokens)

    def public_dict(self) -> dict[str, Any]:
        """Return the job without secrets, for ``run.json``.

        Storage options are left out, and so is ``on_finish``, whose arguments may be secret.
        """
        return self.model_dump(mode="json", exclude={"storage_options", "on_finish"})


def load_job(path: Path | None, overrides: dict[str, Any] | None = None) -> Job:
    """Read and check a job file; without a path, the overrides are the whole job.

    overrides: values that replace the file's, by dotted name, e.g. ``{"model.source": "..."}``.

    Raises:
        JobFileError: lists every mistake, one a line.
    """
    return check_job(read_spec(path, overrides), f"the job file {path}" if path else "the job")


def load_access(path: Path) -> Job:
    """Load a job file for its storage options and permissions.

    ``input`` and ``output`` may be missing, as in a file for which options of the command give
    them; the returned job then has others in their place.

    Raises:
        JobFileError: lists every mistake, one a line.
    """
    spec = read_spec(path, None)
    given = {} if spec.get("input") is None else spec["input"]
    if isinstance(given, dict) and not given.keys() & {"manifest", "scan"}:
        spec["input"] = given | {"scan": "not given"}
    return check_job({"output": "not given"} | spec, f"the job file {path}")


def check_job(spec: dict[str, Any], origin: str) -> Job:
    """Check a job given as a mapping. ``origin`` names it in messages.

    Raises:
        JobFileError: lists every mistake, one a line.
    """
    return check(Job, spec, origin)
