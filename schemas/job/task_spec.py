"""The section ``tasks`` of a job file: names, with the settings of each."""

import difflib
import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, model_validator

from schemas.job.section import Section
from schemas.tables.annotation import annotation_schema
from schemas.tables.manifest import MANIFEST
from schemas.task import EMBEDDING, Question

TaskName = Literal[
    "caption",
    "events",
    "moments",
    "ocr",
    "text_spans",
    "objects",
    "points",
    "tracks",
    "objects_3d",
    "fields",
    "document",
    "tool_calls",
    "custom",
    "chat",
    "embedding",
]
TASK_NAMES: tuple[str, ...] = get_args(TaskName)
NAMED_TASKS = ("custom", "fields", "moments", "embedding")
"""The tasks that a job may have several times, each time with another name."""

NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
_OTHER_COLUMNS = frozenset(
    {
        *annotation_schema([]).names,
        *MANIFEST.names,
        *("run_date", "file", "filename", "file_row_number", "copied_from"),  # of files and views
        *("width", "height", "reelscribe_row"),  # of tables to train from
        "frames_file_names",  # of an export
    }
)

DEFAULT_INSTRUCTION = "Represent the user's input."
"""The instruction of an embedding that has none, as its makers' code has it."""

# The tasks that use a setting. All but embedding use max_new_tokens; all but it and chat a prompt.
_USED_BY = {
    "labels": ("objects", "points", "tracks", "objects_3d"),
    "strict_labels": ("objects", "points", "tracks", "objects_3d"),
    "query": ("moments",),
    "keys": ("fields",),
    "style": ("caption", "text_spans", "document"),
    "json_schema": ("custom",),
    "tools": ("tool_calls",),
    "add_vision_id": ("chat",),
    "instruction": (EMBEDDING,),
    "dimensions": (EMBEDDING,),
}
# Settings of which a task needs at least one.
_NEEDED = {
    "moments": ("query", "prompt"),
    "fields": ("keys", "prompt"),
    "tool_calls": ("tools",),
    "custom": ("prompt",),
}
_STYLES = {
    "caption": ("detailed", "short"),
    "text_spans": ("line", "word"),
    "document": ("html", "markdown"),
}


Text = Annotated[str, Field(min_length=1)]


class TaskSpec(Section):
    """One task of the job, with its settings."""

    task: TaskName = Field(description="Kind of task.")
    name: str = Field(
        "",
        description="Name of the task and of its column; with it a job has several custom, fields, "
        "moments or embedding: lower-case letters, digits and underscores.",
    )
    labels: tuple[Text, ...] = Field(
        (), description="objects, points, tracks, objects_3d: the categories to look for."
    )
    strict_labels: bool = Field(
        False, description="With labels: leave out what the model gave another label."
    )
    query: Text | None = Field(None, description="moments: the sentence to find.")
    keys: tuple[Text, ...] = Field((), description="fields: the keys to find values for.")
    style: str | None = Field(
        None,
        description="caption: detailed (default) or short; text_spans: line (default) or word; "
        "document: html (default) or markdown.",
    )
    json_schema: dict[str, Any] | None = Field(
        None, description="custom: a JSON Schema that the answer must fit."
    )
    tools: tuple[dict[str, Any], ...] = Field(
        (), description="tool_calls: JSON Schemas of functions, as in chat templates."
    )
    add_vision_id: bool = Field(
        False,
        description="chat: number the images and videos, `Picture 1: `, `Video 1: `, as the "
        "checkpoint's chat template does.",
    )
    instruction: Text | None = Field(
        None,
        description="embedding: what the vector is for, in a sentence, such as `Retrieve images "
        "relevant to the user's query.`; default: the checkpoint's, else its makers', `Represent "
        "the user's input.`",
    )
    dimensions: int | None = Field(
        None,
        ge=1,
        description="embedding: keep the first numbers of the vector, which then has length 1 "
        "again (Matryoshka); its makers go down to 64. Default: all.",
    )
    prompt: str | None = Field(
        None,
        description="Your own question instead of the built-in one; chat and embedding have none.",
    )
    max_new_tokens: int | None = Field(
        None, ge=1, description="Instead of the value in `generation`."
    )

    @model_validator(mode="before")
    @classmethod
    def _name_and_task(cls, value: Any) -> Any:
        """Let one of ``name`` and ``task`` stand for both."""
        if not isinstance(value, dict):
            return value
        name, task = value.get("name"), value.get("task")
        if task is None and name is not None:
            if name not in TASK_NAMES:
                raise ValueError(_unknown(str(name)))
            return value | {"task": name}
        return value | {"name": task} if task is not None and name is None else value

    @model_validator(mode="after")
    def _settings_fit(self) -> "TaskSpec":
        if self.name != self.task:
            _check_name(self.name, self.task)
        for setting, tasks in _USED_BY.items():
            if getattr(self, setting) and self.task not in tasks:
                raise ValueError(f"{self.task} has no {setting}: only {', '.join(tasks)}")
        if self.task == "chat" and self.prompt is not None:
            raise ValueError("chat has no prompt: it answers the `messages` of the manifest")
        if self.task == EMBEDDING and self.prompt is not None:
            raise ValueError("embedding has no prompt: set its instruction")
        if self.task == EMBEDDING and self.max_new_tokens is not None:
            raise ValueError("embedding has no max_new_tokens: no text is generated")
        needed = _NEEDED.get(self.task, ())
        if needed and not any(getattr(self, setting) for setting in needed):
            raise ValueError(f"{self.task} needs {' or '.join(needed)}")
        styles = _STYLES.get(self.task, ())
        if self.style is not None and self.style not in styles:
            raise ValueError(f"style of {self.task} must be {' or '.join(styles)}")
        if self.strict_labels and not self.labels:
            raise ValueError("strict_labels needs labels")
        if self.json_schema is not None:
            _check_json_schema(self.json_schema)
        return self


