"""The wheel has the product, its specs and the demo's model, and nothing of the laboratory."""

import fnmatch
import tomllib

from tests.support.paths import ROOT

LABORATORY = ("scripts", "tests", "benchmarks", "examples", "docs")
LABORATORY_FILES = ("render_dataset*", "tiny_*", "plan_file.py", "demo-model-*", "signs*", "fonts*")


def wheel_files() -> set[str]:
    """What setuptools packs, by ``[tool.setuptools]``: modules of packages, and package data."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = settings["packages"]["find"]["include"]
    packages = [
        path.parent
        for path in ROOT.glob("[a-z]*/**/__init__.py")
        if any(
            fnmatch.fnmatch(".".join(path.parent.relative_to(ROOT).parts), pattern)
            for pattern in patterns
        )
    ]
    found = {module for package in packages for module in package.glob("*.py")}
    found |= {ROOT / f"{module}.py" for module in settings["py-modules"]}
    for package, globs in settings["package-data"].items():
        folder = ROOT.joinpath(*package.split("."))
        found |= {path for pattern in globs for path in folder.glob(pattern)}
    return {path.relative_to(ROOT).as_posix() for path in found}


def test_the_wheel_has_what_the_product_needs():
    files = wheel_files()
    for name in (
        "_reelscribe.py",
        "jobs/cli/main.py",
        "jobs/specs/demo.yaml",
        "jobs/demo/archive.py",
        "jobs/demo_model/config.json",
        "pipeline/stages/graph.py",
        "schemas/job/json_schema.py",
    ):
        assert name in files


def test_the_wheel_has_no_laboratory():
    for file in wheel_files():
        assert file.split("/")[0] not in LABORATORY
        name = file.rpartition("/")[2]
        if file in ("jobs/plan/plan_file.py", "pipeline/plan/plan_file.py"):  # of the product
            continue
        assert not any(fnmatch.fnmatch(name, pattern) for pattern in LABORATORY_FILES), file
