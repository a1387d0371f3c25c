"""``reelscribe compact``: join small files of the output, and take out what nobody needs now."""

import sys
from datetime import UTC, datetime, timedelta

from rich.console import Console
from rich.filesize import decimal
from rich.text import Text

from pipeline.compact import bins, drop_superseded, join_files
from pipeline.storage import Storage, join
from pipeline.views import write_views
from schemas.errors import UserError


def run(
    output: str,
    storage: Storage,
    console: Console,
    *,
    target_bytes: int,
    superseded_days: int | None = None,
    plan_days: int | None = None,
    dry_run: bool = False,
) -> None:
    """Compact an output folder; safe beside readers and runs.

    target_bytes: about so large files become; those of half that size stay as they are.
    superseded_days: remove rows of partitions older than this that the view ``latest`` does not
        show: of earlier recipes, and of content that has changed since.
    plan_days: remove the plans and logs of complete runs older than this; run.json stays.
    dry_run: only say what would be joined.

    Raises:
        UserError: there is no table, or the storage failed.
    """
    if not storage.list_files(join(output, "annotations"), "*/part-*.parquet"):
        raise UserError(f"{output} has no annotations: give the `output` of a job")
    todo = [some for some in bins(output, storage, target_bytes) if len(some.files) > 1]
    count = sum(len(some.files) for some in todo)
    size = sum(file["size"] for some in todo for file in some.files)
    text = f"{count:,} files of together {decimal(size)} into {len(todo):,}"
    if dry_run:
        console.print(Text(f"would join {text}; a dry run, nothing was written"))
        return
    gone = sum(join_files(some, storage) for some in todo)
    console.print(Text(f"joined {text}" + ("" if gone == count else f"; {gone:,} removed")))
    write_views(output, storage)
    if superseded_days is not None:
        rows = drop_superseded(output, _days_ago(superseded_days), storage)
        console.print(f"removed {rows:,} superseded rows")
    if plan_days is not None:
        files = _old_plans(output, _days_ago(plan_days), storage)
        for file in files:
            storage.remove(file)
        console.print(f"removed {len(files):,} files of earlier runs' plans and logs")


def _days_ago(days: int) -> str:
    return f"{datetime.now(UTC) - timedelta(days=days):%Y-%m-%d}"


def _old_plans(output: str, before: str, storage: Storage) -> list[str]:
    """Plans and logs of complete runs from before a date, but of the latest run of each job."""
    from jobs.runs import all_runs

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


if __name__ == "__main__":
    from jobs.cli import main

    main(prog_name="reelscribe", args=["compact", *sys.argv[1:]])
