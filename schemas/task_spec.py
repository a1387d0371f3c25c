"""The tasks of a job file: which are asked, and with which settings."""

import json
from collections.abc import Iterable
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, model_validator

from schemas.section import Section
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

# Which tasks heed a setting. Beside these all heed max_new_tokens, and all but chat prompt.
_HEEDED = {
    "labels": ("objects", "points", "tracks", "objects_3d"),
    "query": ("moments",),
    "keys": ("fields",),
    "style": ("caption", "text_spans", "document"),
    "json_schema": ("custom",),
    "tools": ("tool_calls",),
    "add_vision_id": ("chat",),
}
# What a question makes no sense without: any one of these.
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

    name: TaskName = Field(description="Which task.")
    labels: tuple[Text, ...] = Field(
        (), description="objects, points, tracks, objects_3d: the categories to look for."
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
        description="chat: number the images and videos in front of each, `Picture 1: `, "
        "`Video 1: `, by the checkpoint's own template.",
    )
    prompt: str | None = Field(
        None, description="Your own question in place of the built-in one; chat has none."
    )
    max_new_tokens: int | None = Field(None, ge=1, description="Instead of generation's.")

    @model_validator(mode="after")
    def _settings_fit(self) -> "TaskSpec":
        for setting, tasks in _HEEDED.items():
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
        if self.json_schema is not None:
            _check_json_schema(self.json_schema)
        return self


def asked_questions(tasks: Iterable[TaskSpec], max_new_tokens: int = 512) -> tuple[Question, ...]:
    """The questions that tasks of a job file ask. max_new_tokens: where a task does not say."""
    return tuple(
        Question(
            task=task.name,
            labels=task.labels,
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
        raise ValueError(f"json_schema is no JSON Schema: {error.message}") from None


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
        raise ValueError(f"indent what is set of {name} below it: {{{name}: {{labels: [car]}}}}")
    return value
