"""Run the checks on a GPU: `python -m tests.gpu`.

Prints a table and writes `build/gpu/checks.json`; the exit code is 1 if a figure is out of its
limits, and 2 if a package is too old. Without a GPU it says so, and checks nothing.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from tests.gpu.checks import CASES, CHECKS, measure
from tests.gpu.figures import NotHere, Place
from tests.support.machine import machine, wrong_packages
from tests.support.paths import ROOT


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="the size of the ordinary tests")
    parser.add_argument("--only", help="names of checks, with commas between")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu" / "checks.json")
    options = parser.parse_args(argv)
    chosen = options.only.split(",") if options.only is not None else list(CHECKS)
    if unknown := [name for name in chosen if name not in CHECKS]:
        parser.error(f"--only: no check {', '.join(unknown)}; there are {', '.join(CHECKS)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        print("checks: nothing was checked, torch sees no GPU here (--device cpu: on the CPU)")
        return 0
    if wrong := wrong_packages():
        print(f"checks: {', '.join(wrong)}: pip install -r tests/gpu/requirements.txt")
        return 2
    about = machine(options.device)
    print("checks on", ", ".join(f"{key} {value}" for key, value in about.items()))
    rows = [row for name, dtype in CASES if name in chosen for row in run(name, dtype, options)]
    num_wrong = sum(not row.get("is_right", True) for row in rows)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"machine": about, "figures": rows}, indent=2) + "\n")
    print(f"  {num_wrong} of {len(rows)} figures are wrong -> {options.out}")
    return 1 if num_wrong else 0


def run(name: str, dtype: torch.dtype, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Run a check, and print its figures; returns them as rows of the JSON file."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        place = Place(
            device=torch.device(options.device),
            dtype=dtype,
            is_small=options.small,
            folder=Path(folder),
        )
        case = {"check": name, "dtype": place.dtype_name}
        try:
            figures = measure(name, place)
        except NotHere as reason:
            print(f"  {name:12} {place.dtype_name:9} not checked: {reason}", flush=True)
            return [case | {"missing": str(reason)}]
        except Exception as error:  # the other checks must still run
            print(f"  {name:12} {place.dtype_name:9} WRONG: {type(error).__name__}: {error}")
            return [case | {"error": f"{type(error).__name__}: {error}", "is_right": False}]
    seconds = round(time.perf_counter() - started, 1)
    for figure in figures:
        verdict = "ok" if figure.is_right else "WRONG"
        print(
            f"  {name:12} {place.dtype_name:9} {figure.what:48} {figure.value:10.4g}  "
            f"{figure.wanted:22} {verdict}",
            flush=True,
        )
    return [
        case
        | {"what": figure.what, "value": figure.value, "wanted": figure.wanted}
        | {"is_right": figure.is_right, "seconds_of_the_check": seconds}
        for figure in figures
    ]


if __name__ == "__main__":
    # Before torch looks for GPUs; the Trainer would take all. Not where a test imports this file.
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
    sys.exit(main())
