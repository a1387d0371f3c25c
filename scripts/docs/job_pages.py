"""The pages of both job files: an example, then the keys of each section."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, get_args

import yaml
from pydantic import BaseModel

from schemas.job.finetune import DataSpec, FinetuneJob
from schemas.job.job import Job, check_job
from schemas.job.load import check
from schemas.job.task_spec import TaskSpec
from scripts.docs.markdown import GENERATED, cell

EXAMPLE = """\
name: nightly-captions
input: {manifest: s3://media/manifests/2026-11-22.parquet}   # or {scan: s3://media/clips/}
output: s3://annotations/archive
model: {source: Qwen/Qwen3-VL-8B-Instruct, max_model_len: 32768}
sampling: {fps: 2.0, segmentation: {kind: window, seconds: 60}}
budget: {image_tokens: [4, 16384], frame_tokens: [128, 768], unit_tokens: 24576}
tasks:
  - caption
  - ocr
  - objects: {labels: [person, car]}
generation: {max_new_tokens: 1024}
resources: {replicas: auto}
"""

FINETUNE_EXAMPLE = """\
name: our-archive
output: s3://models/our-archive
model: {source: Qwen/Qwen3-VL-4B-Instruct, max_model_len: 8192}
data:
  - annotations: s3://annotations/corrected.parquet
    where: status = 'ok' and run_id like 'nightly%'
    tasks: [caption, {objects: {labels: [person, car]}}]
    share: 200
  - captions.jsonl%50
lora: {r: 64, lora_alpha: 128}
training: {num_train_epochs: 2, learning_rate: 1.0e-4, gradient_checkpointing: true}
"""


def job_page(schema: Mapping[str, Any]) -> str:
    """Return the job file's page: the example, then each section's keys."""
    check_job(yaml.safe_load(EXAMPLE), "the example")
    parts = [
        "# The job file\n",
        GENERATED,
        "YAML, checked as a whole before any work starts; an unknown key is an error. Only `input` "
        "and `output` are required. A relative path starts at the folder in which the command is "
        "called; the uris of a manifest start at the manifest.\n",
        f"```yaml\n{EXAMPLE}```\n",
        "Values can be replaced on the command line, `--set sampling.fps=1`. An editor that knows "
        "JSON Schema completes and checks job files with `docs/job.schema.json`, which `reelscribe "
        "schema` prints, for instance by a first line `# yaml-language-server: "
        "$schema=job.schema.json`.\n",
        *_all_sections(Job, schema),
        _section(TaskSpec, "tasks", schema),
    ]
    return "\n".join(parts)


def finetune_page(schema: Mapping[str, Any]) -> str:
    """Return the training job file's page."""
    check(FinetuneJob, yaml.safe_load(FINETUNE_EXAMPLE), "the example")
    parts = [
        "# The training job file\n",
        GENERATED,
        "What `reelscribe finetune` and `reelscribe check-dataset` read. YAML, checked as a whole "
        "before any work starts; an unknown key is an error. Only `output`, `model.source` and "
        "`data` are required. [Training](finetune.md) explains it.\n",
        f"```yaml\n{FINETUNE_EXAMPLE}```\n",
        "Values can be replaced on the command line, `--set training.learning_rate=1e-5`. An "
        "editor that knows JSON Schema completes and checks it with `docs/finetune.schema.json`, "
        "which `reelscribe schema --finetune` prints.\n",
        *_all_sections(FinetuneJob, schema),
        _section(DataSpec, "data", schema),
        _section(TaskSpec, "tasks", schema),
    ]
    return "\n".join(parts)


def _all_sections(job: type[BaseModel], schema: Mapping[str, Any]) -> Iterator[str]:
    """The job's own keys, then those of each section."""
    yield "\n".join(_keys(job, "", schema))
    for name, section in _section_fields(job):
        yield from _sections(section, name, schema)


def _sections(model: type[BaseModel], path: str, schema: Mapping[str, Any]) -> Iterator[str]:
    yield _section(model, path, schema)
    for name, section in _section_fields(model):
        yield from _sections(section, f"{path}.{name}", schema)


def _section_fields(model: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    for name, field in model.model_fields.items():
        if section := _as_section(field.annotation):
            yield name, section


def _as_section(annotation: Any) -> type[BaseModel] | None:
    """The section of a field; None if it has none."""
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def _section(model: type[BaseModel], path: str, schema: Mapping[str, Any]) -> str:
    lines = [f"## `{path}`\n", f"{(model.__doc__ or '').strip()}\n"]
    return "\n".join([*lines, *_keys(model, path, schema)])


_LISTS = {
    "tasks": "list of [tasks](#tasks)",
    "data": "list of [data sets](#data)",
    "validation": "list of [data sets](#data)",
}


def _keys(model: type[BaseModel], path: str, schema: Mapping[str, Any]) -> list[str]:
    is_job = model in (Job, FinetuneJob)
    properties = schema["properties"] if is_job else _definition(model, schema)
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        if _as_section(field.annotation):
            key = f"{path}.{name}".lstrip(".")
            type_, default = f"section [`{key}`](#{key.replace('.', '')})", ""
        else:
            type_ = _LISTS.get(name) or _type(properties[name])
            default = f"`{_default(model, name, properties[name])}`"
        default = "required" if field.is_required() else default
        lines.append(f"| `{name}` | {cell(type_)} | {default} | {cell(field.description or '')} |")
    return [*lines, ""]


def _definition(model: type[BaseModel], schema: Mapping[str, Any]) -> dict[str, Any]:
    return dict(schema["$defs"][model.__name__]["properties"])


def _default(model: type[BaseModel], name: str, value: Mapping[str, Any]) -> str:
    if model is Job and name == "tasks":
        return "[caption]"
    if model is TaskSpec and name == "name":
        return "the task"
    default = {} if name in ("storage_options", "trainer") else value.get("default")
    return default if isinstance(default, str) else json.dumps(default)


def _type(value: Mapping[str, Any]) -> str:
    """Write a JSON Schema type for people."""
    if "anyOf" in value:
        return " or ".join(_type(part) for part in value["anyOf"] if part != {"type": "null"})
    if "enum" in value:
        return ", ".join(f"`{choice}`" for choice in value["enum"])
    if "const" in value:
        return f"`{value['const']}`"
    if "prefixItems" in value:
        return f"[{', '.join(_type(part) for part in value['prefixItems'])}]"
    names = {"string": "text", "object": "mapping", "boolean": "true or false"}
    name = names.get(value["type"], str(value["type"]))
    if name == "array":
        return f"list of {_type(value['items'])}"
    limits = {
        "minimum": "from",
        "exclusiveMinimum": "over",
        "maximum": "up to",
        "exclusiveMaximum": "below",
    }
    told = [
        f"{word} {value[key]}" for key, word in limits.items() if key in value and value[key] < 1e9
    ]
    return f"{name} {', '.join(told)}".rstrip()
