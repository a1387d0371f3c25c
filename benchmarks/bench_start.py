"""Seconds from the command to the plan, the first row and the end of the demo's job, both ways.

Once without Ray, as small jobs run, and once with ``resources.ray: always``. Everything starts
cold: the command, its processes, the model.

    python benchmarks/bench_start.py [--rounds N] [--small]
"""

import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT)]

from benchmarks.common import annotate, counting, parser, watching, write_results  # noqa: E402

WAYS = {"without Ray": "auto", "on Ray": "always"}
SEEN = {"plan": "runs/*/plan/*.parquet", "first_row": "annotations*/*/part-*.parquet"}


def main(argv: list[str] | None = None) -> None:
    from benchmarks.render_media import render_some
    from jobs.demo.archive import render_archive

    arguments = parser(__doc__)
    arguments.add_argument("--rounds", type=int, default=3)
    options = arguments.parse_args(argv)
    small = options.small
    results: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "archive"
        if small:
            render_some(archive, 0, small=True)
        else:
            render_archive(archive)
        for k in range(1 if small else options.rounds):
            for way, setting in WAYS.items():
                found = run(archive, Path(folder) / f"{setting}-{k}", setting, small=small)
                results[way].append(found)
                figures = ", ".join(f"{name} {value}" for name, value in found.items())
                print(f"start: {way}: {figures}", flush=True)
    write_results("start", results, small=small)


def run(archive: Path, output: Path, setting: str, *, small: bool) -> dict[str, float]:
    """Run the demo's job; returns wall seconds, and CPU seconds of all its processes."""
    started = time.perf_counter()
    found: dict[str, float] = {}

    def look() -> None:
        for name, pattern in SEEN.items():
            if name not in found and next(output.glob(pattern), None) is not None:
                found[name] = round(time.perf_counter() - started, 1)

    with counting() as spent, watching(look, 0.1):
        annotate(
            str(ROOT / "jobs/specs/demo.yaml"),
            *("--input", str(archive), "--output", str(output)),
            *("--model", str(ROOT / "jobs/demo_model"), "--set", f"resources.ray={setting}"),
            small=small,
        )
    end, cpu = round(spent.wall, 1), round(spent.cpu, 1)
    return found | {"end": end, "cpu": cpu, "processes": len(spent.by_process)}


if __name__ == "__main__":
    main()
