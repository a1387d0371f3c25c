"""Moments, points, tracks, 3D boxes, fields, documents, tool calls and own questions: prompts and
parsers, on answers in the documented forms and on broken ones.
"""

import json
import math

import numpy as np
import pyarrow as pa
import pytest

from pipeline.tasks.objects_3d import corners_3d, intrinsics_of
from pipeline.tasks.parse import parse_answer
from pipeline.tasks.registry import TASKS
from schemas.errors import JobFileError
from schemas.job.job import Job, check_job
from schemas.tables.manifest import Intrinsics
from schemas.task import Question, View

IMAGE = View(media_type="image", width=640, height=480)
CLIP = View(
    media_type="video",
    width=1920,
    height=1080,
    pts_seconds=(10.0, 10.5, 11.0, 11.5),
    start_seconds=10.0,
    end_seconds=60.0,
)
TOOLS = json.dumps([{"type": "function", "function": {"name": "click"}}])
SCHEMA = json.dumps({"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]})


def read(task: str, answer: str, view: View = IMAGE, **settings):
    found = parse_answer(answer, Question(task=task, **settings), view)
    pa.array([found.value], TASKS[task].column.type).validate(full=True)
    assert (found.note is None) == (found.status == "ok")
    return found


def written(task: str, value, view: View = IMAGE, **settings) -> str:
    return TASKS[task].write(value, Question(task=task, **settings), view)


# Prompts


@pytest.mark.parametrize(
    ("task", "media_type", "settings", "expected"),
    [
        ("caption", "image", {"style": "short"}, "Describe this image in one sentence."),
        (
            "text_spans",
            "image",
            {"style": "word"},
            "Spot all the text in the image with word-level, and output in JSON format.",
        ),
        (
            "points",
            "image",
            {"labels": ("cup", "cat")},
            'Point to every instance that belongs to the following categories: "cup, cat". '
            "Report point coordinates in JSON format.",
        ),
        ("document", "image", {}, "qwenvl html"),
        ("document", "image", {"style": "markdown"}, "qwenvl markdown"),
        ("custom", "image", {"prompt": "Is it raining?"}, "Is it raining?"),
    ],
)
def test_prompts(task, media_type, settings, expected):
    assert TASKS[task].prompt(Question(task=task, **settings), media_type) == expected


def test_prompts_name_labels_and_keys():
    moments = TASKS["moments"].prompt(Question(task="moments", query="A dog barks."), "video")
    assert '"A dog barks."' in moments and '"start": "mm:ss.ff"' in moments
    fields = TASKS["fields"].prompt(Question(task="fields", keys=("Total", "Größe")), "image")
    assert fields.endswith('{"Total": "", "Größe": ""}')
    boxes = TASKS["objects_3d"].prompt(Question(task="objects_3d", labels=("car",)), "image")
    assert boxes.startswith("Find all car in this image.") and "roll, pitch, yaw" in boxes
    assert "track_id" in TASKS["tracks"].prompt(Question(task="tracks"), "video")


@pytest.mark.parametrize("name", TASKS)
def test_an_own_prompt_is_taken_as_it_is(name):
    question = Question(task=name, prompt="Wo?", query="x", keys=("a",), labels=("b",))
    for media_type in TASKS[name].media_types:
        assert TASKS[name].prompt(question, media_type) == "Wo?"


def job(*tasks) -> Job:
    return check_job({"input": {"scan": "."}, "output": "o", "tasks": list(tasks)}, "test")


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("moments", "moments needs query or prompt"),
        ("fields", "fields needs keys or prompt"),
        ("custom", "custom needs prompt"),
        ("tool_calls", "tool_calls needs tools"),
        ({"caption": {"labels": ["a"]}}, "caption has no labels: only objects, points"),
        ({"caption": {"style": "long"}}, "style of caption must be detailed or short"),
        ({"custom": {"prompt": "x", "json_schema": {"type": "int"}}}, "is not a valid JSON Schema"),
    ],
)
def test_settings_that_do_not_fit_are_errors(task, message):
    with pytest.raises(JobFileError, match=message):
        job(task)


