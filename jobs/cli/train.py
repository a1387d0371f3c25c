"""The commands about training: ``finetune`` and ``check-dataset``."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from jobs.cli.options import names, overrides_of, set_option, storage_options
from jobs.console.text import console

if TYPE_CHECKING:
    from pipeline.storage.storage import Storage


@click.command()
@click.argument("job_file", metavar="JOB.yaml", type=Path)
@click.option("--dry-run", is_flag=True, help="Print samples, steps, memory and hours only.")
@set_option
def finetune(job_file: Path, *, dry_run: bool, assignments: tuple[str, ...]) -> None:
    """Train a model on corrected annotations, or continue an interrupted training."""
    from jobs.train import finetune as command
    from schemas.job.finetune import load_finetune_job

    job = load_finetune_job(job_file, overrides_of(assignments))
    command.run(job, console(), dry_run=dry_run)


@click.command()
@click.argument("source", metavar="JOB.yaml|DATA")
@click.option("--model", "-m", help="Checkpoint whose tokenizer counts tokens.")
@click.option("--media-folder", help="Folder that relative media paths of DATA start at.")
@click.option(
    "--tasks", "--task", "-t", multiple=True, help="If DATA is a table: tasks whose answers to use."
)
@click.option("--max-model-len", type=int, help="Maximum length of a sample in tokens.")
@click.option("--headers-only", is_flag=True, help="Read only headers, decode no media: faster.")
@click.option(
    "--boxes",
    type=click.Choice(["auto", "normalised", "pixels"]),
    default="auto",
    show_default=True,
    help="Coordinates of boxes in answers: 0..1000 of width and height, or pixels.",
)
@click.option("--fix", metavar="FILE.jsonl", help="Write the valid rows, with boxes in 0..1000.")
@click.option("--report", metavar="FILE", help="Write all problems, as .jsonl or .parquet.")
@set_option
@storage_options
def check_dataset(
    source: str,
    *,
    model: str | None,
    media_folder: str | None,
    tasks: tuple[str, ...],
    max_model_len: int | None,
    assignments: tuple[str, ...],
    storage: "Storage",
    **options: Any,
) -> None:
    """Find problems in training data before training starts.

    Checks all data of a training job, or one data set: conversations (.json or .jsonl), or a table
    of annotations.

    \b
      reelscribe check-dataset train.yaml
      reelscribe check-dataset grounding.jsonl -m ./checkpoint --fix grounding-1000.jsonl
      reelscribe check-dataset corrected.parquet -m ./checkpoint -t caption,objects

    The exit code is 1 if there is a problem.
    """
    from jobs.train import check_dataset as command

    overrides = overrides_of(assignments)
    overrides |= {"model.source": model} if model else {}
    overrides |= {"model.max_model_len": max_model_len} if max_model_len is not None else {}
    overrides |= {"storage_options": storage.options} if storage.options else {}
    job = command.load(source, overrides, media_folder=media_folder, tasks=names(",".join(tasks)))
    if command.run(job, **options, console=console()):
        sys.exit(1)


COMMANDS = (finetune, check_dataset)
