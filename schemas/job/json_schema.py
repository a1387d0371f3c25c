"""The JSON Schemas of both job files, with which editors complete and check YAML."""

import json
from typing import Any

from schemas.job.finetune import FinetuneJob
from schemas.job.job import Job
from schemas.job.task_spec import NAME, TASK_NAMES


def job_schema() -> dict[str, Any]:
    """Return the JSON Schema of a job file, short forms included."""
    schema = Job.model_json_schema()
    schema["properties"]["tasks"]["items"] = _short_tasks(schema)
    schema["$defs"]["Input"]["oneOf"] = [{"required": ["manifest"]}, {"required": ["scan"]}]
    return _with_empty_sections(schema)


def finetune_schema() -> dict[str, Any]:
    """Return the JSON Schema of a training job file, short forms included."""
    schema = FinetuneJob.model_json_schema()
    data = schema["$defs"]["DataSpec"]
    data["properties"]["tasks"]["items"] = _short_tasks(schema)
    data["oneOf"] = [{"required": ["conversations"]}, {"required": ["annotations"]}]
    for name in ("data", "validation"):
        schema["properties"][name]["items"] = {
            "anyOf": [{"type": "string"}, {"$ref": "#/$defs/DataSpec"}]
        }
    return _with_empty_sections(schema)


def _short_tasks(schema: dict[str, Any]) -> dict[str, Any]:
    """Schema of a task: a name, a name with settings, or the long form."""
    sections = schema["$defs"]
    sections["TaskSpec"].pop("required")
    settings = json.loads(json.dumps(sections["TaskSpec"]))
    sections["TaskSettings"] = settings | {"title": "TaskSettings"}
    kind = {"required": ["name"], "properties": {"name": {"enum": list(TASK_NAMES)}}}
    sections["TaskSpec"]["anyOf"] = [{"required": ["task"]}, kind]
    named = {"allOf": [{"$ref": "#/$defs/TaskSettings"}, {"required": ["task"]}]}
    short = {"anyOf": [{"$ref": "#/$defs/TaskSettings"}, {"type": "null"}]}
    return {
        "anyOf": [
            {"enum": list(TASK_NAMES)},
            {
                "type": "object",
                "properties": dict.fromkeys(TASK_NAMES, short),
                "propertyNames": {"pattern": f"^{NAME.pattern}$"},
                "additionalProperties": named,
                "minProperties": 1,
                "maxProperties": 1,
            },
            {"$ref": "#/$defs/TaskSpec"},
        ]
    }


def _with_empty_sections(schema: dict[str, Any]) -> dict[str, Any]:
    """Allow a section without keys, which YAML reads as null, unless it has required keys."""
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    for part in [schema, *schema["$defs"].values()]:
        for key, value in part["properties"].items():
            if "$ref" in value and key not in part.get("required", ()):
                value["anyOf"] = [{"$ref": value.pop("$ref")}, {"type": "null"}]
    return schema
