"""The commands that tend an output: ``compact`` and ``sql``."""

from typing import TYPE_CHECKING, Any

import click

from jobs.printable import console

if TYPE_CHECKING:
    from pipeline.storage import Storage


@click.command()
@click.argument("output")
@click.option("--target-mb", default=128, show_default=True, help="Size of a joined file.")
@click.option(
    "--superseded-days",
    type=int,
    metavar="DAYS",
    help="Remove rows older than this that `latest` does not show: of earlier recipes, and of "
    "content that has changed.",
)
@click.option(
    "--plan-days",
    type=int,
    metavar="DAYS",
    help="Remove plans and logs of complete runs older than this.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would be joined.")
@click.option("--endpoint-url", help="Of an S3 that is not Amazon's.")
def compact(output: str, *, target_mb: int, endpoint_url: str | None, **options: Any) -> None:
    """Join the small files of an OUTPUT into large ones.

    Safe beside readers and runs: no row is ever missing.
    """
    from jobs import compact as job

    job.run(
        output, _storage(endpoint_url), console(), target_bytes=target_mb * 1_000_000, **options
    )


@click.command()
@click.argument("output")
@click.argument("query")
@click.option("--to", metavar="FILE", help="Write the rows to a .csv or .parquet file.")
@click.option("--endpoint-url", help="Of an S3 that is not Amazon's.")
def sql(output: str, query: str, *, to: str | None, endpoint_url: str | None) -> None:
    """Ask an OUTPUT in SQL.

    \b
      reelscribe sql s3://annotations/archive "SELECT status, count(*) FROM latest GROUP BY ALL"

    There are two views: `latest`, one row for each unit, and `annotations`, all rows of all runs.
    """
    from jobs import sql as job

    job.run(output, query, _storage(endpoint_url), console(), to=to)


def _storage(endpoint_url: str | None) -> "Storage":
    from pipeline.storage import Storage

    return Storage({"s3": {"endpoint_url": endpoint_url}} if endpoint_url else {})


COMMANDS = (compact, sql)
