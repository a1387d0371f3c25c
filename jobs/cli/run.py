"""The commands that prepare and run jobs, from ``doctor`` to ``retry``."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from jobs.cli.options import names, overrides_of, set_option, storage_options, together
from jobs.console.text import console

if TYPE_CHECKING:
    from pipeline.storage.storage import Storage
    from schemas.job.job import Job

MANIFEST_EXTENSIONS = (
    ".parquet",
    ".jsonl",
    ".ndjson",
    ".csv",
    ".jsonl.gz",
    ".ndjson.gz",
    ".csv.gz",
)
_KEYS = {
    "output": "output",
    "model": "model.source",
    "tasks": "tasks",
    "only_new": "input.only_new",
    "since": "input.since",
    "limit": "input.limit",
    "sample": "input.sample",
    "max_failed": "limits.max_failed",
    "max_cost": "limits.max_cost",
}
"""Which key of the job file an option replaces."""

_job_options = together(
    click.argument("job_file", metavar="[JOB.yaml]", required=False, type=Path),
    click.option(
        "--input",
        "-i",
        "input_",
        help="Manifest, one image or video, or folder or s3:// prefix to scan.",
    ),
    click.option("--output", "-o", help="Folder or s3:// prefix of the output table."),
    click.option("--model", "-m", help="Checkpoint: Hugging Face id or local folder."),
    click.option("--tasks", "-t", help="Names of tasks, separated by commas."),
    set_option,
    click.option("--only-new", is_flag=True, help="Only media that have no row in the table yet."),
    click.option(
        "--since",
        help="With a scan: only objects modified since a time, such as 24h, 7d or a date.",
    ),
    click.option("--limit", type=int, help="Maximum number of items."),
    click.option("--sample", type=float, help="Share of the items to take, such as 0.01."),
)
_max_cost_option = click.option(
    "--max-cost",
    type=float,
    metavar="COST",
    help="Refuse a run whose predicted cost is higher: in money if cost.per_hour is set, else in "
    "engine hours.",
)


@click.command()
@click.argument("prefix")
@click.option(
    "--output", "-o", help="Manifest to write, .parquet or .jsonl; without it, only count."
)
@click.option(
    "--glob", default="**/*", show_default=True, help="Pattern of the files, relative to PREFIX."
)
@storage_options
def scan(prefix: str, output: str | None, glob: str, storage: "Storage") -> None:
    """List media files and write them as a manifest.

    PREFIX is a folder or an s3:// prefix. Media are recognised by their file extension.
    """
    from jobs.run import scan as command

    command.run(prefix, glob, output, storage, console())


@click.command()
@_job_options
@_max_cost_option
@click.option(
    "--gpu",
    metavar="NAME",
    help="Say how many units fit into this GPU at a time, and refuse what cannot: l40s, h100, "
    "h200 and others, or gigabytes. Default: this machine's GPU, if it has one.",
)
@click.option("--dry-run", is_flag=True, help="Write nothing.")
def plan(*, dry_run: bool, gpu: str | None, **options: Any) -> None:
    """Count a job's units and tokens from media headers, and predict their cost.

    Prints how many tokens the model will read, which media cannot be annotated and why, and the
    engine hours of each task. The prediction uses the measurements of `reelscribe calibrate` or of
    an earlier run, else default rates. The exit code is 4 if it is higher than --max-cost.
    With a GPU, it says how many units fit into its memory at a time.
    """
    from jobs.plan import plan as command

    command.run(_load(**options), console(), dry_run=dry_run, gpu=gpu)


@click.command()
@_job_options
@click.option(
    "--seconds",
    type=click.FloatRange(min=1),
    default=90,
    show_default=True,
    help="How long to measure, after the engine has started.",
)
@click.option("--file", metavar="FILE", help="Where to write; default: OUTPUT/calibration.json.")
def calibrate(*, seconds: float, file: str | None, **options: Any) -> None:
    """Measure the engine's speed on this machine or cluster.

    Runs some of the job's units through the engine, in several batch sizes; annotates nothing.
    `plan` and `annotate` use the measurement for jobs of the same model, engine and precision.
    """
    from jobs.run import calibrate as command

    command.run(_load(**options), console(), seconds=seconds, file=file)


@click.command()
@_job_options
@_max_cost_option
@click.option("--dry-run", is_flag=True, help="Only print the plan; write nothing.")
@click.option(
    "--max-failed",
    metavar="SHARE",
    help="Exit with 3 if a larger share of the units failed, such as 1%.",
)
def annotate(*, dry_run: bool, **options: Any) -> None:
    """Run a job, or continue it where it was interrupted.

    Give a job file, or the job as options:

    \b
      reelscribe annotate -i s3://bucket/clips/ -o out -m ./checkpoint -t caption,ocr

    Exit codes: 0 if the run is complete, even if some rows are errors; 2 for a wrong job file, or a
    storage or cluster that does not respond; 3 if more units failed than --max-failed allows; 4 if
    the predicted cost is higher than --max-cost.
    """
    from jobs.cluster.small import early_engine

    job = _load(**options)
    if dry_run:
        from jobs.plan import plan

        plan.run(job, console(), dry_run=True)
        return
    with early_engine(job) as engine:  # its imports run beside these
        from jobs.run import annotate as command
        from jobs.run.on_finish import after_run, check_on_finish
        from pipeline.storage.storage import Storage

        check_on_finish(job.on_finish)
        finished = command.run(job, console(), engine)
    sys.exit(after_run(finished, job, Storage(job.storage_options)))


@click.command()
@_job_options
@click.option(
    "--error-type",
    "error_types",
    multiple=True,
    metavar="TYPE",
    help="Retry only rows with this error type, such as media_unreadable. May be repeated. "
    "Default: all transient errors.",
)
@click.option(
    "--run", "run_id", metavar="RUN_ID", help="Run of this job to retry; default: the latest."
)
def retry(error_types: tuple[str, ...], run_id: str | None, **options: Any) -> None:
    """Annotate the failed units of a run again.

    Give the same job as to `annotate`. New answers replace the failed rows in the table.
    """
    from jobs.run import retry as command

    command.run(_load(**options), console(), run_id=run_id, error_types=error_types)


@click.command()
@_job_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def doctor(*, as_json: bool, **options: Any) -> None:
    """Check whether this machine, or the cluster at RAY_ADDRESS, can run a job.

    Without a job, it checks the machines alone. With one, it also reads and writes the job's
    storages (what it writes is removed again) and opens its checkpoint; it downloads nothing, and
    starts no Ray. Each line is ok, a warning, or what to do; the exit code is 1 if something is to
    be done.
    """
    from jobs.doctor import doctor as command

    load = (lambda: _load(**options)) if any(options.values()) else None
    sys.exit(command.run(load, console(), as_json=as_json).exit_code)


@click.command()
@click.argument("folder", type=Path, default=Path("demo"))
def demo(folder: Path) -> None:
    """Render a small archive and annotate it.

    Renders images and clips into FOLDER (default: demo), annotates them with a small model that
    was trained on such media, and prints the table. Needs no network and no GPU.
    """
    from jobs.demo import demo as command

    command.run(folder, console())


@click.command()
@click.option("--finetune", is_flag=True, help="The schema of training job files.")
def schema(finetune: bool) -> None:
    """Print the JSON Schema of job files, for editors that complete and check YAML."""
    from schemas.job.json_schema import finetune_schema, job_schema

    found = finetune_schema() if finetune else job_schema()
    click.echo(json.dumps(found, indent=2, ensure_ascii=False))


def _load(
    *, job_file: Path | None, input_: str | None, assignments: tuple[str, ...], **options: Any
) -> "Job":
    """Load and check the job: ``--set`` replaces values of the file, other options replace both.

    options: by the names in ``_KEYS``.
    """
    from pipeline.storage.protocols import is_utf8, uri_of_path
    from schemas.job.job import ANY_FILE, load_job

    overrides = overrides_of(assignments)
    if input_:
        if not is_utf8(input_):  # no job file can hold it
            input_ = uri_of_path(str(Path(input_).absolute()))
        is_manifest = _is_manifest(input_)
        overrides["input.manifest"] = input_ if is_manifest else None
        overrides["input.scan"] = None if is_manifest else input_
        if is_manifest:
            # The job file's own belong to the folder that it scans.
            overrides["input.glob"] = ANY_FILE
            overrides.setdefault("input.mark_gone", None)
    if options["tasks"]:
        options["tasks"] = names(options["tasks"])
    overrides |= {
        _KEYS[name]: value
        for name, value in options.items()
        if value is not None and value is not False and value != ""
    }
    if job_file is None and not overrides:
        raise click.UsageError("give a job file, or at least --input and --output")
    return load_job(job_file, overrides)


def _is_manifest(uri: str) -> bool:
    """Whether ``--input`` is a manifest, or one image or video; else it is a folder to scan."""
    from schemas.tables.manifest import guess_media_type

    if uri.rstrip("/").lower().endswith(MANIFEST_EXTENSIONS):
        return True
    return guess_media_type(uri) is not None and not uri.endswith("/") and not Path(uri).is_dir()


COMMANDS = (doctor, scan, plan, calibrate, annotate, retry, demo, schema)
