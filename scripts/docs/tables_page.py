"""The page of tables: output, plan, manifest, and their closed lists."""

from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa

from schemas.errors import ErrorType
from schemas.tables.annotation import annotation_schema
from schemas.tables.item import item_schema
from schemas.tables.listing import LISTING
from schemas.tables.manifest import MANIFEST
from schemas.tables.unit import UNIT, UnitStatus
from schemas.task import EMBEDDING, AnswerStatus
from scripts.docs.markdown import GENERATED, cell

UNIT_STATUS = {
    UnitStatus.PLANNED: "In the plan: can be done.",
    UnitStatus.OK: "Every task was answered, and its answer read.",
    UnitStatus.PARTIAL: "Some task has no complete answer; see the `responses`.",
    UnitStatus.FAILED: "There is no answer; `error` says why.",
}
ANSWER_STATUS = {
    AnswerStatus.OK: "Read as the format says.",
    AnswerStatus.REPAIRED: "Read after repairs; `note` names them.",
    AnswerStatus.UNPARSED: "No typed answer could be read; the raw text is kept.",
    AnswerStatus.TRUNCATED: "Cut at `max_new_tokens`; what could be read is kept.",
    AnswerStatus.LOOPED: "Stopped where it repeated itself over and over; what was read is kept.",
    AnswerStatus.FAILED: "The unit failed before or in the engine.",
}
JSON_TYPES = {
    "`type: string`, with any `format`": "string",
    "`type: integer`": "int64; JSON text if the schema's limits are beyond 64 bits",
    "`type: number`, `type: [integer, number]`": "float64",
    "`type: boolean`": "bool",
    "`enum` or `const` of one type": "that type",
    "`type: object` with `properties`": (
        "struct of them; JSON text if two names differ in case only"
    ),
    "`type: array` with one schema of `items`": "list of its type",
    "`type: [string, 'null']`, and `anyOf` of a schema and `type: 'null'`": "that type",
    "`$ref` into the schema itself": "the type there; where it comes back to itself, JSON text",
    "anything else: several types, no type, `anyOf`, `oneOf`, `allOf`, `if`, `patternProperties`, "
    "`prefixItems`, objects with other keys than `properties` (`additionalProperties`)": (
        "JSON text, of this part alone"
    ),
}
_ARROW_NAMES = {"double": "float64", "float": "float32"}


def output_page() -> str:
    """Return the page of tables: output, plan, manifest, and their closed lists."""
    from pipeline.tasks.registry import TASKS

    columns = [task.column for name, task in TASKS.items() if name != EMBEDDING]
    output = annotation_schema(columns)
    shared = {"media", "sampling", "error"}
    return "\n".join(
        [
            "# Tables\n",
            GENERATED,
            "## The output\n",
            "`<output>/annotations/run_date=.../part-*.parquet`: one row for each unit, whatever "
            "happened. A file has all units of one recipe in a shard of its run, at most 4,096, "
            "sorted by `media_id` and time; neighbours by `uri` are in one shard. Until all units "
            "of a shard have rows, these are in `<output>/annotations-pieces/`. The key is "
            "(`unit_id`, `recipe_id`). `a.b` is a field of a struct, `a[].b` one of each element "
            "of a list. The Parquet files carry these descriptions, and their "
            f"`schema_version`, {(output.metadata or {})[b'schema_version'].decode()}.\n",
            *_columns(output),
            "## Questions with names of their own\n",
            "A question that the job file gives a `name` has a further column of that name, before "
            "`responses`; `fields` and `moments` have the types above. Without a schema, `custom` "
            "is text. The field's metadata in the Parquet file have `task`, and `json_schema` "
            "where there is one. All members may be null: a member that was missing is null.\n",
            "| JSON Schema | type |\n|---|---|",
            *(f"| {schema} | {type_} |" for schema, type_ in JSON_TYPES.items()),
            "\nWhat is left out, because the schema's `properties` do not have it, is in the note; "
            "the raw text has it.\n",
            "## Vectors\n",
            "A job with the task `embedding` has a further column of that name, or of the task's "
            "own, before `responses`: `fixed_size_list<float16>[N]`, a vector of length 1. N is "
            "`dimensions`, or all numbers of the checkpoint's vectors. The field's metadata have "
            "`task`, and the instruction in the description. DuckDB reads it as `FLOAT[]`.\n",
            "## Status of a row\n",
            *_meanings(("status", "meaning"), {s: (UNIT_STATUS[s],) for s in UnitStatus}),
            "## Status of an answer\n",
            *_meanings(("status", "meaning"), {s: (ANSWER_STATUS[s],) for s in AnswerStatus}),
            "## Error types\n",
            "`error.type` is one of this closed list.\n",
            *_meanings(
                ("type", "meaning", "what to do"), {e: (e.meaning, e.advice) for e in ErrorType}
            ),
            "## What a listing changed\n",
            "`<output>/listing/run_date=.../part-*.parquet`: which names got content that was "
            "known already, and which are gone. The newest row of a name counts, unless the name "
            "has newer rows in the output; the view `latest` follows it, see "
            "[every night](nightly.md#what-is-gone).\n",
            *_columns(LISTING),
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


def _rows(field: "pa.Field[Any]", path: str, *, with_fields: bool) -> Iterator[str]:
    said = {key.decode(): value.decode() for key, value in (field.metadata or {}).items()}
    null = "may be" if field.nullable else "never"
    type_, inner = _arrow_type(field.type)
    meaning = cell(said.get("description", ""))
    yield f"| `{path}` | {type_} | {said.get('unit', '')} | {null} | {meaning} |"
    if with_fields and inner is not None:
        suffix = "[]" if pa.types.is_list(field.type) else ""
        for child in inner:
            yield from _rows(child, f"{path}{suffix}.{child.name}", with_fields=True)


def _arrow_type(type_: pa.DataType) -> tuple[str, pa.StructType | None]:
    """Name a type, and return the struct whose fields have rows in the table, if there is one."""
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
    lines += [f"| `{name}` | {' | '.join(map(cell, cells))} |" for name, cells in rows.items()]
    return [*lines, ""]
