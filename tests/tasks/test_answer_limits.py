"""Bounds of one answer: what lies beyond them is named, and nothing stays behind."""

import dataclasses
import json
import sys
from html.parser import HTMLParser
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.tasks import parse
from pipeline.tasks.answers import limits
from pipeline.tasks.answers.read_json import read_json
from pipeline.tasks.html_tags import Tag, html_parts
from pipeline.tasks.json_schema import schema_violation
from pipeline.tasks.parse import Answer, parse_answer
from pipeline.tasks.registry import TASKS
from schemas.task import Question
from tests.support.views import IMAGE, VIDEO


def answer(task: str, text: str, **settings: Any) -> Answer:
    view = IMAGE if "image" in TASKS[task].media_types else VIDEO
    return parse_answer(text, Question(task=task, **settings), view)


def endless(text: str, question: Question, view: object):
    while True:
        limits.check_deadline()


def test_an_answer_that_takes_too_long_is_unparsed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(parse, "MAX_SECONDS", 0.01)
    task = dataclasses.replace(TASKS["caption"], parse=endless)
    monkeypatch.setitem(parse.TASKS, "caption", task)
    found = answer("caption", "A cat.")
    assert (found.value, found.status) == (None, "unparsed")
    assert found.note == "the answer is too long to be read: the time for it is over"
    assert limits.seconds_left() == float("inf")
    assert answer("ocr", "EXIT").status == "ok"


def test_an_answer_of_too_many_characters_is_unparsed():
    found = answer("ocr", "a" * (limits.MAX_ANSWER_CHARS + 1))
    assert (found.value, found.status) == (None, "unparsed")
    assert found.note == "the answer is too long to be read: it has 1,048,577 characters"
    assert answer("ocr", "a" * limits.MAX_ANSWER_CHARS).status == "ok"


def test_an_answer_that_nests_too_deeply_is_unparsed():
    schema = json.dumps({"items": {"$ref": "#"}})
    found = answer("custom", "[" * 300 + "]" * 300, json_schema=schema)
    assert (found.value, found.status) == (None, "unparsed")
    assert found.note == "the answer nests too deeply to be read"


BOX = '"bbox_2d": [1, 2, 3, 4]'


def test_what_is_left_out_is_named():
    call = '<tool_call>{"name": "a", "arguments": {}}</tool_call>'
    found = answer("tool_calls", call * 300)
    assert (len(found.value), found.note) == (256, "left out: calls after the first 256 (44x)")
    items = ", ".join(f'{{{BOX}, "label": "l{k}"}}' for k in range(30))
    found = answer("objects", f"[{items}]", labels=("car",))
    assert len(found.value) == 30 and found.note.endswith("; and 10 other notes")
    cat = f'{{{BOX}, "label": "cat"}}'
    found = answer("objects", f"[{cat}, " + f'{{{BOX} "label": "dog"}}, ' * 3000)
    assert found.value[0]["label"] == "cat" and len(found.value) > 300
    assert "too much to repair" in found.note


def test_a_text_is_in_at_most_16_blocks():
    depth = 40
    opened = "".join(f'<p data-bbox="0 0 {k} {k}">' for k in range(1, depth + 1))
    found = answer("document", f"{opened}deep{'</p>' * depth}")
    texts = [block["text"] for block in found.value["blocks"]]
    assert texts == [None] * (depth - 16) + ["deep"] * 16
    assert "text in over 16 blocks left out of the outer ones" in found.note
    page = "".join(f"<!-- Image (0, 0, {k}, {k}) -->\nline {k}\n" for k in range(1, depth + 1))
    found = answer("document", page, style="markdown")
    texts = [block["text"] for block in found.value["blocks"]]
    assert texts[0].startswith("line 1 <!--") and texts[0].endswith("line 16")
    assert texts[-1] == "line 40"
    assert "text in over 16 blocks left out of the outer ones" in found.note


def test_elements_keep_what_they_share():
    """Only the keys that a reader looks for: all of them in each element would be quadratic."""
    text = (
        f'{{"time": 11.0, "k": 1, "objects": [{{{BOX}, "label": "a"}}, {{{BOX}, "label": "b"}}]}}'
    )
    found = parse_answer(text, Question(task="objects"), VIDEO)
    assert [element["pts_seconds"] for element in found.value] == [11.0, 11.0]
    text = f'{{"time": 11.5, {BOX}, "label": "a", {BOX}, "label": "b", "track_id": 7, "k": 1}}'
    found = parse_answer(text, Question(task="tracks"), VIDEO)
    assert [(t["label"], t["track_id"]) for t in found.value] == [("a", "7"), ("b", "7")]
    assert found.value[0]["boxes"][0]["pts_seconds"] == 11.5


