"""No reasoning in a typed column, whatever the model writes and whichever task it answers."""

import json
import re
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.output.rows import annotation_row
from pipeline.stages.reask import ask_again
from pipeline.tasks.parse import parse_answer, split_reasoning
from pipeline.tasks.registry import TASKS
from schemas.job.generation import Generation
from schemas.task import Question
from tests.support.adversarial_answers import QUESTIONS
from tests.support.run_key import run_key
from tests.support.units import answer, unit
from tests.support.views import IMAGE

SECRET = "zebra"
"""A word of the reasoning that no answer has."""
BEGIN, END = "<think>", "</think>"
QUOTED_END = "\x01"
"""Becomes ``</think>`` where a tag follows: without one it cannot be known as a quotation."""
TAG = re.compile("</?think>")
CAPTION = Question(task="caption")


def simulated(name: str, number: int) -> str:
    """An answer that the task reads."""
    question, view = QUESTIONS[name]
    tool = json.dumps([{"name": "click", "parameters": {}}])
    if question.task == "tool_calls":
        question = Question(task="tool_calls", tools=tool)
    return TASKS[question.task].simulate(question, view, Random(number))


@st.composite
def thoughts(draw) -> str:
    """Reasoning: the secret among words, drafts of answers and quoted tags."""
    words = ["so", "\n\n", '{"a": [', '"}]', BEGIN, QUOTED_END, "<tool_call>", "```json\n"]
    drawn = draw(st.lists(st.sampled_from(words), max_size=5))
    at = draw(st.integers(0, len(drawn)))
    return " ".join([*drawn[:at], SECRET, *drawn[at:]])


@st.composite
def outputs(draw, name: str) -> tuple[str, bool]:
    """What a model wrote, with blocks of reasoning anywhere, and whether the prompt opened one."""
    opened = draw(st.booleans())
    whole = simulated(name, draw(st.integers(0, 50)))
    cuts = sorted(draw(st.lists(st.integers(0, len(whole)), max_size=2)))
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    # The first block may begin without a tag: opened by the prompt, or by nobody.
    text = draw(thoughts()) + END if opened or draw(st.booleans()) else ""
    for k, piece in enumerate(pieces):
        text += f"{BEGIN}{draw(thoughts())}{END}" * (k > 0 or draw(st.booleans())) + piece
    if draw(st.booleans()):
        text += BEGIN + draw(thoughts()) + draw(st.sampled_from([END, ""]))
    if draw(st.booleans()):  # cut at max_new_tokens
        text = text[: draw(st.integers(0, len(text)))]
        if not opened and not TAG.search(text):
            text = text.replace(SECRET, "")  # reasoning that no tag marks cannot be known
    last = max(text.rfind(BEGIN), text.rfind(END))
    return text[: last + 1].replace(QUOTED_END, END) + text[last + 1 :].replace(
        QUOTED_END, ""
    ), opened


@pytest.mark.parametrize("name", QUESTIONS)
@settings(max_examples=100)
@given(data=st.data())
def test_no_reasoning_is_in_a_value(name: str, data: st.DataObject):
    text, opened = data.draw(outputs(name))
    question, view = QUESTIONS[name]
    read = parse_answer(text, question, view, thinking=opened)
    assert SECRET not in json.dumps(read.value, default=str)
    assert SECRET not in (read.note or "")
    assert (SECRET in text) == (SECRET in (read.reasoning or ""))


@settings(max_examples=300)
@given(data=st.data())
def test_text_that_is_in_no_answer_is_in_the_reasoning(data: st.DataObject):
    """And a note says so, unless it is one block at the beginning."""
    text, opened = data.draw(outputs("caption"))
    read = parse_answer(text, CAPTION, IMAGE, thinking=opened)
    said = read.value or ""
    assert words(text) == words(read.reasoning or "") + words(said)
    begun = opened or text.startswith(BEGIN)
    if read.reasoning and (read.value is None or not begun):
        assert read.note and (read.status == "repaired") == (read.value is not None)


def words(text: str) -> list[str]:
    """The text's words, without tags."""
    return TAG.sub(" ", text).split()