def test_settings_reach_the_question():
    asked = job(
        {"moments": {"query": "A dog barks."}},
        {"fields": {"keys": ["Total"]}},
        {"custom": {"prompt": "How many?", "json_schema": json.loads(SCHEMA)}},
        {"tool_calls": {"tools": json.loads(TOOLS)}},
    ).questions()
    assert asked[0].query == "A dog barks." and asked[1].keys == ("Total",)
    assert asked[2].json_schema == SCHEMA and asked[3].tools == TOOLS


# Moments


@pytest.mark.parametrize(
    "answer",
    [
        '[{"start": "00:12.50", "end": "00:15.00"}]',
        '```json\n[{"start": "00:12.50", "end": "00:15.00"}]\n```',
        '{"start": 12.5, "end": 15}',
        "[[12.5, 15.0]]",
        '["00:12.50 - 00:15.00"]',
        '{"0:00:12.5 - 0:00:15": "the dog"}',
        '{"moments": [{"start_time": "12.5 seconds", "end_time": "15.0 seconds"}]}',
        "The dog barks from 12.5 seconds to 15.0 seconds.",
        "It happens at 00:12.50 - 00:15.00.",
    ],
)
def test_moments_in_all_forms(answer):
    found = read("moments", answer, CLIP, query="x")
    assert found.value == [{"start_seconds": 12.5, "end_seconds": 15.0}]


def test_moments_odd_and_broken():
    found = read("moments", '[{"start": "00:15.00", "end": "00:12.50"}, {"start": 1}]', CLIP)
    assert found.value == [{"start_seconds": 12.5, "end_seconds": 15.0}]
    assert found.note == "start and end swapped; left out: no times"
    assert read("moments", '[{"start": 5, "end": 99}]', CLIP).value == [
        {"start_seconds": 10.0, "end_seconds": 60.0}
    ]
    assert read("moments", "[]", CLIP).value == []
    assert read("moments", "It never happens.", CLIP).status == "unparsed"
    assert read("moments", "1 to " * 500, CLIP).status in ("unparsed", "repaired")


# Points


def test_points():
    answer = '```json\n[{"point_2d": [500, 250], "label": "cup"}]\n```'
    found = read("points", answer)
    assert found.status == "ok"
    assert found.value == [
        {
            "label": "cup",
            "point": {"x": 320.0, "y": 120.0},
            "point_1000": {"x": 500, "y": 250},
            "pts_seconds": None,
        }
    ]
    assert written("points", found.value) == answer


def test_points_odd_and_broken():
    several = read("points", '[{"point_2d": [[0, 0], [1000, 1200]], "label": "a"}]').value
    assert [p["point_1000"] for p in several] == [{"x": 0, "y": 0}, {"x": 1000, "y": 1000}]
    assert read("points", '[{"point": {"x": 10, "y": 20}}]', labels=("a",)).value[0]["label"] == "a"
    assert read("points", '[{"point_2d": [1, 2, 3], "label": "a"}]').status == "unparsed"
    assert read("points", '[{"point_2d": [1, 2], "label": "a"}, {"point_2d": [3').note
    timed = read("points", '[{"time": 10.6, "point_2d": [1, 2], "label": "a"}]', CLIP).value
    assert timed[0]["pts_seconds"] == 10.5


# Tracks


