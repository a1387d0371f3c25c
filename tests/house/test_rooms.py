"""The house rules that can be counted: rooms, files, lines, parameters, imports of tests."""

import ast
from pathlib import Path

import pytest

from tests.support.paths import ROOT

PRODUCT = ("schemas", "pipeline", "jobs")
MAX_FILES = 12
MAX_LINES = 300
MAX_PARAMETERS = 6
LONG_ROOMS = {"pipeline/tasks"}
"""A list of tasks may be longer."""


def files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


ROOMS = sorted({path.parent for path in files(*PRODUCT)})


@pytest.mark.parametrize("room", ROOMS, ids=name)
def test_a_room_has_few_files_and_says_what_it_is_for(room: Path):
    modules = [path for path in room.glob("*.py") if path.name != "__init__.py"]
    assert len(modules) <= MAX_FILES or name(room) in LONG_ROOMS
    docstring = ast.get_docstring(ast.parse((room / "__init__.py").read_text()))
    assert docstring, "the room's __init__.py says what enters, what leaves, what to read first"
    assert len(docstring.splitlines()) <= 8


@pytest.mark.parametrize("path", files(*PRODUCT, "scripts", "examples"), ids=name)
def test_a_file_is_short(path: Path):
    assert len(path.read_text().splitlines()) <= MAX_LINES


@pytest.mark.parametrize("path", files(*PRODUCT, "scripts", "examples"), ids=name)
def test_functions_take_few_parameters(path: Path):
    """Parameters of commands are their options; ``self`` and ``cls`` do not count."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if any("click" in ast.unparse(decorator) for decorator in node.decorator_list):
            continue
        if any(".command(" in ast.unparse(decorator) for decorator in node.decorator_list):
            continue
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        counted = [a.arg for a in arguments if a.arg not in ("self", "cls")]
        assert len(counted) <= MAX_PARAMETERS, f"{node.name}({', '.join(counted)})"


@pytest.mark.parametrize("path", files("tests"), ids=name)
def test_a_test_uses_public_names_and_no_other_test(path: Path):
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or node.module is None:
            continue
        assert ".test_" not in f".{node.module}", (
            f"imports {node.module}: share it in tests/support"
        )
        if node.module.split(".")[0] in PRODUCT:
            private = [alias.name for alias in node.names if alias.name.startswith("_")]
            assert not private, f"imports {private} of {node.module}"


def test_nothing_has_a_main_block():
    """Commands and children are entered by ``_reelscribe``."""
    found = {
        name(path)
        for path in files(*PRODUCT)
        if any(
            isinstance(node, ast.If) and "__main__" in ast.unparse(node.test)
            for node in ast.parse(path.read_text()).body
        )
    }
    assert not found


def test_the_product_imports_nothing_that_is_not_installed_with_it():
    """``scripts``, ``tests`` and the like are not in the wheel."""
    apart = {"scripts", "tests", "benchmarks", "examples"}
    for path in files(*PRODUCT):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not apart & {module.split(".")[0] for module in modules}, name(path)
