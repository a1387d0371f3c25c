"""Words that the house does not use, in the product and its pages. CONTRIBUTING.md says why."""

import re
from pathlib import Path

import pytest

from tests.support.paths import ROOT

UNWANTED = re.compile(
    r"what is said of|that was then|be it (?:that|one|a)|by what may|stretch(?:es)?\b"
    r"|at the (?:most|least)\b|(?:is|are) told|\bmended|comes to the same|anew\b|so many\b"
    r"|\bhas it that\b"
    # Reelscribe is not on PyPI, where anyone may register its name.
    r"|pip install .?reelscribe",
    re.IGNORECASE,
)
PAGES = [
    *(ROOT / folder for folder in ("README.md", "CONTRIBUTING.md", "deploy/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted(
        path for room in ("schemas", "pipeline", "jobs") for path in (ROOT / room).rglob("*.py")
    ),
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_plain_words(page: Path):
    lines = page.read_text().splitlines()
    assert [
        f"{k}: {line.strip()}" for k, line in enumerate(lines, 1) if UNWANTED.search(line)
    ] == []