def test_tracks():
    boxes = [
        {"time": 10.0, "bbox_2d": [0, 0, 100, 100], "label": "car", "track_id": 1},
        {"time": 10.0, "bbox_2d": [500, 0, 600, 100], "label": "car", "track_id": 2},
        {"time": 11.0, "bbox_2d": [100, 0, 200, 100], "label": "car", "track_id": 1},
    ]
    found = read("tracks", json.dumps(boxes), CLIP)
    assert found.status == "ok"
    assert [(t["label"], t["track_id"], len(t["boxes"])) for t in found.value] == [
        ("car", "1", 2),
        ("car", "2", 1),
    ]
    assert [b["pts_seconds"] for b in found.value[0]["boxes"]] == [10.0, 11.0]
    assert read("tracks", written("tracks", found.value, CLIP), CLIP).value == found.value
    unnamed = [{k: v for k, v in box.items() if k != "track_id"} for box in boxes]
    (track,) = read("tracks", json.dumps(unnamed), CLIP).value
    assert track["track_id"] is None and len(track["boxes"]) == 3
    assert read("tracks", "nothing", CLIP).status == "unparsed"


# Objects in space


def test_objects_3d_are_in_metres_and_degrees():
    numbers = [0, 0.5, 8, 2, 1, 4, 0.0, 0.25, 0.5]
    found = read("objects_3d", json.dumps([{"bbox_3d": numbers, "label": "car"}]))
    assert found.status == "ok"
    (car,) = found.value
    assert car["center"] == {"x": 0, "y": 0.5, "z": 8}
    assert car["rotation"] == {"pitch": 0, "yaw": 45, "roll": 90}
    again = json.loads(written("objects_3d", found.value).strip("`json\n"))
    assert again == [{"bbox_3d": numbers, "label": "car"}]


def test_objects_3d_are_projected_by_the_camera():
    """A cube of 2 m in front: its near face is 4 m away, the lens sees 60 degrees of width."""
    answer = json.dumps([{"bbox_3d": [0, 0, 5, 2, 2, 2, 0, 0, 0], "label": "cube"}])
    focal = 320 / math.tan(math.radians(30))
    box = read("objects_3d", answer).value[0]["projected_box"]
    assert box == pytest.approx(
        {"x1": 320 - focal / 4, "x2": 320 + focal / 4, "y1": 240 - focal / 4, "y2": 240 + focal / 4}
    )
    view = View(
        media_type="image",
        width=640,
        height=480,
        intrinsics=Intrinsics(fx=100, fy=50, cx=300, cy=200),
    )
    box = read("objects_3d", answer, view).value[0]["projected_box"]
    assert box == pytest.approx({"x1": 275, "x2": 325, "y1": 187.5, "y2": 212.5})
    assert intrinsics_of(IMAGE).fx == pytest.approx(focal)


def test_the_angles_turn_as_they_say():
    """A rod along x, turned 90 degrees about y, lies along z; about z, along y."""
    for angles, axis in (([0, 90, 0], 2), ([0, 0, 90], 1), ([90, 0, 0], 0)):
        corners = corners_3d([0, 0, 10], [4, 1, 1], angles)
        extent = np.ptp(corners, axis=0)
        assert extent[axis] == pytest.approx(4) and np.delete(extent, axis) == pytest.approx([1, 1])


def test_objects_3d_odd_and_broken():
    behind = read("objects_3d", '[{"bbox_3d": [0, 0, -5, 1, 1, 1, 0, 0, 0], "label": "a"}]')
    assert behind.value[0]["projected_box"] is None and "behind the camera" in behind.note
    few = read("objects_3d", '[{"bbox_3d": [1, 2, 3], "label": "a"}]')
    assert few.status == "unparsed" and "3D box of nine numbers" in few.note


# Fields


def test_fields():
    answer = '```json\n{"Total": "12.50", "Date": ""}\n```'
    found = read("fields", answer, keys=("Total", "Date"))
    assert (found.value, found.status) == ([("Total", "12.50"), ("Date", None)], "ok")
    assert written("fields", found.value, keys=("Total", "Date")) == answer


