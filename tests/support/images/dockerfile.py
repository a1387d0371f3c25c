"""The Dockerfiles of deploy/images, step by step."""

import re
from pathlib import Path
from typing import NamedTuple

from tests.support.paths import ROOT

IMAGES = ROOT / "deploy" / "images"


class Step(NamedTuple):
    """An instruction of a Dockerfile, such as RUN, and what stands after it."""

    name: str
    rest: str


def dockerfile(kind: str) -> Path:
    """The file of the image for `cpu` or `gpu`."""
    return IMAGES / f"{kind}.Dockerfile"


def steps(file: Path) -> list[Step]:
    """All instructions in their order; comments are left out, and continued lines are joined."""
    lines = [line for line in file.read_text().splitlines() if not line.lstrip().startswith("#")]
    text = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [Step(*line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]


def copied(step: Step) -> list[tuple[str, str]]:
    """Source and goal of each path of a COPY step."""
    *sources, goal = step.rest.split()
    return [(source, source if goal == "./" else goal) for source in sources]
