"""Raw model output to answers: what engines leave around it, cuts, and nothing that raises."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.tasks import parse
from pipeline.tasks.parse import Answer, parse_answer
from pipeline.tasks.registry import TASKS
from schemas.task import AnswerStatus, Parsed, Question, View

IMAGE = View(media_type="image", width=640, height=480)
VIDEO = View(
    media_type="video",
    width=641,
    height=479,
    pts_seconds=(2.0, 2.5, 3.1, 4.0),
    start_seconds=2.0,
    end_seconds=5.0,
)


def answer(task: str, text: str, view: View = IMAGE, finish_reason: str = "stop") -> Answer:
    return parse_answer(text, Question(task=task), view, finish_reason=finish_reason)


def test_an_unknown_task_is_the_callers_mistake() -> None:
    with pytest.raises(KeyError, match="mood"):
        answer("mood", "fine")


def test_special_tokens_at_both_ends_are_stripped() -> None:
    text = "<|im_start|>assistant\nA cat.<|im_end|>\n<|endoftext|> "
    assert answer("caption", text) == Answer(value="A cat.", status=AnswerStatus.OK)
    assert answer("ocr", "a<|im_end|>b").value == "a<|im_end|>b"
    assert answer("caption", "<|im_end|>" * 50_000).status == "unparsed"


def test_reasoning_is_split_off_at_the_last_closing_tag() -> None:
    text = "<think>\nIt says </think> somewhere.\n</think>\n\nA cat.<|im_end|>"
    result = answer("caption", text)
    assert (result.value, result.status) == ("A cat.", "ok")
    assert result.reasoning == "It says </think> somewhere."


def test_the_chat_template_may_have_opened_the_reasoning() -> None:
    assert answer("caption", "Hm.\n</think>\n\nA cat.").reasoning == "Hm."
    assert answer("caption", "<think>\n\n</think>\n\nA cat.").reasoning is None


@pytest.mark.parametrize(("text", "thinking"), [("<think>Hm, a", False), ("Hm, a", True)])
def test_cut_reasoning_is_not_taken_for_an_answer(text: str, thinking: bool) -> None:
    question = Question(task="caption")
    result = parse_answer(text, question, IMAGE, finish_reason="length", thinking=thinking)
    assert (result.value, result.status, result.reasoning) == (None, "truncated", "Hm, a")


def test_a_cut_answer_is_truncated_and_keeps_what_could_be_read() -> None:
    text = '[{"bbox_2d": [0, 0, 500, 500], "label": "cat"}, {"bbox_2d": [0, 0, 50'
    result = answer("objects", text, finish_reason="length")
    assert [item["label"] for item in result.value] == ["cat"]
    assert result.status == "truncated"
    assert result.note == (
        "cut at max_new_tokens = 512; the JSON is cut; its last, incomplete part was left out"
    )
    result = answer("caption", "A cat on a", finish_reason="length")
    assert (result.value, result.status) == ("A cat on a", "truncated")


@pytest.mark.parametrize(
    "broken_parser",
    [
        lambda text, question, view: 1 / 0,
        lambda text, question, view: Parsed(value=7, status=AnswerStatus.OK),
        lambda text, question, view: Parsed(value="\ud800", status=AnswerStatus.OK),
    ],
)
def test_a_bug_in_a_parser_costs_one_answer(
    broken_parser: Callable[..., Parsed], monkeypatch: pytest.MonkeyPatch
) -> None:
    task = dataclasses.replace(TASKS["caption"], parse=broken_parser)
    monkeypatch.setitem(parse.TASKS, "caption", task)
    result = answer("caption", "A cat.")
    assert (result.value, result.status) == (None, "unparsed")
    assert str(result.note).startswith("the parser failed: ")


# Properties

FEW = settings(max_examples=20)

TEXT = st.text(st.characters(exclude_categories=[]), max_size=12)  # lone surrogates and NUL too
NUMBER = (
    st.integers(-50, 1100)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.integers(-(10**400), 10**400)
)
KEY = st.sampled_from(
    [
        *("bbox_2d", "bbox", "x1", "label", "name", "text_content", "text", "time", "objects"),
        *("start", "end", "timestamp", "caption", "event", "events", "00:02.00 - 00:03.50"),
    ]
)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBER | TEXT | st.lists(NUMBER, min_size=4, max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEY | TEXT, inner, max_size=4),
    max_leaves=16,
)
BOX = st.lists(st.integers(0, 1000), min_size=4, max_size=4)
CAPTION = st.text("ab :,.\"'\\\n日", min_size=1, max_size=12).filter(str.strip)
BOXED = {
    "objects": st.fixed_dictionaries(
        {"bbox_2d": BOX, "label": CAPTION}, optional={"time": st.floats(2.0, 5.0)}
    ),
    "text_spans": st.fixed_dictionaries(
        {"bbox_2d": BOX, "text_content": CAPTION}, optional={"time": st.floats(2.0, 5.0)}
    ),
    "events": st.fixed_dictionaries(
        {"start": st.floats(2.0, 3.5), "end": st.floats(3.5, 5.0), "caption": CAPTION}
    ),
}
MUTATION = st.tuples(
    st.integers(0, 400), st.integers(0, 5), st.sampled_from(["", '"', "'", "[", "]", "{", "}", ","])
)


def check(task: str, text: str, view: View, finish_reason: str = "stop") -> Answer:
    """Parse, and check all that must hold whatever the model wrote."""
    result = answer(task, text, view, finish_reason)
    assert not str(result.note).startswith("the parser failed")
    column = pa.array([result.value], TASKS[task].column.type)
    column.validate(full=True)
    pa.array([result.note, result.reasoning], pa.string())
    assert (result.note is None) == (result.status == "ok")
    for element in column.to_pylist()[0] or [] if isinstance(result.value, list) else []:
        if task in ("events", "moments"):
            assert 2.0 <= element["start_seconds"] <= element["end_seconds"] <= 5.0
        elif task in ("objects", "text_spans"):
            assert element["pts_seconds"] in (None, *view.pts_seconds)
            for box, width, height in (
                (element["box"], view.width, view.height),
                (element["box_1000"], 1000, 1000),
            ):
                if box is not None:
                    assert 0 <= box["x1"] <= box["x2"] <= width
                    assert 0 <= box["y1"] <= box["y2"] <= height
    return result


def views(task: str) -> list[View]:
    return [view for view in (IMAGE, VIDEO) if view.media_type in TASKS[task].media_types]


@given(
    text=TEXT | st.text("[]{}\"':, 0123x`\n\\", max_size=60),
    reason=st.sampled_from(["stop", "length"]),
)
def test_no_text_raises(text: str, reason: str) -> None:
    for task in TASKS:
        for view in views(task):
            check(task, text, view, reason)


@given(value=JSON)
def test_no_json_raises(value: Any) -> None:
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False), str(value)):
        for task in TASKS:
            for view in views(task):
                check(task, text, view)


@pytest.mark.parametrize("task", BOXED)
@given(data=st.data())
def test_valid_answers_are_ok_and_complete(task: str, data: st.DataObject) -> None:
    elements = data.draw(st.lists(BOXED[task], max_size=4))
    text = json.dumps(elements, ensure_ascii=data.draw(st.booleans()))
    view = VIDEO if task == "events" else IMAGE
    result = check(task, f"```json\n{text}\n```" if data.draw(st.booleans()) else text, view)
    assert len(result.value) == len(elements)
    assert json.loads(text) == elements
    if task == "events":
        assert result.status == "ok"


@pytest.mark.parametrize("task", BOXED)
@given(data=st.data())
def test_mutated_answers_do_not_raise(task: str, data: st.DataObject) -> None:
    text = json.dumps(data.draw(st.lists(BOXED[task], max_size=4)))
    for position, length, inserted in data.draw(st.lists(MUTATION, min_size=1, max_size=3)):
        at = position % (len(text) + 1)
        text = text[:at] + inserted + text[at + length :]
    check(task, text, VIDEO)


@pytest.mark.parametrize("task", BOXED)
@FEW
@given(data=st.data())
def test_an_answer_cut_anywhere_keeps_exactly_its_complete_elements(
    task: str, data: st.DataObject
) -> None:
    elements = data.draw(st.lists(BOXED[task], min_size=1, max_size=3))
    parts = [json.dumps(element) for element in elements]
    opening = data.draw(st.sampled_from(["[", "```json\n[\n\t"]))
    text = opening + ", ".join(parts) + "]"
    ends = [len(opening + ", ".join(parts[: n + 1])) for n in range(len(parts))]
    view = VIDEO if task == "events" else IMAGE
    whole = check(task, text, view).value
    for at in range(len(text)):
        num_complete = sum(end <= at for end in ends)
        result = check(task, text[:at], view, "length")
        assert result.status == "truncated"
        assert result.value == (whole[:num_complete] or None)


@FEW
@given(captions=st.lists(CAPTION, min_size=1, max_size=3))
def test_events_by_their_times_cut_anywhere_keep_exactly_the_complete_ones(
    captions: list[str],
) -> None:
    parts = [f'"00:02.00 - 00:03.50": {json.dumps(caption)}' for caption in captions]
    text = "{" + ", ".join(parts) + "}"
    ends = [len("{" + ", ".join(parts[: n + 1])) for n in range(len(parts))]
    whole = check("events", text, VIDEO).value
    assert [event["caption"] for event in whole] == [caption.strip() for caption in captions]
    for at in range(len(text)):
        num_complete = sum(end <= at for end in ends)
        result = check("events", text[:at], VIDEO, "length")
        assert result.value == (whole[:num_complete] or None)
