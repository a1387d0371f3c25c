"""The command ``reelscribe``. Everything heavy is imported by the command that needs it."""

import sys
from pathlib import Path
from typing import Any

import click

from jobs import cli_job, cli_output, cli_results
from jobs.cli_job import assignment
from jobs.printable import console


class _Commands(click.Group):
    """A group that says a user's mistake in one message, and how to go on after Ctrl-C."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; a UserError has its exit code, Ctrl-C 130; other errors are whole."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo(
                "interrupted; run the same command again to go on where it stopped", err=True
            )
            ctx.exit(130)
        except Exception as error:
            # If a UserError was raised, its module is there; else it need not be imported.
            errors = sys.modules.get("schemas.errors")
            if errors is None or not isinstance(error, errors.UserError):
                raise
            from jobs.printable import printable

            click.echo(f"error: {printable(str(error))}", err=True)
            ctx.exit(error.exit_code)


def _print_version(ctx: click.Context, _: click.Parameter, is_asked: bool) -> None:
    if not is_asked:
        return
    from importlib.metadata import PackageNotFoundError, version

    try:
        click.echo(f"reelscribe {version('reelscribe')}")
    except PackageNotFoundError:
        click.echo("reelscribe, not installed (run from its source folder)")
    ctx.exit()


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version and exit.",
)
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    help="json: what happens in a run as JSON lines on stderr, with run and unit ids.",
)
def main(log_format: str) -> None:
    """Annotate archives of images and videos with Qwen3-VL: a manifest in, a Parquet table out."""
    import logging

    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    if log_format == "json":
        from jobs.run_log import log_as_json

        log_as_json()


@main.command()
@click.argument("prefix")
@click.option(
    "--output", "-o", help="Manifest to write, .parquet or .jsonl; without it, count only."
)
@click.option("--glob", default="**/*", show_default=True, help="Which files, relative to PREFIX.")
@click.option("--endpoint-url", help="Of an S3 that is not Amazon's.")
def scan(prefix: str, output: str | None, glob: str, endpoint_url: str | None) -> None:
    """List media, and write them as a manifest.

    PREFIX is a folder or an s3:// prefix. Media are known by their extension.
    """
    from jobs import scan as job
    from pipeline.storage import Storage

    options = {"s3": {"endpoint_url": endpoint_url}} if endpoint_url else {}
    job.run(prefix, glob, output, Storage(options), console())


@main.command()
@click.argument("job_file", metavar="JOB.yaml", type=Path)
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help="Replace a value of the job file, such as --set training.max_steps=500. May be repeated.",
)
def finetune(job_file: Path, assignments: tuple[str, ...]) -> None:
    """Train a model on corrected annotations, or go on where it was interrupted."""
    from jobs import finetune as job
    from schemas.finetune import load_finetune_job

    job.run(load_finetune_job(job_file, dict(map(assignment, assignments))), console())


@main.command()
@click.argument("source", metavar="JOB.yaml|DATA")
@click.option("--model", "-m", help="Checkpoint whose tokenizer counts tokens.")
@click.option("--media-folder", help="What relative media paths of DATA are relative to.")
@click.option("--tasks", "--task", "-t", multiple=True, help="If DATA is a table: its answers.")
@click.option("--max-model-len", type=int, help="Longest sample in tokens.")
@click.option("--headers-only", is_flag=True, help="Read headers, decode no media: quick.")
@click.option(
    "--boxes",
    type=click.Choice(["auto", "normalised", "pixels"]),
    default="auto",
    show_default=True,
    help="What boxes in answers are in: 0..1000 of the picture's sides, or pixels.",
)
@click.option("--fix", metavar="FILE.jsonl", help="Write the good rows, boxes in 0..1000.")
@click.option("--report", metavar="FILE", help="Write all problems, as .jsonl or .parquet.")
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help="Set a value of the job, such as --set sampling.fps=1. May be repeated.",
)
def check_dataset(
    source: str,
    *,
    model: str | None,
    media_folder: str | None,
    tasks: tuple[str, ...],
    max_model_len: int | None,
    assignments: tuple[str, ...],
    **options: Any,
) -> None:
    """Find what is wrong with training data, before a GPU is paid for.

    Checks all data of a training job, or one data set: conversations (.json or .jsonl), or a table
    of annotations.

    \b
      reelscribe check-dataset train.yaml
      reelscribe check-dataset grounding.jsonl -m ./checkpoint --fix grounding-1000.jsonl
      reelscribe check-dataset corrected.parquet -m ./checkpoint -t caption,objects

    The exit code is 1 if anything is wrong.
    """
    from jobs import check_dataset as job

    overrides = dict(map(assignment, assignments))
    overrides |= {"model.source": model} if model else {}
    overrides |= {"model.max_model_len": max_model_len} if max_model_len is not None else {}
    names = [name for text in tasks for name in _names(text)]
    finetune_job = job.load(source, overrides, media_folder=media_folder, tasks=names)
    if job.run(finetune_job, **options, console=console()):
        sys.exit(1)


@main.command()
@click.argument("folder", type=Path, default=Path("demo"))
def demo(folder: Path) -> None:
    """Run a job on an archive that it makes itself.

    Renders images and clips into FOLDER (default: demo), annotates them with a small model that
    was trained to see such, and shows the table. Needs no network and no GPU.
    """
    from jobs import demo as job

    job.run(folder, console())


@main.command()
@click.argument("annotations")
@click.argument("gold")
@click.option("--tasks", "-t", default="", help="Names of tasks, separated by commas.")
@click.option(
    "--by",
    default="",
    help="Slices, separated by commas: media_type, container, codec, resolution, duration, or all "
    "of these; a column of GOLD; an attribute.",
)
@click.option("--recipe", help="Id of the recipe; default: that of the newest run.")
@click.option("--run", "run_id", metavar="RUN_ID", help="Take the recipe of this run.")
@click.option("--json", "json_file", metavar="FILE", help="Write the figures as JSON.")
@click.option("--markdown", "markdown_file", metavar="FILE", help="Write the tables as Markdown.")
@click.option(
    "--fail-under",
    multiple=True,
    metavar="FIGURE=BAR",
    help="Exit with 1 if a figure is less, as caption.exact=0.9. May be repeated.",
)
@click.option(
    "--fail-over",
    multiple=True,
    metavar="FIGURE=BAR",
    help="Exit with 1 if an error rate is more, as ocr.cer=0.1. May be repeated.",
)
@click.option("--endpoint-url", help="Of an S3 that is not Amazon's.")
def evaluate(
    annotations: str,
    gold: str,
    *,
    tasks: str,
    by: str,
    recipe: str | None,
    fail_under: tuple[str, ...],
    fail_over: tuple[str, ...],
    endpoint_url: str | None,
    **options: Any,
) -> None:
    """Compare annotations with gold.

    ANNOTATIONS is the output of `reelscribe annotate`. GOLD is Parquet or JSON lines, with the
    right answers in columns of the same names: caption, events, ocr, text_spans, objects.
    """
    from jobs import evaluate as job
    from pipeline.storage import Storage

    storage_options = {"s3": {"endpoint_url": endpoint_url}} if endpoint_url else {}
    missed = job.run(
        annotations,
        gold,
        tasks=_names(tasks),
        by=_names(by),
        recipe_id=recipe,
        fail_under=dict(map(_bar, fail_under)),
        fail_over=dict(map(_bar, fail_over)),
        **options,
        storage=Storage(storage_options),
        console=console(),
    )
    if missed:
        click.echo(f"error: figures that miss their bar: {'; '.join(missed)}", err=True)
        sys.exit(1)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _bar(text: str) -> tuple[str, float]:
    name, _, bar = text.partition("=")
    try:
        return name.strip(), float(bar)
    except ValueError:
        raise click.UsageError(f"a bar is such as caption.exact=0.9, got {text!r}") from None


for _command in (*cli_job.COMMANDS, *cli_results.COMMANDS, *cli_output.COMMANDS):
    main.add_command(_command)

if __name__ == "__main__":
    main(prog_name="reelscribe")
