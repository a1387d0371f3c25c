"""The commands that look at results: ``report``, ``show``, ``export``, ``import-labels``."""

from collections.abc import Callable
from typing import Any

import click

from jobs.printable import console


def _table_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add what commands that read a table have in common: which rows, and where the storage is."""
    options = [
        click.argument("annotations", metavar="RUN|OUTPUT"),
        click.option("--recipe", "recipe_id", help="Id of the recipe; default: the newest run's."),
        click.option("--run", "run_id", metavar="RUN_ID", help="Take the recipe of this run."),
        click.option("--endpoint-url", help="Of an S3 that is not Amazon's."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@click.command()
@_table_options
@click.option(
    "--output", "-o", help="An .html file, or a folder.  [default: report.html, or report for many]"
)
@click.option(
    "--gold", metavar="GOLD", help="As of `evaluate`: compares, and shows the worst first."
)
@click.option(
    "--frames",
    type=click.IntRange(1),
    default=12,
    show_default=True,
    help="At most, of each media.",
)
@click.option(
    "--pixels",
    type=click.IntRange(32, 4096),
    default=448,
    show_default=True,
    help="Longer side of a frame.",
)
def report(
    annotations: str, *, frames: int, pixels: int, endpoint_url: str | None, **options: Any
) -> None:
    """Make a page of the results: frames, boxes, events, answers, errors, charts.

    RUN|OUTPUT is the output of `reelscribe annotate`, a run's folder in it, or a Parquet file. The
    frames are those that the model saw, decoded again from the media. The page works offline.
    """
    from jobs import report as job
    from pipeline.storage import Storage

    looks = job.Looks(frames=frames, longest=pixels)
    storage = Storage({"s3": {"endpoint_url": endpoint_url}} if endpoint_url else {})
    job.run(annotations, **options, looks=looks, storage=storage, console=console())


@click.command()
@_table_options
@click.argument("unit", metavar="UNIT")
@click.option("--contact-sheet", metavar="FILE.png", help="Write all frames as one picture.")
@click.option(
    "--what-the-model-saw", metavar="FOLDER", help="Write each frame, the very pixels, as PNG."
)
def show(annotations: str, unit: str, *, endpoint_url: str | None, **options: Any) -> None:
    """Show one unit: facts, prompts, answers, and its frames as pictures.

    UNIT is the begin of a unit's id, or the end of its uri.
    """
    from jobs import show as job
    from pipeline.storage import Storage

    storage = Storage({"s3": {"endpoint_url": endpoint_url}} if endpoint_url else {})
    job.run(annotations, unit, **options, storage=storage, console=console())


EXPORTS = (
    *("coco", "yolo", "webvtt", "srt", "conversations"),
    *("webdataset", "huggingface", "labelstudio"),
)


@click.command()
@_table_options
@click.argument("form", metavar="FORMAT", type=click.Choice(EXPORTS))
@click.option("--output", "-o", required=True, help="A new folder, or s3:// prefix.")
def export(annotations: str, form: str, *, endpoint_url: str | None, **options: Any) -> None:
    """Write results in the format of another tool.

    RUN|OUTPUT is the output of `reelscribe annotate`, a run's folder in it, or a Parquet file.

    \b
      coco, yolo      images and frames of videos with boxes
      webvtt, srt     events, captions and text of videos, as subtitles
      conversations   JSONL for fine-tuning, as the model's makers have it
      webdataset      shards of frames with their rows
      huggingface     a folder for datasets.load_dataset
      labelstudio     tasks to correct; `import-labels` brings them back
    """
    from jobs import export as job
    from pipeline.storage import Storage

    storage = Storage({"s3": {"endpoint_url": endpoint_url}} if endpoint_url else {})
    job.run(annotations, form, **options, storage=storage, console=console())


@click.command()
@click.argument("labels", metavar="EXPORT.json")
@click.option("--output", "-o", required=True, metavar="GOLD.jsonl", help="Gold to write.")
def import_labels(labels: str, output: str) -> None:
    """Read corrected Label Studio tasks as gold, for `evaluate` and `report --gold`.

    EXPORT.json is the project's export in the format JSON.
    """
    from jobs import export as job
    from pipeline.storage import Storage

    job.import_labels(labels, output=output, storage=Storage(), console=console())


COMMANDS = (report, show, export, import_labels)
