"""The documentation site is built without a warning, and the notebook runs."""

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from tests.support.paths import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def test_the_site_is_built_without_warnings(tmp_path: Path):
    command = [sys.executable, "-W", "ignore", "-m", "sphinx", "-q", "-W", "--keep-going"]
    done = subprocess.run(
        [*command, "-b", "html", str(ROOT / "docs"), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")}
    assert pages <= {path.stem for path in tmp_path.glob("*.html")}
    index = (tmp_path / "index.html").read_text()
    for page in (
        "guide",
        "job-file",
        "output-schema",
        "architecture",
        "design",
        "extend",
        "errors",
    ):
        assert f'href="{page}.html"' in index
    # The browser loads nothing from other servers.
    assert 'src="http' not in index and "@import" not in index


def test_pictures_in_the_docs_are_small():
    pictures = list((ROOT / "docs" / "images").iterdir())
    assert pictures and all(path.stat().st_size < 300_000 for path in pictures)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_tests_named_on_a_page_exist(page: Path):
    folders = "benchmarks|deploy|docs|examples|jobs|pipeline|schemas|scripts|tests"
    for path, test in re.findall(rf"`((?:{folders})/[\w./-]+)(?:::(test_\w+))?`", page.read_text()):
        assert (ROOT / path).exists(), path
        assert not test or f"def {test}(" in (ROOT / path).read_text(), f"{path}::{test}"


def test_the_notebook_runs(demonstrated: Path, monkeypatch: pytest.MonkeyPatch):
    notebook = nbformat.read(ROOT / "docs" / "results.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    monkeypatch.chdir(demonstrated)
    names: dict[str, object] = {}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            exec(cell.source, names)
    assert len(names["results"]) == 52
    assert list(names["events"].columns) == ["uri", "start_seconds", "end_seconds", "caption"]
    assert names["states"][("caption", "ok")] > 40
