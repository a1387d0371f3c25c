r"""Answers whose content is plain to a reader, and that a JSON decoder alone would damage."""

import json
from typing import Any

import pytest

from pipeline.tasks.answers.read_json import read_json
from pipeline.tasks.parse import Answer, parse_answer
from schemas.task import Question, View

IMAGE = View(media_type="image", width=1000, height=1000)
VIDEO = View(
    media_type="video",
    width=1000,
    height=1000,
    pts_seconds=(0.0, 1.0, 2.0, 3.0, 12.0),
    start_seconds=0.0,
    end_seconds=20.0,
)


def answer(task: str, text: str, view: View = IMAGE, **settings: Any) -> Answer:
    return parse_answer(text, Question(task=task, **settings), view)


TEXTS = [
    r"\frac{a}{b}",
    r"E = \theta + \beta",
    r"\nabla \cdot \vec{F} = \rho",
    r"$x \to \infty$, $\nu \ne 0$",
    r"\begin{matrix}a & b\end{matrix}",
    r"\sqrt{a}{b}",
    r"\text{speed} = \frac{\text{way}}{\text{time}}",
    r"\(\alpha_{1}\) and \[\tau\]",
    r"C:\new\table.txt",
    r"C:\Program Files\nvidia\bin",
    r"D:\backup\reports\final.docx",
    r"\users\admin",
    r"C:\temp\Backup",
    r"see C:\new.txt, C:\NEW\TABLE.CSV",
    r"100\% \& more\_text",
]


@pytest.mark.parametrize("text", TEXTS)
def test_backslashes_that_a_model_did_not_escape_are_kept(text: str):
    """As in the JSON that the json module writes; what follows the text stays where it is."""
    spans = [{"bbox_2d": [1, 2, 3, 4], "text_content": name} for name in ("X", "next")]
    escaped = json.dumps(spans).replace('"X"', json.dumps(text))
    found = answer("text_spans", escaped)
    assert ([span["text"] for span in found.value], found.status) == ([text, "next"], "ok")
    found = answer("text_spans", json.dumps(spans).replace("X", text))
    assert [span["text"] for span in found.value] == [text, "next"]
    assert (found.status, found.note) == ("repaired", "backslashes repaired")


@pytest.mark.parametrize(
    "text",
    [
        "line one\nline two\tcolumn",
        "D:\nOption E:\nOption F",
        "Option A:\n\nblue",
        "A:\nred\nB:\nblue",
        "A:\nred.\nblue.\tIt is",
        "A:\n1.50\nB:\n2.50",
        "uno\ne due",
        "\tto the right\nnot here",
        "page one\f",
        'a "quote" and a \\ backslash',
        "\u00e9t\u00e9 \u4f60",
    ],
)
def test_escapes_that_json_has_stay_escapes(text: str):
    reading = read_json(json.dumps({"text": text}))
    assert reading.value == {"text": text}
    assert reading.note is None


@pytest.mark.parametrize("task", ["fields", "custom"])
def test_the_same_in_other_tasks(task: str):
    written = r'{"formula": "\frac{a}{b}", "path": "C:\temp\new.txt"}'
    settings = (
        {"keys": ("formula", "path")}
        if task == "fields"
        else {"prompt": "?", "json_schema": '{"type": "object"}'}
    )
    found = answer(task, written, **settings)
    value = dict(found.value) if task == "fields" else json.loads(found.value)
    assert value == {"formula": r"\frac{a}{b}", "path": r"C:\temp\new.txt"}
    assert found.status == "repaired"


def test_braces_in_a_text_do_not_end_an_element():
    """Also where the list is broken elsewhere."""
    written = (
        r'[{"text_content": "\frac{a}{b}, {c}"}, {"text_content": "two"} {"text_content": "3"}]'
    )
    found = answer("text_spans", written)
    assert [span["text"] for span in found.value] == [r"\frac{a}{b}, {c}", "two", "3"]


BOXES = {"a": [1, 2, 3, 4], "b": [5, 6, 7, 8]}


@pytest.mark.parametrize(
    "written",
    [
        '{"bbox_2d": [1, 2, 3, 4], "label": "a", "bbox_2d": [5, 6, 7, 8], "label": "b"}',
        '[{"label": "a", "bbox_2d": [1, 2, 3, 4], "label": "b", "bbox_2d": [5, 6, 7, 8]}]',
        '{"a": [1, 2, 3, 4], "b": [5, 6, 7, 8]}',
        '{"a": [[1, 2, 3, 4]], "b": {"bbox_2d": [5, 6, 7, 8]}}',
        '{"objects": {"a": [{"bbox_2d": [1, 2, 3, 4]}], "b": [5, 6, 7, 8]}}',
        '[{"bbox_2d": [1, 2, 3, 4], "object_name": "a"}, {"bbox": [5, 6, 7, 8], "class": "b"}]',
        '[{"边界框": [1, 2, 3, 4], "标签": "a"}, {"坐标": [5, 6, 7, 8], "名称": "b"}]',
    ],
)
def test_several_things_in_one_object_are_all_read(written: str):
    found = answer("objects", written)
    assert {o["label"]: list(o["box_1000"].values()) for o in found.value} == BOXES
    assert found.status == "repaired"


