"""``reelscribe compact``: join small files of an output, and remove superseded rows and plans."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from rich.console import Console
from rich.filesize import decimal
from rich.text import Text

from pipeline.output.compact import (
    find_bins,
    find_superseded_items,
    find_superseded_rows,
    join_files,
    join_listing,
)
from pipeline.output.duplicates import remove_rows
from pipeline.output.views import write_views
from pipeline.storage.storage import Storage, join
from schemas.errors import UserError


@dataclass(frozen=True, kw_only=True)
class CompactOptions:
    """What to join and to remove.

    target_bytes: approximate size of joined files; files of at least half that size are kept.
    superseded_days: remove rows of older partitions that the view ``latest`` does not show: rows of
        earlier recipes, of earlier content and of media that are gone. 0: of all partitions; None:
        keep them.
    plan_days: remove plans and logs of older complete runs, but not run.json. None: keep them.
    dry_run: only print what would be joined.
    """

    target_bytes: int
    superseded_days: int | None = None
    plan_days: int | None = None
    dry_run: bool = False


def run(output: str, options: CompactOptions, storage: Storage, console: Console) -> None:
    """Compact an output folder; safe while it is read and while runs write to it.

    Raises:
        UserError: there is no table, or the storage failed.
    """
    if not storage.list_files(join(output, "annotations"), "*/part-*.parquet"):
        raise UserError(f"{output} has no annotations: give the `output` of a job")
    todo = [
        some for some in find_bins(output, storage, options.target_bytes) if len(some.files) > 1
    ]
    count = sum(len(some.files) for some in todo)
    size = sum(file["size"] for some in todo for file in some.files)
    text = f"{count:,} files of together {decimal(size)} into {len(todo):,}"
    if options.dry_run:
        console.print(Text(f"would join {text}; a dry run, nothing was written"))
        return
    gone = sum(join_files(some, storage) for some in todo)
    console.print(Text(f"joined {text}" + ("" if gone == count else f"; {gone:,} removed")))
    if options.superseded_days is not None:
        before = _days_ago(options.superseded_days)
        rows = find_superseded_rows(output, before, storage)
        videos = find_superseded_items(output, before, storage)
        remove_rows(rows, storage)
        remove_rows(videos, storage)
        console.print(
            f"removed {rows.num_rows:,} superseded rows, {videos.num_rows:,} of whole videos"
        )
    join_listing(output, storage)
    write_views(output, storage)
    if options.plan_days is not None:
        files = _old_plans(output, _days_ago(options.plan_days), storage)
        for file in files:
            storage.remove(file)
        console.print(f"removed {len(files):,} files of earlier runs' plans and logs")


def _days_ago(days: int) -> str:
    """The first date that is kept: 0 days keep none."""
    return f"{datetime.now(UTC) - timedelta(days=days - 1):%Y-%m-%d}"


def _old_plans(output: str, before: str, storage: Storage) -> list[str]:
    """Return plans and logs of complete runs before a date, except the latest run of each job."""
    from jobs.plan.runs import all_runs

    runs = all_runs(output, storage)
    latest = {run.name: run.run_id for run in sorted(runs, key=lambda run: run.created_at)}
    old = [
        run
        for run in runs
        if run.status == "complete" and run.run_date < before and latest[run.name] != run.run_id
    ]
    files = [
        file["uri"]
        for run in old
        for pattern in ("plan/*", "log-*.jsonl")
        for file in storage.list_files(run.folder(output), pattern)
    ]
    return files
