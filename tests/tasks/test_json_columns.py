"""Columns of JSON Schemas, read by DuckDB: its types, and its own JSON of the values."""

import json
from pathlib import Path
from typing import Any

import duckdb
import jsonschema
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.tasks.columns import column_of
from pipeline.tasks.json_columns import from_arrow, json_type, to_arrow
from pipeline.tasks.parse import parse_answer
from pipeline.tasks.registry import TASKS
from schemas.task import Question, View

IMAGE = View(media_type="image", width=640, height=480)
TEXT, COUNT = {"type": "string"}, {"type": "integer"}


def members(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def optional(schema: dict[str, Any]) -> dict[str, Any]:
    """As pydantic writes ``X | None``."""
    return {"anyOf": [schema, {"type": "null"}], "default": None, "title": "An optional value"}


def written(tmp_path: Path, schema: Any, *values: Any) -> tuple[str, list[Any]]:
    """The type that DuckDB reads, and its JSON of each value; the values fit the schema."""
    validator = jsonschema.validators.validator_for(schema)(schema)
    for value in values:
        validator.validate(value)
    type_ = json_type(json.dumps(schema))
    stored, left_out = zip(*(to_arrow(value, type_) for value in values), strict=True)
    assert not any(left_out)
    file = tmp_path / "values.parquet"
    pq.write_table(pa.table({"x": pa.array(stored, type_.arrow)}), file)
    back = pq.read_table(file)["x"].to_pylist()
    assert [from_arrow(value, type_) for value in back] == list(values)
    found = duckdb.sql(f"SELECT typeof(x), to_json(x) FROM '{file}'").fetchall()
    return found[0][0], [json.loads(text) for _, text in found]


TYPED = {
    "text": (TEXT, "VARCHAR", ["a 'b' \\ \n é"]),
    "whole number": (COUNT, "BIGINT", [2**63 - 1, -(2**63), 0]),
    "number": ({"type": "number"}, "DOUBLE", [0.5, -3.0]),
    "two types of number": ({"type": ["integer", "number"]}, "DOUBLE", [0.5]),
    "true or false": ({"type": "boolean"}, "BOOLEAN", [True, False]),
    "texts to choose from": ({"enum": ["red", "blue"]}, "VARCHAR", ["red"]),
    "numbers to choose from": ({"enum": [1, 2]}, "BIGINT", [2]),
    "one text": ({"const": "yes"}, "VARCHAR", ["yes"]),
    "dates are text": (TEXT | {"format": "date"}, "VARCHAR", ["2026-11-22"]),
    "object": (
        members(a=TEXT, b=COUNT),
        "STRUCT(a VARCHAR, b BIGINT)",
        [{"a": "x", "b": 1}, {"a": "", "b": -1}],
    ),
    "null or a number": (
        members(a={"type": ["integer", "null"]}),
        "STRUCT(a BIGINT)",
        [{"a": None}, {"a": 3}],
    ),
    "pydantic's optional value": (
        members(a=optional(COUNT)),
        "STRUCT(a BIGINT)",
        [{"a": None}, {"a": 3}],
    ),
    "list": ({"type": "array", "items": TEXT}, "VARCHAR[]", [["a", "b"], []]),
    "list of objects": (
        {"type": "array", "items": members(a={"type": "array", "items": COUNT})},
        "STRUCT(a BIGINT[])[]",
        [[{"a": [1, 2]}, {"a": []}], []],
    ),
    "definitions": (
        {"$defs": {"a/b": members(n=COUNT)}} | members(p={"$ref": "#/$defs/a~1b", "title": "P"}),
        "STRUCT(p STRUCT(n BIGINT))",
        [{"p": {"n": 4}}],
    ),
    "names that SQL must quote": (
        members(**{"order by": TEXT, "größe": COUNT, 'a"b.c': TEXT}),
        'STRUCT("order by" VARCHAR, "größe" BIGINT, "a""b.c" VARCHAR)',
        [{"order by": "x", "größe": 1, 'a"b.c': "y"}],
    ),
}


@pytest.mark.parametrize(("schema", "type_", "values"), TYPED.values(), ids=TYPED)
def test_what_arrow_has_is_typed(tmp_path, schema, type_, values):
    assert written(tmp_path, schema, *values) == (type_, values)


OPEN = {"type": "object", "additionalProperties": {"type": "integer"}}
TREE = {"$defs": {"node": members(name=TEXT)}, "$ref": "#/$defs/node"}
TREE["$defs"]["node"]["properties"]["below"] = {"type": "array", "items": {"$ref": TREE["$ref"]}}
AS_TEXT = {
    "no type": ({"minLength": 1}, ["x", 3]),
    "any value": (True, [{"a": 1}]),
    "two types": ({"type": ["string", "integer"]}, ["x", 3]),
    "a choice of values of two types": ({"enum": ["x", 3]}, ["x", 3]),
    "anyOf": ({"anyOf": [TEXT, COUNT]}, ["x", 3]),
    "allOf": ({"allOf": [members(a=TEXT)]}, [{"a": "x", "b": 2}]),
    "a list of anything": ({"type": "array"}, [[1, "x"]]),
    "a tuple": ({"type": "array", "prefixItems": [TEXT, COUNT]}, [["x", 1]]),
    "any keys": (OPEN, [{"a": 1, "b": 2}]),
    "no keys": ({"type": "object"}, [{"a": {"b": []}}]),
    "further keys": (members(a=TEXT) | {"additionalProperties": True}, [{"a": "x", "b": 2}]),
    "patterns of keys": (
        members(a=TEXT) | {"patternProperties": {"^x-": TEXT}},
        [{"a": "x", "x-b": "y"}],
    ),
    "beyond 64 bits": (COUNT | {"maximum": 2**64}, [2**64]),
    "keys that differ in case": (members(a=TEXT, A=TEXT), [{"a": "x", "A": "y"}]),
    "a key without a name": (members(**{"": TEXT}), [{"": "x"}]),
}


@pytest.mark.parametrize(("schema", "values"), AS_TEXT.values(), ids=AS_TEXT)
def test_the_rest_is_json_text(tmp_path, schema, values):
    found = written(tmp_path, schema, *values)
    assert found == ("VARCHAR", [json.dumps(value) for value in values])
    # Only the part that Arrow does not have is text.
    part = json.dumps(values[0])
    assert written(tmp_path, members(n=COUNT, part=schema), {"n": 1, "part": values[0]}) == (
        "STRUCT(n BIGINT, part VARCHAR)",
        [{"n": 1, "part": part}],
    )


def test_a_tree_is_typed_down_to_where_it_repeats(tmp_path):
    below = [{"name": "b", "below": []}]
    assert written(tmp_path, TREE, {"name": "a", "below": below}) == (
        'STRUCT("name" VARCHAR, below VARCHAR[])',
        [{"name": "a", "below": [json.dumps(below[0])]}],
    )


def test_deep_objects(tmp_path):
    schema, value = TEXT, "x"
    for _ in range(60):
        schema, value = members(a=schema), {"a": value}
    assert written(tmp_path, schema, value)[1] == [value]


def test_a_member_that_may_be_missing_is_null_and_missing_again(tmp_path):
    schema = members(a=TEXT) | {"properties": {"a": TEXT, "b": COUNT, "c": {"type": "null"}}}
    assert written(tmp_path, schema, {"a": "x"}, {"a": "y", "b": 2}) == (
        "STRUCT(a VARCHAR, b BIGINT, c VARCHAR)",
        [{"a": "x", "b": None, "c": None}, {"a": "y", "b": 2, "c": None}],
    )


def asked(schema: dict[str, Any]) -> Question:
    return Question(task="custom", name="defects", prompt="?", json_schema=json.dumps(schema))


@pytest.mark.parametrize(
    ("schema", "answer", "note"),
    [
        (COUNT, str(2**63), "does not fit the column: $ is beyond 64 bits: 9223372036854775808"),
        (members(n=COUNT), '{"n": -9223372036854775809}', "$.n is beyond 64 bits"),
        ({"type": "array", "items": COUNT}, "[1, 1e400]", "violates the schema: $[1]"),
        (members(n={"type": "number"}), '{"n": 1' + "0" * 400 + "}", "$.n is beyond 64 bits"),
        (members(n=COUNT), '{"n": "x"}', "violates the schema: $.n: 'x' is not of type 'integer'"),
    ],
)
def test_a_value_that_the_column_cannot_hold_costs_its_answer_not_its_row(schema, answer, note):
    found = parse_answer(answer, asked(schema), IMAGE)
    assert (found.status, found.value) == ("unparsed", None)
    assert note in found.note


def test_members_that_the_schema_does_not_name_are_left_out_with_a_note():
    schema = members(a=members(b=TEXT))
    found = parse_answer('{"a": {"b": "x", "c": 1}, "d": 2}', asked(schema), IMAGE)
    assert (found.status, found.value) == ("repaired", {"a": {"b": "x"}})
    assert found.note.endswith("do not have it: $.d, $.a.c")


@pytest.mark.parametrize("text", ["\ud800", "a\x00b", "\U0001f600"])
def test_strange_text_fits(text):
    schema = members(a=TEXT, b={"type": "array"})
    found = parse_answer(json.dumps({"a": text, "b": [text]}), asked(schema), IMAGE)
    pa.array([found.value], column_of(asked(schema)).type).validate(full=True)
    assert found.value["a"] == text.replace("\ud800", "\ufffd")


def test_a_value_is_written_as_the_answer_that_gives_it():
    schema = members(a=TEXT, b=optional(COUNT)) | {"required": ["a"]}
    schema["properties"]["c"] = {"anyOf": [TEXT, COUNT]}
    question = asked(schema)
    for value in ({"a": "x", "b": 2, "c": '"y"'}, {"a": "\\frac", "b": None, "c": None}):
        text = TASKS["custom"].write(value, question, IMAGE)
        found = parse_answer(text, question, IMAGE)
        assert (found.status, found.value) == ("ok", value)
    # A corrected table may have JSON text.
    text = TASKS["custom"].write('{"a": "x", "b": 2}', question, IMAGE)
    assert parse_answer(text, question, IMAGE).value == {"a": "x", "b": 2, "c": None}


def test_the_column_of_the_task_itself_stays_text():
    question = Question(task="custom", prompt="?", json_schema=json.dumps(members(a=COUNT)))
    assert column_of(question).equals(TASKS["custom"].column)
    assert parse_answer('{"a": 1}', question, IMAGE).value == '{"a": 1}'