@pytest.mark.parametrize("name", QUESTIONS)
@pytest.mark.parametrize("opened", [False, True])
def test_an_answer_after_reasoning_is_read_as_alone(name: str, opened: bool):
    question, view = QUESTIONS[name]
    for number in range(10):
        said = simulated(name, number)
        alone = parse_answer(said, question, view)
        text = f"{'' if opened else BEGIN}\n{SECRET} [1, 2]\n{END}\n\n{said}"
        read = parse_answer(text, question, view, thinking=opened)
        assert (read.value, read.status, read.note) == (alone.value, alone.status, alone.note)
        assert read.reasoning == f"{SECRET} [1, 2]"


NO_ANSWER = "the reasoning was not closed"
NOT_CLOSED = "<think> is not closed"
BEFORE = "before the last </think>"


@pytest.mark.parametrize(
    ("text", "opened", "expected", "note"),
    [
        ("A cat.", False, (None, "A cat."), None),
        ("", False, (None, ""), None),
        ("", True, (None, None), NO_ANSWER),
        ("<think>\n\n</think>\n\nA cat.", False, (None, "A cat."), None),
        ("</think>A cat.", False, (None, "A cat."), None),  # nothing before it
        ("hm</think>A cat.", True, ("hm", "A cat."), None),
        ("so </think> and</think>A cat.", True, ("so </think> and", "A cat."), None),
        ("hm</think>A cat.", False, ("hm", "A cat."), BEFORE),  # an end without a beginning
        ("A <think> tag", False, ("A <think> tag", None), NOT_CLOSED),  # quoted by an answer
        ("It says </think>", False, ("It says", ""), BEFORE),
        ("<think>hm</think>A cat.", True, ("hm", "A cat."), None),  # opened twice
        ("<think>hm", False, ("hm", None), NO_ANSWER),
        ("A cat.<think>hm", False, ("A cat.<think>hm", None), NOT_CLOSED),
        ("A dog.<think>b</think>A cat.", False, ("A dog.<think>b", "A cat."), BEFORE),
        # Several blocks: the answer is after the last one.
        ("a</think>A dog.<think>b</think>A", True, ("a</think>A dog.<think>b", "A"), BEFORE),
        ("<think>a</think>A dog.<think>b", False, ("a</think>A dog.<think>b", None), NOT_CLOSED),
    ],
)
def test_the_forms(text: str, opened: bool, expected: tuple, note: str | None):
    found = split_reasoning(text, is_open=opened)
    assert (found.reasoning, found.answer) == expected
    assert found.note is None if note is None else note in found.note


@pytest.mark.parametrize(
    ("reason", "status"), [("length", "truncated"), ("loop", "looped"), ("stop", "unparsed")]
)
@pytest.mark.parametrize("name", QUESTIONS)
def test_reasoning_without_an_end_is_no_answer(name: str, reason: str, status: str):
    question, view = QUESTIONS[name]
    text = f"{SECRET} {simulated(name, 1)}"
    read = parse_answer(text, question, view, finish_reason=reason, thinking=True)
    assert (read.value, read.status, read.reasoning) == (None, status, text.strip())
    assert "the reasoning was not closed" in read.note


def test_reasoning_is_in_no_column_of_the_row_but_its_own():
    raw = answer("caption", f"{SECRET}</think>A cat.", opens_reasoning=True)
    row = annotation_row(unit(raw), {"caption": CAPTION}, run_key("r", "r"))
    (response,) = row.pop("responses")
    assert SECRET not in json.dumps(row, default=str)
    assert {key for key, value in response.items() if SECRET in str(value)} == {
        "raw_text",
        "reasoning",
    }


def test_an_answer_that_is_all_reasoning_is_generated_again():
    first = [unit(answer("caption", f"<think>{SECRET}"))]
    second = unit(answer("caption", "A cat."))
    (again,) = ask_again(
        lambda units, generation: [second], first, first, {"caption": CAPTION}, Generation()
    )
    assert again.answers[0].raw_text == "A cat."
    assert parse_answer(again.answers[0].raw_text, CAPTION, IMAGE).status == "ok"
