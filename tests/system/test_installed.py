"""What `make demo` installs is enough for the README's other commands; tests have more."""

import importlib.metadata
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.pages import blocks
from tests.support.paths import ROOT

RUN = '''
import json, sys, sysconfig

ABSENT = set(json.loads(sys.argv[1]))
FINDERS = list(sys.meta_path)
SITE = sysconfig.get_path("purelib")

class Present:
    """Finds what others do, but ABSENT; copies that a package brings with it are there."""
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        for finder in FINDERS:
            spec = finder.find_spec(name, path, target)
            at = f"{SITE}/{top}"
            if spec and not (top in ABSENT and (spec.origin or at).startswith(at)):
                return spec

    def find_distributions(self, context):
        for finder in FINDERS:
            yield from getattr(finder, "find_distributions", lambda context: ())(context)

sys.meta_path[:] = [Present()]
from jobs.cli.main import main
main(sys.argv[2:])
'''


def closure(name: str, extras: set[str]) -> set[str]:
    """Names of the distributions that pip installs for one, with those it needs."""
    found, left = set[str](), [(name, frozenset(extras))]
    seen = set(left)
    while left:
        name, extras = left.pop()
        found.add(canonicalize_name(name))
        try:
            needed = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:  # of another platform, or not needed here
            continue
        for one in map(Requirement, needed):
            holds = any(
                one.marker is None or one.marker.evaluate({"extra": extra})
                for extra in (*extras, "")
            )
            key = (one.name, frozenset(one.extras))
            if holds and key not in seen:
                seen.add(key)
                left.append(key)
    return found


def absent_modules() -> list[str]:
    """Top-level modules that are here, but not after `make demo`."""
    makefile = (ROOT / "Makefile").read_text()
    (extras,) = re.findall(r"^EXTRAS := (\w+)", makefile, re.MULTILINE)
    installed = closure("reelscribe", set(extras.split(","))) | {"pip", "setuptools"}
    return sorted(
        module
        for module, owners in importlib.metadata.packages_distributions().items()
        if not installed & set(map(canonicalize_name, owners))
    )


def test_the_readmes_commands_need_no_more_than_make_demo_installs(demonstrated: Path):
    absent = absent_modules()
    assert {"pytest", "peft", "moto"} <= set(absent)
    assert not {"ray", "torch", "jiwer", "pycocotools", "jobs"} & set(absent)
    lines = [line for block in blocks(ROOT / "README.md", "bash") for line in block.splitlines()]
    commands = [line.partition("reelscribe ")[2] for line in lines if "reelscribe " in line]
    looked_at = [command for command in commands if command.split()[0] != "annotate"]
    assert len(looked_at) >= 4
    for command in looked_at:
        ran = subprocess.run(
            [sys.executable, "-c", RUN, json.dumps(absent), *shlex.split(command)],
            cwd=demonstrated,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert ran.returncode == 0, (command, ran.stdout, ran.stderr)


def test_a_module_that_is_absent_is_missed(tmp_path: Path):
    ran = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(["click"]), "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ran.returncode == 1
    assert "No module named 'click'" in ran.stderr
