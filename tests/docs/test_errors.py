"""The page of errors has a section for each error, and for nothing else."""

import re
from collections.abc import Iterator

import pytest

from schemas.errors import TRANSIENT, ErrorType, UserError
from schemas.job.job import Job
from tests.support.paths import ROOT

PAGE = (ROOT / "docs" / "errors.md").read_text()
SECTIONS = dict(re.findall(r"^### `([^`\n]*)`\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL))


def user_errors(error: type[UserError] = UserError) -> Iterator[type[UserError]]:
    """The classes below UserError; other tests define some of their own."""
    for child in error.__subclasses__():
        if child.__module__ == UserError.__module__:
            yield child
            yield from user_errors(child)


def test_each_error_has_its_section_and_each_section_its_error():
    codes = [error.code for error in user_errors()]
    assert len(codes) == len(set(codes))
    assert set(SECTIONS) == {*codes, *(error.value for error in ErrorType)}
    assert len(re.findall("^### ", PAGE, re.MULTILINE)) == len(SECTIONS)


def test_each_user_error_is_in_the_drawn_tree_with_its_code():
    tree = dict(re.findall(r"(?:├──|└──) (\w+) +([\w-]+): ", PAGE))
    assert tree == {error.__name__: error.code for error in user_errors()}


@pytest.mark.parametrize("error", ErrorType, ids=str)
def test_a_unit_error_has_causes_and_a_remedy_and_is_marked_if_it_may_pass(error: ErrorType):
    text = SECTIONS[error.value]
    assert "\n- Causes: " in text and "\n- Do: " in text
    assert ("*Transient.*" in text) == (error in TRANSIENT)


def test_settings_named_on_the_page_exist():
    sections = "input|model|resources|budget|sampling|generation|limits|cost"
    for name in re.findall(rf"`((?:{sections})\.\w+)`", PAGE):
        section, key = name.split(".")
        fields = (Job.model_fields[section].annotation).model_fields
        assert key in fields, name
