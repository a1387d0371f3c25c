"""The commands that read results, from ``evaluate`` to ``import-labels``."""

import functools
import re
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from jobs.cli.options import names, storage_options, together
from jobs.console.text import console

if TYPE_CHECKING:
    from jobs.results.read import Selection
    from pipeline.storage.storage import Storage

EXPORTS = (
    *("coco", "yolo", "webvtt", "srt", "conversations"),
    *("webdataset", "huggingface", "labelstudio"),
)

_selection_options = together(
    click.argument("annotations", metavar="RUN|OUTPUT"),
    click.option(
        "--recipe",
        "recipe_id",
        help="Rows of this recipe; default: the newest run's.",
    ),
    click.option("--run", "run_id", metavar="RUN_ID", help="Rows of this run's recipes."),
    click.option(
        "--media-root",
        "media_roots",
        multiple=True,
        metavar="OLD=NEW",
        help="Media whose folder or prefix was OLD in the run are in NEW now. May be repeated.",
    ),
)


def _rows_options(command: Callable[..., None]) -> Callable[..., None]:
    """Which rows to read, and from which storage: ``selection`` and ``storage``."""

    @_selection_options
    @storage_options
    @functools.wraps(command)
    def with_selection(
        *args: Any,
        annotations: str,
        recipe_id: str | None,
        run_id: str | None,
        media_roots: tuple[str, ...],
        **options: Any,
    ) -> None:
        from jobs.results.media_roots import MediaRoots
        from jobs.results.read import Selection

        roots = MediaRoots(pairs=tuple(map(_media_root, media_roots)))
        selection = Selection(
            uri=annotations, recipe_id=recipe_id, run_id=run_id, media_roots=roots
        )
        command(*args, selection=selection, **options)

    return with_selection


def _media_root(text: str) -> tuple[str, str]:
    """Read OLD=NEW; OLD may contain ``=`` as well, as in s3://archive/year=2026/."""
    from jobs.console.output_path import absolute_uri

    found = re.fullmatch(r"(.+?)=((?:/|~|\.|[A-Za-z][A-Za-z0-9+.-]*://).*)", text)
    found = found or re.fullmatch(r"(.+?)=(.+)", text)
    if not found:
        raise click.UsageError(
            f"--media-root takes OLD=NEW, such as /mnt/old=/data/new, got {text!r}"
        )
    return absolute_uri(found[1]), absolute_uri(found[2])


@click.command()
@_rows_options
@click.argument("gold")
@click.option("--tasks", "-t", default="", help="Names of tasks, separated by commas.")
@click.option(
    "--by",
    default="",
    help="Slices, separated by commas: media_type, container, codec, resolution, duration, or all "
    "of these five; a column of GOLD; an attribute.",
)
@click.option("--json", "json_file", metavar="FILE", help="Write the metrics as JSON.")
@click.option("--markdown", "markdown_file", metavar="FILE", help="Write the tables as Markdown.")
@click.option(
    "--fail-under",
    multiple=True,
    metavar="METRIC=LIMIT",
    help="Exit with 1 if a metric is lower, such as caption.exact=0.9. May be repeated.",
)
@click.option(
    "--fail-over",
    multiple=True,
    metavar="METRIC=LIMIT",
    help="Exit with 1 if an error rate is higher, such as ocr.cer=0.1. May be repeated.",
)
def evaluate(
    gold: str,
    *,
    selection: "Selection",
    tasks: str,
    by: str,
    fail_under: tuple[str, ...],
    fail_over: tuple[str, ...],
    storage: "Storage",
    **files: Any,
) -> None:
    """Compare annotations with gold.

    RUN|OUTPUT is the output of `reelscribe annotate`, a run's folder in it, or a Parquet file.
    GOLD is Parquet or JSON lines, with the correct answers in columns of the same names: caption,
    events, ocr, text_spans, objects.
    """
    from jobs.evaluate import evaluate as command

    options = command.EvaluateOptions(
        tasks=names(tasks),
        by=names(by),
        fail_under=dict(map(_limit, fail_under)),
        fail_over=dict(map(_limit, fail_over)),
        **files,
    )
    beyond = command.run(selection, gold, options, storage, console())
    if beyond:
        click.echo(f"error: metrics beyond their limit: {'; '.join(beyond)}", err=True)
        sys.exit(1)