def test_fields_odd_and_broken():
    found = read("fields", '{"total": 12.5, "shop": "x", "items": [1]}', keys=("Total", "Date"))
    assert found.value == [("Total", "12.5"), ("Date", None)]
    assert "not answered: Date" in found.note and "key not requested" in found.note
    own = read("fields", '{"a": {"b": 1}, "c": true, "d": null}', prompt="Read it.")
    assert own.value == [("a", '{"b": 1}'), ("c", "true"), ("d", None)]
    lines = read("fields", '[{"Total": 1}, {"Date": "May"}]', keys=("Total", "Date"))
    assert lines.value == [("Total", "1"), ("Date", "May")]
    assert read("fields", "I see no form.", keys=("Total",)).status == "unparsed"
    assert read("fields", '{"Total": "12', keys=("Total",)).status == "unparsed"


# Documents

HTML = (
    '<html><body>\n<h2 data-bbox="100 50 900 120">Report</h2>\n'
    '<div class="image" data-bbox="0 500 500 1000"><img data-bbox="0 500 500 1000"/></div>\n'
    '<p data-bbox="100 200 900 400">Sales &amp; <b>more</b></p>\n</body></html>'
)


def test_a_document_in_html():
    found = read("document", f"```html\n{HTML}\n```")
    assert found.status == "ok"
    kinds = [(b["kind"], b["text"]) for b in found.value["blocks"]]
    assert kinds == [("h2", "Report"), ("image", None), ("img", None), ("p", "Sales & more")]
    assert found.value["blocks"][0]["box"] == {"x1": 64, "y1": 24, "x2": 576, "y2": 57.6}
    assert '<h2 data-bbox="64 24 576 58">' in found.value["text"]
    again = read("document", written("document", found.value))
    for one, other in zip(again.value["blocks"], found.value["blocks"], strict=True):
        for corner, at in other["box"].items():
            assert one["box"][corner] == pytest.approx(at, abs=1)


def test_a_document_in_markdown():
    answer = (
        "# Report\n\n<!-- Image (0, 500, 500, 1000) -->\n\n<!-- Table (0, 0, 1000, 100) -->\n"
        "\\begin{tabular}\\end{tabular}\n\nEnd."
    )
    found = read("document", answer, style="markdown")
    assert found.value["format"] == "markdown"
    assert [(b["kind"], b["text"]) for b in found.value["blocks"]] == [
        ("image", None),
        ("table", "\\begin{tabular}\\end{tabular}"),
    ]
    assert "<!-- Image (0, 240, 320, 480) -->" in found.value["text"]
    assert written("document", found.value, style="markdown") == answer


def test_documents_odd_and_broken():
    found = read("document", '<p data-bbox="1 2 3">a</p><p data-bbox="0 0 2000 10">b')
    assert [b["text"] for b in found.value["blocks"]] == ["b"]
    assert "not a box of four numbers" in found.note and "clamped" in found.note
    assert read("document", "plain words").value["blocks"] == []
    assert read("document", "```html\n```").status == "unparsed"
    assert read("document", "<div data-bbox='" * 2000).value is not None


# Tool calls


def test_tool_calls():
    answer = (
        '<tool_call>\n{"name": "click", "arguments": {"coordinate": [500, 250]}}\n</tool_call>\n'
        '<tool_call>\n{"name": "type", "arguments": {"text": "hi"}}\n</tool_call>'
    )
    found = read("tool_calls", answer, tools=TOOLS)
    assert found.status == "ok"
    assert found.value == [
        {
            "name": "click",
            "arguments": '{"coordinate": [500, 250]}',
            "point": {"x": 320.0, "y": 120.0},
        },
        {"name": "type", "arguments": '{"text": "hi"}', "point": None},
    ]
    assert written("tool_calls", found.value) == answer


