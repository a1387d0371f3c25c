"""Architecture and design name code that exists, every room, and the imports that lint allows."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

from tests.support.paths import ROOT

PAGE = (ROOT / "docs" / "architecture.md").read_text()
DESIGN = (ROOT / "docs" / "design.md").read_text()
PLACES = sorted(set(re.findall(r"`([\w/]+\.py)::([\w.]+)`", PAGE + DESIGN)))
ROOMS = sorted(
    {
        path.parent.relative_to(ROOT).as_posix()
        for package in ("schemas", "pipeline", "jobs")
        for path in (ROOT / package).rglob("*.py")
    }
)


def defined_names(path: Path) -> set[str]:
    """Names of a module's functions, classes and values; a method is ``Class.method``."""
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
        if isinstance(node, ast.ClassDef):
            methods = (part for part in node.body if isinstance(part, ast.FunctionDef))
            found |= {f"{node.name}.{method.name}" for method in methods}
    return found


@pytest.mark.parametrize(("path", "name"), PLACES, ids=lambda part: part)
def test_a_named_function_exists(path: str, name: str):
    assert (ROOT / path).is_file()
    assert name in defined_names(ROOT / path)


def test_every_step_of_both_ways_names_a_function():
    for title in ("The way of one image", "The way of one long video"):
        (section,) = re.findall(rf"^## {title}\n(.*?)^## ", PAGE, re.MULTILINE | re.DOTALL)
        steps = re.split(r"^\d+\. ", section, flags=re.MULTILINE)[1:]
        assert len(steps) >= 10
        for step in steps:
            assert re.search(r"`[\w/]+\.py::[\w.]+`", step), step


def test_files_named_without_a_function_exist():
    for path in re.findall(r"`((?:schemas|pipeline|jobs|scripts|tests)/[\w./-]+)`", PAGE + DESIGN):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_has_a_row(room: str):
    assert f"\n| `{room}/` |" in PAGE


def test_the_layers_are_those_that_lint_checks():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    for contract in contracts["contracts"]:
        if "containers" in contract:
            (package,) = contract["containers"]
            drawn = re.findall(rf"^```text\n{package}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
            assert [line.strip() for line in drawn[0].splitlines()] == contract["layers"]
