"""Write the reference pages from the code, so that they cannot say anything else.

python -m jobs.reference           writes docs/job-file.md, finetune-file.md, output-schema.md,
                                   budgets.md and JSON Schemas of both job files
python -m jobs.reference --check   changes nothing; exit code 1 if one of them is stale
"""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import click
import pyarrow as pa
import yaml
from pydantic import BaseModel

from jobs.budget_table import budgets_page
from schemas.annotation import annotation_schema
from schemas.errors import ErrorType
from schemas.finetune import DataSpec, FinetuneJob
from schemas.item import item_schema
from schemas.job import Job, check, check_job
from schemas.manifest import MANIFEST
from schemas.task import AnswerStatus
from schemas.task_spec import TASK_NAMES, TaskSpec
from schemas.unit import UNIT, UnitStatus

DOCS = Path(__file__).parents[1] / "docs"

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

UNIT_STATUS = {
    UnitStatus.PLANNED: "In the plan: can be done.",
    UnitStatus.OK: "Every task was answered, and its answer read.",
    UnitStatus.PARTIAL: "Some task has no complete answer; see the `responses`.",
    UnitStatus.FAILED: "There is no answer; `error` says why.",
}
ANSWER_STATUS = {
    AnswerStatus.OK: "Read as the format says.",
    AnswerStatus.REPAIRED: "Read after mending; `note` says what was mended.",
    AnswerStatus.UNPARSED: "No typed answer could be read; the raw text is kept.",
    AnswerStatus.TRUNCATED: "Cut at `max_new_tokens`; what could be read is kept.",
    AnswerStatus.LOOPED: "Stopped where it repeated itself over and over; what was read is kept.",
    AnswerStatus.FAILED: "The unit failed before or in the engine.",
}

_GENERATED = "<!-- Made by `python -m jobs.reference`; change the code, not this page. -->\n"
_ARROW_NAMES = {"double": "float64", "float": "float32"}


def pages() -> dict[str, str]:
    """Return the reference pages: file name in docs/ -> content."""
    schema, training = job_schema(), finetune_schema()
    return {
        "job-file.md": job_page(schema),
        "job.schema.json": json.dumps(schema, indent=2, ensure_ascii=False) + "\n",
        "finetune-file.md": finetune_page(training),
        "finetune.schema.json": json.dumps(training, indent=2, ensure_ascii=False) + "\n",
        "output-schema.md": output_page(),
        "budgets.md": budgets_page(),
    }


def job_schema() -> dict[str, Any]:
    """Return the JSON Schema of a job file, short forms included, for editors."""
    schema = Job.model_json_schema()
    schema["properties"]["tasks"]["items"] = _short_tasks(schema)
    schema["$defs"]["Input"]["oneOf"] = [{"required": ["manifest"]}, {"required": ["scan"]}]
    return _with_empty_sections(schema)


def finetune_schema() -> dict[str, Any]:
    """Return the JSON Schema of a training job file, short forms included, for editors."""
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
    """What a task may be: a name, a name with settings, or the long form."""
    sections = schema["$defs"]
    settings = json.loads(json.dumps(sections["TaskSpec"]))
    del settings["properties"]["name"], settings["required"]
    sections["TaskSettings"] = settings | {"title": "TaskSettings"}
    short = {"anyOf": [{"$ref": "#/$defs/TaskSettings"}, {"type": "null"}]}
    return {
        "anyOf": [
            {"enum": list(TASK_NAMES)},
            {
                "type": "object",
                "properties": dict.fromkeys(TASK_NAMES, short),
                "additionalProperties": False,
                "minProperties": 1,
                "maxProperties": 1,
            },
            {"$ref": "#/$defs/TaskSpec"},
        ]
    }


def _with_empty_sections(schema: dict[str, Any]) -> dict[str, Any]:
    """Let a section be there without keys, which is YAML's null, unless it has to have some."""
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    for part in [schema, *schema["$defs"].values()]:
        for key, value in part["properties"].items():
            if "$ref" in value and key not in part.get("required", ()):
                value["anyOf"] = [{"$ref": value.pop("$ref")}, {"type": "null"}]
    return schema


def job_page(schema: Mapping[str, Any]) -> str:
    """Return the job file's page: the example, then each section's keys."""
    check_job(yaml.safe_load(EXAMPLE), "the example")
    parts = [
        "# The job file\n",
        _GENERATED,
        "YAML, checked as a whole before any work starts; an unknown key is an error. Only `input` "
        "and `output` are required. A relative path starts at the folder in which the command is "
        "called; the uris of a manifest start at the manifest.\n",
        f"```yaml\n{EXAMPLE}```\n",
        "Values can be replaced on the command line, `--set sampling.fps=1`. An editor that knows "
        "JSON Schema completes and checks job files with `docs/job.schema.json`, for instance by a "
        "first line `# yaml-language-server: $schema=docs/job.schema.json`.\n",
        *_all_sections(Job, schema),
        _section(TaskSpec, "tasks", schema),
    ]
    return "\n".join(parts)