def test_tool_calls_with_tagged_arguments():
    """As the templates of Qwen3.5 ask for them; text stays text where the tool says so."""
    tools = json.dumps(
        [
            {"type": "function", "function": {"name": "type", "parameters": {"properties": {}}}},
            {"name": "type", "parameters": {"properties": {"text": {"type": "string"}}}},
        ]
    )
    answer = (
        "<tool_call>\n<function=click>\n<parameter=coordinate>\n[500, 250]\n</parameter>\n"
        "<parameter=button>\nleft\n</parameter>\n</function>\n</tool_call>\n"
        "<tool_call>\n<function=type>\n<parameter=text>\n12\n 3\n</parameter>\n"
        "<parameter=times>\n2\n</parameter>\n</function>\n</tool_call>"
    )
    found = read("tool_calls", answer, tools=tools)
    assert (found.status, found.note) == ("ok", None)
    assert found.value == [
        {
            "name": "click",
            "arguments": '{"coordinate": [500, 250], "button": "left"}',
            "point": {"x": 320.0, "y": 120.0},
        },
        {"name": "type", "arguments": '{"text": "12\\n 3", "times": 2}', "point": None},
    ]
    cut = read("tool_calls", answer[: answer.index("left") + 2], tools=tools)
    assert json.loads(cut.value[0]["arguments"]) == {"coordinate": [500, 250]}
    assert "the last argument was not closed" in cut.note


def test_tool_calls_that_quote_the_other_form():
    quoted = '{"name": "write", "arguments": {"text": "see <function=foo> here"}}'
    found = read("tool_calls", f"<tool_call>{quoted}</tool_call>")
    assert (found.status, found.note) == ("ok", None)
    assert found.value[0]["name"] == "write"
    texts = {"anyOf": [{"type": "string"}, {"type": "null"}]}
    kinds = {"a": texts, "b": {"type": ["string", "null"]}, "c": {"enum": ["1", "2"]}}
    tools = json.dumps([{"name": "type", "parameters": {"properties": kinds | {"d": {}}}}])
    written = "".join(f"<parameter={key}>\n1\n</parameter>\n" for key in "abcd")
    called = f"<tool_call>\n<function=type>\n{written}</function>\n</tool_call>"
    found = read("tool_calls", called, tools=tools)
    assert (found.status, found.note) == ("ok", None)
    assert json.loads(found.value[0]["arguments"]) == {"a": "1", "b": "1", "c": "1", "d": 1}
    closed = called.replace("\n1\n", "\nfoo </parameter> bar\n", 1)
    found = read("tool_calls", closed, tools=tools)
    assert json.loads(found.value[0]["arguments"])["a"] == "foo </parameter> bar"
    open_ = called.replace("\n1\n</parameter>", "\n1\n", 1)
    assert read("tool_calls", open_, tools=tools).note == "an argument has a tag in it"


def test_tool_calls_odd_and_broken():
    said = 'I will click.\n<tool_call>\n{"name": "click", "arguments": "{\\"n\\": 1}"}'
    found = read("tool_calls", said)
    assert found.value[0]["arguments"] == '{"n": 1}' and "not closed" in found.note
    assert read("tool_calls", '{"name": "click", "arguments": {}}').note
    assert read("tool_calls", "<tool_call>click()</tool_call>").status == "unparsed"
    assert read("tool_calls", '<tool_call>{"arguments": {}}</tool_call>').status == "unparsed"


# Own questions


def test_custom_is_text_or_checked_json():
    assert read("custom", " Yes. ", prompt="?").value == "Yes."
    found = read("custom", '```json\n{"n": 3}\n```', prompt="?", json_schema=SCHEMA)
    assert (found.value, found.status) == ('{"n": 3}', "ok")
    assert written("custom", found.value, json_schema=SCHEMA) == '```json\n{"n": 3}\n```'
    wrong = read("custom", '{"n": "three"}', prompt="?", json_schema=SCHEMA)
    assert wrong.value is None and "violates the schema: $.n" in wrong.note
    assert read("custom", "three", prompt="?", json_schema=SCHEMA).status == "unparsed"
    assert read("custom", "", prompt="?").status == "unparsed"
