"""The commands that work on a whole output: ``compact`` and ``sql``."""

from typing import TYPE_CHECKING, Any

import click

from jobs.cli.options import storage_options
from jobs.console.text import console

if TYPE_CHECKING:
    from pipeline.storage.storage import Storage


@click.command()
@click.argument("output")
@click.option("--target-mb", default=128, show_default=True, help="Size of joined files, in MB.")
@click.option(
    "--superseded-days",
    type=int,
    metavar="DAYS",
    help="Remove rows older than this that `latest` does not show: rows of earlier recipes, and of "
    "media that have changed since or are gone. 0: whatever their age.",
)
@click.option(
    "--plan-days",
    type=int,
    metavar="DAYS",
    help="Remove plans and logs of complete runs older than this.",
)
@click.option("--dry-run", is_flag=True, help="Only print what would be joined.")
@storage_options
def compact(output: str, *, target_mb: int, storage: "Storage", **options: Any) -> None:
    """Join the small files of an OUTPUT into large ones.

    Readers and runs may work at the same time: no row is ever missing.
    """
    from jobs.results import compact as command

    chosen = command.CompactOptions(target_bytes=target_mb * 1_000_000, **options)
    command.run(output, chosen, storage, console())


@click.command()
@click.argument("output")
@click.argument("query")
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "csv", "json"]),
    default="table",
    show_default=True,
    help="table: the first rows, for people. csv, json: all rows, for programs.",
)
@click.option("--to", metavar="FILE", help="Write the rows to a .csv, .json or .parquet file.")
@storage_options
def sql(output: str, query: str, *, form: str, to: str | None, storage: "Storage") -> None:
    """Query an OUTPUT in SQL.

    \b
      reelscribe sql s3://annotations/archive "SELECT status, count(*) FROM latest GROUP BY ALL"

    There are three views: `latest`, one row for each unit, `annotations`, all rows of all runs, and
    `items`, one row for each whole video.
    """
    from jobs.results import sql as command

    command.run(output, query, storage, console(), form=form, to=to)


COMMANDS = (compact, sql)
