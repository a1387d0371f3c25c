"""The Arrow type of a JSON Schema, and the values in it. What Arrow does not have is JSON text.

docs/output-schema.md has the table of what becomes what.
"""

import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from pipeline.tasks.answers.read_json import clean_text

_PLAIN_TYPES: dict[str, pa.DataType] = {
    "string": pa.string(),
    "integer": pa.int64(),
    "number": pa.float64(),
    "boolean": pa.bool_(),
}
_INT64 = range(-(1 << 63), 1 << 63)
_LIMITS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_OPEN = ("additionalProperties", "unevaluatedProperties")
"""Keywords that allow members which no list of columns has, unless they are false."""

_UNMAPPED = frozenset(
    {
        *("anyOf", "oneOf", "allOf", "not", "if", "then", "else", "dependentSchemas"),
        *("dependencies", "patternProperties", "prefixItems", "additionalItems"),
        *("unevaluatedItems", "extends", "disallow", "$dynamicRef", "$recursiveRef"),
    }
)
"""Keywords by which a value has no one type."""

_REMARKS = frozenset(
    {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"}
    | {"$comment", "$defs", "definitions", "$schema", "$id"}
)
"""Keywords that allow no other values."""


@dataclass(frozen=True, kw_only=True)
class JsonType:
    """How the values of a schema are stored.

    arrow: their type. is_json: as JSON text.
    members: of an object. required: names of those that every object has. element: of a list.
    """

    arrow: pa.DataType
    is_json: bool = False
    members: Mapping[str, "JsonType"] = field(default_factory=dict)
    required: frozenset[str] = frozenset()
    element: "JsonType | None" = None


_JSON_TEXT = JsonType(arrow=pa.string(), is_json=True)


@functools.lru_cache(maxsize=64)
def json_type(schema: str) -> JsonType:
    """Return how the values of a JSON Schema, given as JSON text, are stored."""
    root = json.loads(schema)
    return _type(root, root, ())


def to_arrow(value: Any, type_: JsonType) -> tuple[Any, list[str]]:
    """Return a JSON value as its column has it, and the paths of members that have no column.

    Raises:
        ValueError, OverflowError: Arrow cannot hold the value; says which.
    """
    left_out: list[str] = []
    return _stored(value, type_, "$", left_out), left_out


def from_arrow(value: Any, type_: JsonType) -> Any:
    """Return the JSON value of a stored one.

    A member that is null was null or missing: it is missing, unless the schema requires it.

    Raises:
        ValueError: text that should be JSON is not.
    """
    if value is None:
        return None
    if type_.is_json:
        return json.loads(value)
    if type_.element is not None:
        return [from_arrow(each, type_.element) for each in value]
    if type_.members:
        return {
            name: from_arrow(value.get(name), member)
            for name, member in type_.members.items()
            if value.get(name) is not None or name in type_.required
        }
    return value


def _type(schema: Any, root: Any, refs: tuple[str, ...]) -> JsonType:
    """refs: the references that lead to the schema."""
    if not isinstance(schema, dict):
        return _JSON_TEXT
    if "$ref" in schema:
        return _referred(schema, root, refs)
    if (alone := _beside_null(schema)) is not None:
        return _type(alone, root, refs)
    if _UNMAPPED & schema.keys():
        return _JSON_TEXT
    kind = _kind(schema)
    if kind == "object":
        return _object(schema, root, refs)
    if kind == "array" and isinstance(schema.get("items"), dict):
        element = _type(schema["items"], root, refs)
        return JsonType(arrow=pa.list_(element.arrow), element=element)
    limits = [schema[key] for key in _LIMITS if key in schema]
    if kind == "integer" and any(int(limit) not in _INT64 for limit in limits):
        return _JSON_TEXT
    return JsonType(arrow=_PLAIN_TYPES[kind]) if kind in _PLAIN_TYPES else _JSON_TEXT


def _referred(schema: dict[str, Any], root: Any, refs: tuple[str, ...]) -> JsonType:
    """The type of ``$ref: "#/$defs/name"``; a cycle, or a reference elsewhere, is JSON text."""
    ref = schema["$ref"]
    if ref in refs or not ref.startswith("#/") or schema.keys() - _REMARKS != {"$ref"}:
        return _JSON_TEXT
    target = root
    for part in ref[2:].split("/"):
        target = target.get(part.replace("~1", "/").replace("~0", "~"))
        if not isinstance(target, dict):
            return _JSON_TEXT
    return _type(target, root, (*refs, ref))


def _beside_null(schema: dict[str, Any]) -> Any:
    """The schema S of ``anyOf: [S, {type: "null"}]``, as pydantic writes an optional value."""
    (several,) = schema.keys() - _REMARKS if len(schema.keys() - _REMARKS) == 1 else ("",)
    if several not in ("anyOf", "oneOf"):
        return None
    others = [part for part in schema[several] if part != {"type": "null"}]
    return others[0] if len(others) == 1 and len(schema[several]) == 2 else None


def _kind(schema: dict[str, Any]) -> str:
    """The one type of the values, null aside; an empty text if there is not one."""
    given = schema.get("type")
    kinds = set([given] if isinstance(given, str) else given or ())
    if not kinds and ("enum" in schema or "const" in schema):
        kinds = {_kind_of(value) for value in schema.get("enum", [schema.get("const")])}
    kinds -= {"null"}
    if kinds == {"integer", "number"}:
        return "number"
    return kinds.pop() if len(kinds) == 1 else ""


def _kind_of(value: Any) -> str:
    names = {bool: "boolean", int: "integer", float: "number", str: "string"}
    return "null" if value is None else names.get(type(value), "")


def _object(schema: dict[str, Any], root: Any, refs: tuple[str, ...]) -> JsonType:
    properties = schema.get("properties")
    if not properties or any(schema.get(key, False) is not False for key in _OPEN):
        return _JSON_TEXT
    # SQL's names have no case, and Parquet has no empty ones.
    distinct = {clean_text(name).casefold() for name in properties}
    if len(distinct) < len(properties) or not all(name.strip("\0 ") for name in distinct):
        return _JSON_TEXT
    members = {name: _type(part, root, refs) for name, part in properties.items()}
    required = schema.get("required")
    return JsonType(
        arrow=pa.struct([pa.field(clean_text(k), member.arrow) for k, member in members.items()]),
        members={clean_text(name): member for name, member in members.items()},
        required=frozenset(required if isinstance(required, list) else ()),
    )


def _stored(value: Any, type_: JsonType, path: str, left_out: list[str]) -> Any:
    if value is None:
        return None
    if type_.is_json:
        return clean_text(json.dumps(value, ensure_ascii=False))
    if type_.element is not None:
        element = type_.element
        return [_stored(each, element, f"{path}[{k}]", left_out) for k, each in enumerate(value)]
    if type_.members:
        left_out += [f"{path}.{clean_text(key)}" for key in value if key not in type_.members]
        return dict(_stored_members(value, type_, path, left_out))
    if type_.arrow == pa.string():
        return clean_text(value)
    if type_.arrow == pa.int64() and int(value) not in _INT64:
        raise OverflowError(f"{path} is beyond 64 bits: {value}")
    try:
        return {pa.int64(): int, pa.float64(): float}.get(type_.arrow, bool)(value)
    except OverflowError:
        raise OverflowError(f"{path} is beyond 64 bits: {value}") from None


def _stored_members(
    value: dict[str, Any], type_: JsonType, path: str, left_out: list[str]
) -> Iterator[tuple[str, Any]]:
    for name, member in type_.members.items():
        yield name, _stored(value.get(name), member, f"{path}.{name}", left_out)
