"""The commands that take a job: ``plan``, ``calibrate``, ``annotate`` and ``retry``."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from jobs.printable import console

if TYPE_CHECKING:
    from schemas.job import Job

MANIFEST_EXTENSIONS = (
    ".parquet",
    ".jsonl",
    ".ndjson",
    ".csv",
    ".jsonl.gz",
    ".ndjson.gz",
    ".csv.gz",
)


def _job_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add what ``plan`` and ``annotate`` have in common: a job file, or all of it as options."""
    options = [
        click.argument("job_file", metavar="[JOB.yaml]", required=False, type=Path),
        click.option(
            "--input", "-i", "input_", help="Manifest, or folder or s3:// prefix to scan."
        ),
        click.option("--output", "-o", help="Folder or s3:// prefix of the output table."),
        click.option("--model", "-m", help="Checkpoint: hub id or local folder."),
        click.option("--tasks", "-t", help="Names of tasks, separated by commas."),
        click.option(
            "--set",
            "assignments",
            multiple=True,
            metavar="KEY=VALUE",
            help="Replace a value of the job file, such as --set sampling.fps=1. May be repeated.",
        ),
        click.option("--only-new", is_flag=True, help="Only media that the table does not have."),
        click.option("--since", help="Of a scan: objects written since 24h, 7d or a date."),
        click.option("--limit", type=int, help="At most so many items."),
        click.option("--sample", type=float, help="A share of the items, such as 0.01."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _max_cost(command: Callable[..., None]) -> Callable[..., None]:
    return click.option(
        "--max-cost",
        type=float,
        metavar="COST",
        help="Refuse a run that is predicted to cost more: money if cost.per_hour is set, else "
        "engine hours.",
    )(command)


@click.command()
@_job_options
@_max_cost
@click.option("--dry-run", is_flag=True, help="Write nothing.")
def plan(*, dry_run: bool, **options: Any) -> None:
    """Count a job's units and tokens, from headers, and say what they cost.

    Says exactly how many tokens the model will see, which media cannot be done and why, and the
    engine hours of each task: as `reelscribe calibrate` or an earlier run measured them, else by
    defaults. The exit code is 4 if that is over --max-cost.
    """
    from jobs import plan as job

    job.run(_load(**options), console(), dry_run=dry_run)


@click.command()
@_job_options
@_max_cost
@click.option("--dry-run", is_flag=True, help="Only say what would be done; write nothing.")
@click.option("--max-failed", metavar="SHARE", help="Exit with 3 if more units failed, such as 1%.")
def annotate(*, dry_run: bool, **options: Any) -> None:
    """Run a job, or go on where it was interrupted.

    Give a job file, or the job as options:

    \b
      reelscribe annotate -i s3://bucket/clips/ -o out -m ./checkpoint -t caption,ocr

    The exit code is 0 when the run is complete, rows with errors included; 3 if more than
    --max-failed of them are errors; 2 for a mistake, or a storage or cluster that does not answer,
    and a message says what to do; 4 if it is predicted to cost more than --max-cost.
    """
    from jobs import annotate as job
    from jobs import plan
    from jobs.after_run import after_run
    from pipeline.storage import Storage

    if dry_run:
        plan.run(_load(**options), console(), dry_run=True)
        return
    asked = _load(**options)
    finished = job.run(asked, console())
    sys.exit(after_run(finished, asked, Storage(asked.storage_options)))


@click.command()
@_job_options
@click.option(
    "--error-type",
    "error_types",
    multiple=True,
    metavar="TYPE",
    help="Of the failed rows to do again, such as media_unreadable; may be repeated. Default: all "
    "that may pass.",
)
@click.option("--run", "run_id", metavar="RUN_ID", help="Of this job; default: the latest run.")
def retry(error_types: tuple[str, ...], run_id: str | None, **options: Any) -> None:
    """Do the failed units of a run again.

    Give the job as to `annotate`. New answers take the place of the failed rows in the table.
    """
    from jobs import retry as job

    job.run(_load(**options), console(), run_id=run_id, error_types=error_types)


@click.command()
@_job_options
@click.option(
    "--seconds",
    type=click.FloatRange(min=1),
    default=90,
    show_default=True,
    help="Measure so long; the engine's start comes on top.",
)
@click.option("--file", metavar="FILE", help="Where to write; default: OUTPUT/calibration.json.")
def calibrate(*, seconds: float, file: str | None, **options: Any) -> None:
    """Measure on this machine's or cluster's engine what the job's units cost.

    Some of them go through the engine, in several sizes; nothing is annotated. `plan` and
    `annotate` take what was measured, for the same model, engine and precision.
    """
    from jobs import calibrate as job

    job.run(_load(**options), console(), seconds=seconds, file=file)


def _load(
    *,
    job_file: Path | None,
    input_: str | None,
    output: str | None,
    model: str | None,
    tasks: str | None,
    assignments: tuple[str, ...],
    only_new: bool,
    max_failed: str | None = None,
    max_cost: float | None = None,
    **selection: Any,
) -> "Job":
    """Check the job: the file's values, replaced by those of ``--set``, replaced by the options."""
    from schemas.job import ANY_FILE, load_job

    overrides = dict(assignment(text) for text in assignments)
    if input_:
        is_manifest = input_.rstrip("/").lower().endswith(MANIFEST_EXTENSIONS)
        overrides["input.manifest"] = input_ if is_manifest else None
        overrides["input.scan"] = None if is_manifest else input_
        if is_manifest:
            overrides["input.glob"] = ANY_FILE  # the file's own is for the folder that it scans
    overrides |= {"input.only_new": True} if only_new else {}
    overrides |= {"limits.max_failed": max_failed} if max_failed else {}
    overrides |= {"limits.max_cost": max_cost} if max_cost is not None else {}
    overrides |= {f"input.{key}": value for key, value in selection.items() if value is not None}
    if output:
        overrides["output"] = output
    if model:
        overrides["model.source"] = model
    if tasks:
        overrides["tasks"] = [name.strip() for name in tasks.split(",") if name.strip()]
    if job_file is None and not overrides:
        raise click.UsageError("give a job file, or at least --input and --output")
    return load_job(job_file, overrides)


def assignment(text: str) -> tuple[str, Any]:
    """Read ``KEY=VALUE``, the value as YAML."""
    import yaml

    key, equals, value = text.partition("=")
    if not equals or not key:
        raise click.UsageError(f"--set takes KEY=VALUE, such as sampling.fps=1, got {key!r}")
    try:
        return key.strip(), yaml.safe_load(value)
    except (yaml.YAMLError, ValueError):
        raise click.UsageError(f"--set {key}: the value is not valid YAML, quote it") from None


COMMANDS = (plan, calibrate, annotate, retry)