def test_a_step_limit_leaves_no_profiler():
    def spin() -> None:
        with limit:
            while True:
                len("")

    limit = limits.StepLimit(100)
    with pytest.raises(limits.StepLimitError):
        spin()
    assert sys.getprofile() is None
    with pytest.raises(limits.StepLimitError):
        spin()
    calls = []
    sys.setprofile(lambda *event: calls.append(event))
    try:
        with limits.StepLimit(0):
            len("")
        assert sys.getprofile() is not None and calls
    finally:
        sys.setprofile(None)


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999", "-1e999", "9" * 5000])
def test_a_number_that_no_column_holds_is_null(number: str):
    note = "a number that is not finite was read as null"
    assert (read_json(f'{{"a": {number}}}').value, read_json(f"[{number}]").note) == (
        {"a": None},
        note,
    )
    broken = read_json(f'[{{"a": 1}} {{"a": {number}}}, {{"a": 2}}]')
    assert [item.get("a") for item in broken.value if number not in str(item)][-1] == 2
    found = answer("fields", f'{{"total": {number}, "title": "A"}}', keys=("total", "title"))
    assert (dict(found.value), found.status) == ({"total": None, "title": "A"}, "repaired")
    schema = json.dumps({"type": "object", "properties": {"n": {"type": "number"}}})
    for settings in ({}, {"name": "mine"}):
        found = answer("custom", f'{{"n": {number}}}', json_schema=schema, **settings)
        assert (found.value, found.status) == (None, "unparsed")
    text = f'<tool_call>{{"name": "a", "arguments": {{"x": {number}}}}}</tool_call>'
    (call,) = answer("tool_calls", text).value
    assert json.loads(call["arguments"]) == {"x": None}


# JSON Schema


def test_a_pattern_that_takes_exponential_time_is_stopped():
    schema = json.dumps({"type": "object", "properties": {"a": {"pattern": "^(a|aa)+$"}}})
    found = answer("custom", json.dumps({"a": "a" * 60 + "b"}), json_schema=schema)
    assert (found.value, found.status) == (None, "unparsed")
    assert found.note == (
        "the answer is too long to be read: the schema's pattern '^(a|aa)+$' takes too long"
    )
    assert answer("custom", '{"a": "aa"}', json_schema=schema).status == "ok"


def test_a_schema_that_takes_exponential_time_is_stopped(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(parse, "MAX_SECONDS", 0.05)
    inner = {"type": "array", "items": {"$ref": "#"}}
    schema = json.dumps({"anyOf": [inner, inner]})
    found = answer("custom", f"{'[' * 24}1{']' * 24}", json_schema=schema)
    assert (found.value, found.status) == (None, "unparsed")
    assert found.note == "the answer is too long to be read: the time for it is over"


VALUE = st.recursive(
    st.none() | st.booleans() | st.integers(0, 2) | st.sampled_from([0.0, 1.0, "", "k1", "ka"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["k1", "ka", "b"]), inner, max_size=3)
    ),
    max_leaves=8,
)
SCHEMA = {
    "uniqueItems": True,
    "items": {"anyOf": [{"type": ["number", "boolean", "null"]}, {"pattern": "^k"}]},
    "properties": {"b": {"type": "integer"}},
    "patternProperties": {"^k[0-9]": {"type": ["array", "string"]}},
    "additionalProperties": False,
}

OLD_REF = {"$ref": "#/definitions/short", "type": "string"}
"""Up to draft 7, `$ref` hides the type beside it."""

SCHEMAS: dict[str, dict[str, Any]] = {
    "patterns": SCHEMA,
    "one of": {"oneOf": [{"type": "number"}, {"type": "integer"}, SCHEMA | {"type": "array"}]},
    "any of": {"anyOf": [{"type": "string"}, {"type": "object", "required": ["b"]}, False]},
    "old ref": {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "definitions": {"short": {"maxItems": 2}},
        "anyOf": [OLD_REF, {"enum": [0]}],
    },
}


@pytest.mark.parametrize("schema", SCHEMAS.values(), ids=SCHEMAS)
@given(value=VALUE)
def test_values_are_validated_as_by_jsonschema(schema: dict[str, Any], value: Any):
    is_valid = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)(
        schema
    ).is_valid(value)
    assert (schema_violation(value, json.dumps(schema)) is None) == is_valid


# HTML


class Parts(HTMLParser):
    """The same parts, read by the library."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.parts: list[Any] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.parts.append((tag, False, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        self.parts.append((tag, True, {}))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.parts.append((tag, False, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.parts.append(data)


WORD = st.sampled_from(
    ["Total", "a &amp; b", "x > y", "&eacute;", "it's", 'say "x"', "日本", "&#x41;"]
)
ATTRIBUTE = st.sampled_from(
    ["", ' data-bbox="1 2 3 4"', " class='a > b'", " colspan=2", " hidden", ' ID = "&lt;"']
)
NAME = st.sampled_from(["p", "div", "TD", "h1"])
PAGE = st.recursive(
    WORD | st.sampled_from(["<br/>", "<hr>", "<!-- a > b -->", "<!DOCTYPE html>"]),
    lambda inner: st.builds(
        lambda name, attribute, children: f"<{name}{attribute}>{' '.join(children)}</{name}>",
        NAME,
        ATTRIBUTE,
        st.lists(inner, max_size=4),
    ),
    max_leaves=10,
)


@given(page=PAGE)
def test_html_is_read_as_by_html_parser(page: str):
    found = [
        (p.name, p.is_end, p.attributes) if isinstance(p, Tag) else p for p in html_parts(page)
    ]
    assert found == Parts(page).parts


@pytest.mark.parametrize(
    ("page", "texts"),
    [
        ("a < b and <c", ["a < b and <c"]),
        ("<p class='a>b", ["<p class='a>b"]),
        ('<p x="<b>bold</b>', ['<p x="', "bold"]),
        ("<!-- never closed <b>x</b>", ["<!-- never closed ", "x"]),
        ("<script>if (a<b) c</script>d", ["if (a<b) c", "d"]),
        ("&#99999999999999999999;", ["\ufffd"]),
    ],
)
def test_what_is_not_closed_is_text(page: str, texts: list[str]):
    assert [part for part in html_parts(page) if isinstance(part, str)] == texts