def task_questions(tasks: Iterable[TaskSpec], max_new_tokens: int = 512) -> tuple[Question, ...]:
    """Return the questions of a job's tasks. max_new_tokens: for tasks that do not set it."""
    return tuple(
        Question(
            task=task.task,
            name=task.name,
            labels=task.labels,
            strict_labels=task.strict_labels,
            query=task.query,
            keys=task.keys,
            style=task.style,
            json_schema=json.dumps(task.json_schema) if task.json_schema else None,
            tools=json.dumps(task.tools) if task.tools else None,
            add_vision_id=task.add_vision_id,
            instruction=_instruction(task) if task.task == EMBEDDING else None,
            dimensions=task.dimensions,
            prompt=task.prompt,
            max_new_tokens=0 if task.task == EMBEDDING else task.max_new_tokens or max_new_tokens,
        )
        for task in tasks
    )


def _instruction(task: TaskSpec) -> str:
    """The instruction as the model reads it: its makers' code ends it with a full stop, too."""
    text = (task.instruction or "").strip() or DEFAULT_INSTRUCTION
    return text if unicodedata.category(text[-1]).startswith("P") else f"{text}."


def check_distinct(tasks: Sequence[TaskSpec]) -> None:
    """Check that no two tasks have one name, and that one checkpoint can answer all.

    Raises:
        ValueError: two have, or embedding is beside others.
    """
    others = [task.name for task in tasks if task.task != EMBEDDING]
    if 0 < len(others) < len(tasks):
        raise ValueError(
            f"embedding cannot be in one job with {', '.join(others)}: the checkpoints that embed "
            "answer nothing else. Write a second job with an output of its own; unit_id joins them"
        )
    names = [task.name for task in tasks]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is None:
        return
    hint = f"; name the others: {{name: other, task: {twice}}}" if twice in NAMED_TASKS else ""
    raise ValueError(f"each task may be named once, got {names}{hint}")


def _check_name(name: str, task: str) -> None:
    if name in TASK_NAMES:
        raise ValueError(f"{name} is the name of another task: give this {task} its own name")
    if task not in NAMED_TASKS:
        raise ValueError(
            f"{task} has no name of its own ({name!r}): only {', '.join(NAMED_TASKS)} have"
        )
    if not NAME.fullmatch(name):
        raise ValueError(
            f"name {name!r} must be lower-case letters, digits and underscores, begin with a "
            "letter and have at most 63 characters: it is a column's name"
        )
    if name in _OTHER_COLUMNS:
        raise ValueError(f"{name!r} is another column of the table: choose another name")


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, TASK_NAMES, n=1, cutoff=0.7)
    meant = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(TASK_NAMES)}"
    return (
        f"unknown task {name!r}, {meant}; a question with a name of its own also says its kind: "
        f"{{name: {name}, task: custom, prompt: ...}}"
    )


def _check_json_schema(schema: dict[str, Any]) -> None:
    import jsonschema

    try:
        jsonschema.validators.validator_for(schema).check_schema(schema)
    except jsonschema.SchemaError as error:
        raise ValueError(f"json_schema is not a valid JSON Schema: {error.message}") from None
    except (AttributeError, TypeError):  # such as of a $schema that is no text
        raise ValueError("json_schema is not a valid JSON Schema") from None


def as_task(value: Any) -> Any:
    """Let a task be a name, or a name with settings: ``{objects: {labels: [car]}}``."""
    if isinstance(value, str):
        return {"name": value}
    if not isinstance(value, dict) or value.keys() & {"name", "task"}:
        return value
    if len(value) == 1:
        ((name, settings),) = value.items()
        if not isinstance(settings, dict | None):
            raise ValueError(f"settings must be a mapping, such as {{{name}: {{labels: [car]}}}}")
        settings = settings or {}
        given = settings.keys() & {"name", "task"}
        if len(given) == 2:
            raise ValueError(f"{name} is given another name: leave out `name: {settings['name']}`")
        return {"task" if "name" in given else "name": name, **settings}
    if None in value.values():
        name = next(key for key, settings in value.items() if settings is None)
        raise ValueError(f"indent the settings of {name} below it: {{{name}: {{labels: [car]}}}}")
    return value
