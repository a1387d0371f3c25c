"""A Python that sees only some of the installed packages, and what these require."""

import importlib.metadata
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement

from tests.support.paths import ROOT


def link_packages(folder: Path, names: Iterable[str]) -> None:
    """Link installed packages, with all that they require, into a folder.

    Raises:
        PackageNotFoundError: one of them is not installed.
    """
    for distribution in _with_requirements(names).values():
        for name in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            link = folder / name
            if not link.exists():
                link.symlink_to(Path(str(distribution.locate_file(name))))


def run_bare(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python with the packages in a folder, and this project."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    return subprocess.run(
        [sys.executable, "-S", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )


def _with_requirements(names: Iterable[str]) -> dict[str, importlib.metadata.Distribution]:
    found: dict[str, importlib.metadata.Distribution] = {}
    waiting = list(names)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        found[name] = importlib.metadata.distribution(name)
        for line in found[name].requires or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
    return found