def _limit(text: str) -> tuple[str, float]:
    metric, _, limit = text.partition("=")
    try:
        return metric.strip(), float(limit)
    except ValueError:
        raise click.UsageError(
            f"a limit is METRIC=LIMIT, such as caption.exact=0.9, got {text!r}"
        ) from None


@click.command()
@_rows_options
@click.option(
    "--output", "-o", help="An .html file, or a folder.  [default: report.html, or report for many]"
)
@click.option(
    "--gold", metavar="GOLD", help="As for `evaluate`: compare with it, and show the worst first."
)
@click.option(
    "--frames",
    type=click.IntRange(1),
    default=12,
    show_default=True,
    help="Maximum number of frames of each media.",
)
@click.option(
    "--pixels",
    type=click.IntRange(32, 4096),
    default=448,
    show_default=True,
    help="Longer side of a frame, in pixels.",
)
def report(
    *,
    selection: "Selection",
    output: str | None,
    gold: str | None,
    frames: int,
    pixels: int,
    storage: "Storage",
) -> None:
    """Write a page that shows the results: frames, boxes, events, answers, errors, charts.

    RUN|OUTPUT is the output of `reelscribe annotate`, a run's folder in it, or a Parquet file. The
    frames are those that the model saw, decoded again from the media. The page works offline.
    """
    from jobs.report import report as command

    options = command.ReportOptions(output=output, gold=gold, max_frames=frames, max_side=pixels)
    command.run(selection, options, storage, console())


@click.command()
@_rows_options
@click.argument("unit", metavar="UNIT")
@click.option("--contact-sheet", metavar="FILE.png", help="Write all frames as one picture.")
@click.option(
    "--what-the-model-saw", metavar="FOLDER", help="Write each frame as PNG, pixel for pixel."
)
def show(
    unit: str,
    *,
    selection: "Selection",
    contact_sheet: str | None,
    what_the_model_saw: str | None,
    storage: "Storage",
) -> None:
    """Show one unit: facts, prompts, answers, and its frames as pictures.

    UNIT is a unit's id or its start, a media id, or a uri or its end.
    """
    from jobs.report import show as command

    options = command.ShowOptions(contact_sheet=contact_sheet, frames_folder=what_the_model_saw)
    command.run(selection, unit, options, storage, console())


@click.command()
@_rows_options
@click.argument("form", metavar="FORMAT", type=click.Choice(EXPORTS))
@click.option("--output", "-o", required=True, help="A new folder, or s3:// prefix.")
def export(
    form: str,
    *,
    selection: "Selection",
    output: str,
    storage: "Storage",
) -> None:
    """Write results in the format of another tool.

    RUN|OUTPUT is the output of `reelscribe annotate`, a run's folder in it, or a Parquet file.

    \b
      coco, yolo      images and video frames with boxes
      webvtt, srt     events, captions and text of videos, as subtitles
      conversations   JSONL for fine-tuning, in the format of the model's makers
      webdataset      shards of frames with their rows
      huggingface     a folder for datasets.load_dataset
      labelstudio     tasks to correct; `import-labels` reads the corrections
    """
    from jobs.export import export as command

    command.run(selection, form, output, storage, console())


@click.command()
@click.argument("labels", metavar="EXPORT.json")
@click.option("--output", "-o", required=True, metavar="GOLD.jsonl", help="Gold to write.")
@storage_options
def import_labels(labels: str, *, output: str, storage: "Storage") -> None:
    """Convert corrected Label Studio tasks to gold, for `evaluate` and `report --gold`.

    EXPORT.json is the project's export in the format JSON.
    """
    from jobs.export import export as command

    command.import_labels(labels, output=output, storage=storage, console=console())


COMMANDS = (evaluate, report, show, export, import_labels)