def finetune_page(schema: Mapping[str, Any]) -> str:
    """Return the training job file's page."""
    check(FinetuneJob, yaml.safe_load(FINETUNE_EXAMPLE), "the example")
    parts = [
        "# The training job file\n",
        _GENERATED,
        "What `reelscribe finetune` and `reelscribe check-dataset` read. YAML, checked as a whole "
        "before any work starts; an unknown key is an error. Only `output`, `model.source` and "
        "`data` are required. [Training](finetune.md) explains it.\n",
        f"```yaml\n{FINETUNE_EXAMPLE}```\n",
        "Values can be replaced on the command line, `--set training.learning_rate=1e-5`. An "
        "editor that knows JSON Schema completes and checks it by `docs/finetune.schema.json`.\n",
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
    """The section that a field is, or may be."""
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
        lines.append(
            f"| `{name}` | {_cell(type_)} | {default} | {_cell(field.description or '')} |"
        )
    return [*lines, ""]


def _definition(model: type[BaseModel], schema: Mapping[str, Any]) -> dict[str, Any]:
    return dict(schema["$defs"][model.__name__]["properties"])


def _default(model: type[BaseModel], name: str, value: Mapping[str, Any]) -> str:
    if model is Job and name == "tasks":
        return "[caption]"
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


def output_page() -> str:
    """Return the page of tables: output, plan, manifest, and what their closed lists mean."""
    from pipeline.parse import TASKS

    output = annotation_schema([task.column for task in TASKS.values()])
    shared = {"media", "sampling", "error"}
    return "\n".join(
        [
            "# Tables\n",
            _GENERATED,
            "## The output\n",
            "`<output>/annotations/run_date=.../part-*.parquet`: one row for each unit, whatever "
            "happened. The key is (`unit_id`, `recipe_id`). `a.b` is a field of a struct, `a[].b` "
            "one of each element of a list. The Parquet files carry these descriptions, and their "
            f"`schema_version`, {(output.metadata or {})[b'schema_version'].decode()}.\n",
            *_columns(output),
            "## Status of a row\n",
            *_meanings(("status", "meaning"), {s: (UNIT_STATUS[s],) for s in UnitStatus}),
            "## Status of an answer\n",
            *_meanings(("status", "meaning"), {s: (ANSWER_STATUS[s],) for s in AnswerStatus}),
            "## Error types\n",
            "`error.type` is one of this closed list.\n",
            *_meanings(
                ("type", "meaning", "what to do"), {e: (e.meaning, e.advice) for e in ErrorType}
            ),
            "## Whole videos\n",
            "`<output>/items/run_date=.../part-*.parquet`, where the job asks for `events` or a "
            "`summary`: one row for each video. The fields of `media` are those of the output.\n",
            *_columns(item_schema(TASKS["events"].column), without=shared),
            "## The plan\n",
            "`<output>/runs/<run_id>/plan/*.parquet`: one row for each unit. The fields of "
            f"{', '.join(f'`{name}`' for name in sorted(shared))} are those of the output.\n",
            *_columns(UNIT, without=shared),
            "## The manifest\n",
            "Yours: Parquet, JSON lines or CSV (`.parquet`, `.jsonl`, `.csv`, the latter two also "
            "`.gz`), or a folder of Parquet files. In CSV, lists are JSON or separated by "
            "semicolons, and an empty cell is null. Any further column passes through to the "
            "output's `attributes`.\n",
            *_columns(MANIFEST),
        ]
    )


def _columns(schema: pa.Schema, without: frozenset[str] | set[str] = frozenset()) -> list[str]:
    lines = ["| column | type | unit | null | meaning |", "|---|---|---|---|---|"]
    for field in schema:
        lines += _rows(field, field.name, with_fields=field.name not in without)
    return [*lines, ""]


def _rows(field: pa.Field, path: str, *, with_fields: bool) -> Iterator[str]:
    said = {key.decode(): value.decode() for key, value in (field.metadata or {}).items()}
    null = "may be" if field.nullable else "never"
    type_, inner = _arrow_type(field.type)
    meaning = _cell(said.get("description", ""))
    yield f"| `{path}` | {type_} | {said.get('unit', '')} | {null} | {meaning} |"
    if with_fields and inner is not None:
        suffix = "[]" if pa.types.is_list(field.type) else ""
        for child in inner:
            yield from _rows(child, f"{path}{suffix}.{child.name}", with_fields=True)


def _arrow_type(type_: pa.DataType) -> tuple[str, pa.StructType | None]:
    """Name a type; and the struct whose fields deserve rows of their own, if there is one."""
    if pa.types.is_list(type_):
        name, inner = _arrow_type(type_.value_type)
        return f"list of {name}", inner
    if pa.types.is_struct(type_):
        if any(child.metadata for child in type_):
            return "struct", type_
        kinds = {_ARROW_NAMES.get(str(child.type), str(child.type)) for child in type_}
        return f"struct of {', '.join(child.name for child in type_)}: {' '.join(kinds)}", None
    return _ARROW_NAMES.get(str(type_), str(type_)), None


def _meanings(head: tuple[str, ...], rows: Mapping[Any, tuple[str, ...]]) -> list[str]:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [f"| `{name}` | {' | '.join(map(_cell, cells))} |" for name, cells in rows.items()]
    return [*lines, ""]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


@click.command()
@click.option("--check", is_flag=True, help="Change nothing; exit code 1 if a page is stale.")
def main(check: bool) -> None:
    """Write the reference pages in docs/."""
    stale = []
    for name, content in pages().items():
        path = DOCS / name
        if path.exists() and path.read_text(encoding="utf-8") == content:
            continue
        stale.append(name)
        if not check:
            path.parent.mkdir(exist_ok=True)
            path.write_text(content, encoding="utf-8")
    for name in stale:
        state = "is stale, run `python -m jobs.reference`" if check else "was written"
        click.echo(f"docs/{name} {state}", err=check)
    sys.exit(1 if check and stale else 0)


if __name__ == "__main__":
    main(prog_name="python -m jobs.reference")