@pytest.mark.parametrize(
    ("written", "read"),
    [
        # One label for two boxes, and two labels for one box: nothing is lost.
        ('{"label": "a", "bbox_2d": [1, 2, 3, 4], "bbox_2d": [5, 6, 7, 8]}', [("a", 1), ("a", 5)]),
        ('{"bbox_2d": [1, 2, 3, 4], "label": "a", "label": "b"}', [("a", 1), ("b", 1)]),
        ('{"time": 1, "objects": [{"bbox_2d": [1, 2, 3, 4], "label": "a"}]}', [("a", 1)]),
    ],
)
def test_what_repeats_gives_elements_of_its_own(written: str, read: list[tuple[str, int]]):
    found = answer("objects", written)
    assert [(o["label"], o["box_1000"]["x1"]) for o in found.value] == read


def test_places_without_any_label_are_not_guessed():
    assert answer("objects", '{"objects": [[1, 2, 3, 4]]}').status == "unparsed"


EVENTS = [(1.0, 4.0, "A man walks"), (4.0, 10.5, "A dog runs")]


@pytest.mark.parametrize(
    "written",
    [
        "- 0:01 - 0:04: A man walks\n- 0:04 - 0:10.5: A dog runs",
        "Events:\n\n1. **00:01–00:04** A man walks.\n2. **00:04–00:10.5** A dog runs.",
        "[00:01 - 00:04] A man walks\n[00:04 - 00:10.5] A dog runs",
        "A man walks (0:01 to 0:04)\nA dog runs (0:04 to 0:10.5)",
        "From 1.0 to 4.0 seconds, A man walks.\nFrom 4.0 to 10.5 seconds, A dog runs.",
        '[{"开始时间": "0:01", "结束时间": "0:04", "描述": "A man walks"},'
        ' {"开始": 4.0, "结束": 10.5, "事件": "A dog runs"}]',
        '{"start": 1, "end": 4, "caption": "A man walks", "start": 4, "end": 10.5,'
        ' "caption": "A dog runs"}',
    ],
)
def test_events_in_lists_and_prose_are_read(written: str):
    found = answer("events", written, VIDEO)
    read = [(e["start_seconds"], e["end_seconds"], e["caption"]) for e in found.value]
    assert read == EVENTS
    assert found.status == "repaired"


@pytest.mark.parametrize(
    "written", ["2 to 3 people walk", "- A man walks\n- A dog runs", "In scene 4 - 5, it rains"]
)
def test_prose_without_times_is_no_event(written: str):
    assert answer("events", written, VIDEO).status == "unparsed"


CARS = (
    '[{"bbox_2d": [1, 2, 3, 4], "label": "Car"}, {"bbox_2d": [5, 6, 7, 8], "label": "\\"0square"}]'
)


def test_labels_that_were_not_requested_are_named():
    found = answer("objects", CARS, labels=("car", "person"))
    assert [o["label"] for o in found.value] == ["car", '"0square']
    assert found.status == "repaired"
    assert found.note == "label in another case; label not requested: '\"0square'"
    assert [o["label"] for o in answer("objects", CARS).value] == ["Car", '"0square']


@pytest.mark.parametrize("task", ["objects", "tracks", "points", "objects_3d"])
def test_strict_labels_leave_out_others(task: str):
    places = {
        "points": ("point_2d", [1, 2]),
        "objects_3d": ("bbox_3d", [1, 0, 5, 1, 1, 1, 0, 0, 0]),
    }
    key, place = places.get(task, ("bbox_2d", [1, 2, 3, 4]))
    items = [{key: place, "label": label, "track_id": 1} for label in ("car", "cart")]
    settings = {"labels": ("car",), "strict_labels": True}
    found = answer(task, json.dumps(items), VIDEO if task == "tracks" else IMAGE, **settings)
    assert [o["label"] for o in found.value] == ["car"]
    assert "left out: label not requested: 'cart'" in found.note
    only = answer(task, json.dumps(items[1:]), IMAGE, **settings)
    assert (only.value, only.status) == ([], "repaired")


@pytest.mark.parametrize(
    "written",
    [
        "- a: [1, 2, 3, 4]\n- b: [5, 6, 7, 8]",
        "I see two things:\n\n1. **a** (1, 2), (3, 4)\n2. **b** (5, 6), (7, 8)",
        "| label | box |\n|---|---|\n| a | [1, 2, 3, 4] |\n| b | [5, 6, 7, 8] |",
        "[1, 2, 3, 4] a\n[5, 6, 7, 8]: b",
        "a: [1, 2, 3, 4]\nb – [5.0, 6, 7, 8.]",
    ],
)
def test_places_in_lines_of_text_are_read(written: str):
    found = answer("objects", written)
    asked = answer(
        "objects", json.dumps([{"bbox_2d": box, "label": k} for k, box in BOXES.items()])
    )
    assert (found.value, found.status) == (asked.value, "repaired")
    assert found.note == "read from lines of text, not from JSON"


@pytest.mark.parametrize(
    "written",
    [
        "a is at [1, 2, 3, 4] and b at [5, 6, 7, 8].",
        "The box of a, [1, 2, 3, 4], is large",
        "- a: [1, 2, 3]\n- b: [5, 6]",
        "[1, 2, 3, 4]",
    ],
)
def test_places_in_sentences_are_not_guessed(written: str):
    found = answer("objects", written)
    assert (found.value, found.status) == (None, "unparsed")
