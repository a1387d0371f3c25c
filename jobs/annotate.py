"""``reelscribe annotate``: run a job to its end, or go on where it was interrupted."""

import dataclasses
import sys
import time
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.text import Text

from jobs.cluster import actor_errors, connected, pools
from jobs.plan import Opened, make_plan, open_job, print_plan
from jobs.progress import Progress, print_summary
from jobs.runs import Run
from pipeline.build import build_annotate
from pipeline.decode import torchcodec_problem
from pipeline.write import annotations_folder, committed
from schemas.errors import ResourceError
from schemas.job import Job
from schemas.unit import UnitStatus

_FILES_PER_RUN = 16
"""A small run commits at least about so many files, so that its progress can be seen."""


def run(job: Job, console: Console) -> Run:
    """Plan if needed, annotate every unit that has no row yet, and print a summary.

    Raises:
        UserError: with one clear message, before work starts.
    """
    opened = open_job(job)
    job = opened.job
    for change in opened.changes:
        console.print(Text(f"new run: {change}"))
    if opened.run.status == "complete":
        _print_run(opened.run, opened, console)
        return opened.run
    started = time.monotonic()
    _check_decoder(job)
    current = dataclasses.replace(opened.run, starts=opened.run.starts + 1)
    current.save(job, opened.storage)  # an output that cannot be written is noticed here
    with connected(console):
        fitted = pools(job.resources)
        plan = make_plan(opened, console)
        print_plan(plan, opened, console)
        done = list(committed(job.output, current.key, opened.storage).rows)
        todo = plan.filter(pc.invert(pc.is_in(plan["unit_id"], pa.array(done, pa.string()))))
        if done:
            console.print(f"{len(done):,} units are done already, {todo.num_rows:,} to do")
        if todo.num_rows:
            units_per_file = min(job.resources.units_per_file, -(-plan.num_rows // _FILES_PER_RUN))
            blocks = in_blocks(todo, units_per_file)
            dataset = build_annotate(
                blocks, job, current.key, opened.storage, fitted, units_per_file
            )
            _follow(dataset, todo, console)
    return _finish(opened, current, plan, time.monotonic() - started, console)


def in_blocks(units: pa.Table, most: int) -> list[pa.Table]:
    """Cut the plan, longest first, into pieces of about equal cost and at most ``most`` units."""
    costs = units["predicted_cost"].to_pylist()
    target = max(sum(costs) * most / max(len(costs), 1), max(costs, default=0.0))
    blocks, start, cost = [], 0, 0.0
    for k, unit_cost in enumerate(costs):
        if k > start and (cost + unit_cost > target or k - start >= most):
            blocks.append(units.slice(start, k - start))
            start, cost = k, 0.0
        cost += unit_cost
    blocks.append(units.slice(start))
    return blocks


def _follow(dataset: Any, todo: pa.Table, console: Console) -> None:
    """Run the chain, showing progress by what was committed."""
    total_cost = float(pc.sum(todo["predicted_cost"]).as_py())
    with (
        Progress(console, "annotating", total_units=todo.num_rows, total_cost=total_cost) as bar,
        actor_errors(),
    ):
        bar.status("starting decoders and engines")
        for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
            rows = batch.to_pylist()
            bar.advance(
                units=len(rows),
                cost=sum(row["predicted_cost"] for row in rows),
                failed=sum(row["status"] == UnitStatus.FAILED for row in rows),
                tokens=sum(row["num_output_tokens"] for row in rows),
            )


def _finish(opened: Opened, run: Run, plan: pa.Table, seconds: float, console: Console) -> Run:
    """Check that every unit has exactly one row, close the run, and print what came out."""
    found = committed(opened.job.output, run.key, opened.storage)
    planned = set(plan["unit_id"].to_pylist())
    missing = planned - set(found.rows)
    surplus = [unit for unit, rows in found.rows.items() if rows > 1 or unit not in planned]
    if missing or surplus:
        raise ResourceError(
            f"{run.run_id}: {len(missing)} units have no row and {len(surplus)} have one too many; "
            "run the same command again for the missing ones"
        )
    counts = {
        "units": plan.num_rows,
        "status": dict(found.status),
        "errors": dict(found.errors),
        "answers": dict(found.answers),
        "decoders": dict(found.decoders),
        **{name: round(value, 3) for name, value in found.sums.items()},
    }
    finished = dataclasses.replace(
        run, status="complete", seconds=round(run.seconds + seconds, 3), counts=counts
    )
    finished.save(opened.job, opened.storage)
    _print_run(finished, opened, console)
    return finished


def _print_run(run: Run, opened: Opened, console: Console) -> None:
    counts = run.counts
    lines = [
        ("units", f"{counts['units']:,}: {_listed(counts['status'])}"),
        ("answers", _listed(counts["answers"])),
        ("errors", _listed(counts["errors"])),
        ("decoded by", _listed(counts["decoders"]) + _decoder_remark(counts["decoders"])),
        (
            "tokens",
            f"{counts.get('prompt_tokens', 0):,} in, {counts.get('output_tokens', 0):,} out",
        ),
        ("seconds", f"{run.seconds:,.1f} in {run.starts} start{'s' * (run.starts > 1)}"),
        ("rows", annotations_folder(opened.job.output, run.key) + f"/part-{run.run_id}-*.parquet"),
    ]
    print_summary(console, f"run {run.run_id} is complete", lines)


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{n:,} {name}" for name, n in sorted(counts.items())) or "none"


def _decoder_remark(decoders: dict[str, int]) -> str:
    """Say it where videos fell back to PyAV because torchcodec does not load."""
    if "pyav" not in decoders or "torchcodec" in decoders:
        return ""
    problem = torchcodec_problem()
    return f" (torchcodec does not load here: {problem})" if problem else ""


def _check_decoder(job: Job) -> None:
    """A job that insists on torchcodec must not find out item by item that it does not load.

    Raises:
        ResourceError: torchcodec does not load on this machine.
    """
    if job.sampling.decoder == "torchcodec" and (problem := torchcodec_problem()):
        raise ResourceError(
            f"sampling.decoder is torchcodec, which does not load here: {problem}; install "
            "FFmpeg's libraries (apt-get install ffmpeg), or set it to auto or pyav"
        )


if __name__ == "__main__":
    from jobs.cli import main

    main(prog_name="reelscribe", args=["annotate", *sys.argv[1:]])
