"""The section ``tasks`` of a job file: names, with the settings of each."""

import json
from collections.abc import Iterable
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, model_validator

from schemas.job.section import Section
from schemas.task import Question

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
]
TASK_NAMES: tuple[str, ...] = get_args(TaskName)

# The tasks that use a setting. All tasks use max_new_tokens; all but chat use prompt.
_USED_BY = {
    "labels": ("objects", "points", "tracks", "objects_3d"),
    "strict_labels": ("objects", "points", "tracks", "objects_3d"),
    "query": ("moments",),
    "keys": ("fields",),
    "style": ("caption", "text_spans", "document"),
    "json_schema": ("custom",),
    "tools": ("tool_calls",),
    "add_vision_id": ("chat",),
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

    name: TaskName = Field(description="Name of the task.")
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
    prompt: str | None = Field(
        None, description="Your own question instead of the built-in one; chat has none."
    )
    max_new_tokens: int | None = Field(
        None, ge=1, description="Instead of the value in `generation`."
    )

    @model_validator(mode="after")
    def _settings_fit(self) -> "TaskSpec":
        for setting, tasks in _USED_BY.items():
            if getattr(self, setting) and self.name not in tasks:
                raise ValueError(f"{self.name} has no {setting}: only {', '.join(tasks)}")
        if self.name == "chat" and self.prompt is not None:
            raise ValueError("chat has no prompt: it answers the `messages` of the manifest")
        needed = _NEEDED.get(self.name, ())
        if needed and not any(getattr(self, setting) for setting in needed):
            raise ValueError(f"{self.name} needs {' or '.join(needed)}")
        styles = _STYLES.get(self.name, ())
        if self.style is not None and self.style not in styles:
            raise ValueError(f"style of {self.name} must be {' or '.join(styles)}")
        if self.strict_labels and not self.labels:
            raise ValueError("strict_labels needs labels")
        if self.json_schema is not None:
            _check_json_schema(self.json_schema)
        return self


def task_questions(tasks: Iterable[TaskSpec], max_new_tokens: int = 512) -> tuple[Question, ...]:
    """Return the questions of a job's tasks. max_new_tokens: for tasks that do not set it."""
    return tuple(
        Question(
            task=task.name,
            labels=task.labels,
            strict_labels=task.strict_labels,
            query=task.query,
            keys=task.keys,
            style=task.style,
            json_schema=json.dumps(task.json_schema) if task.json_schema else None,
            tools=json.dumps(task.tools) if task.tools else None,
            add_vision_id=task.add_vision_id,
            prompt=task.prompt,
            max_new_tokens=task.max_new_tokens or max_new_tokens,
        )
        for task in tasks
    )


def _check_json_schema(schema: dict[str, Any]) -> None:
    import jsonschema

    try:
        jsonschema.validators.validator_for(schema).check_schema(schema)
    except jsonschema.SchemaError as error:
        raise ValueError(f"json_schema is not a valid JSON Schema: {error.message}") from None


def as_task(value: Any) -> Any:
    """Let a task be a name, or a name with settings: ``{objects: {labels: [car]}}``."""
    if isinstance(value, str):
        return {"name": value}
    if isinstance(value, dict) and len(value) == 1 and "name" not in value:
        ((name, settings),) = value.items()
        if not isinstance(settings, dict | None):
            raise ValueError(f"settings must be a mapping, such as {{{name}: {{labels: [car]}}}}")
        return {"name": name, **(settings or {})}
    if isinstance(value, dict) and "name" not in value and None in value.values():
        name = next(key for key, settings in value.items() if settings is None)
        raise ValueError(f"indent the settings of {name} below it: {{{name}: {{labels: [car]}}}}")
    return value
