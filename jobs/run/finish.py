"""Finish a run: check that each unit has one row, count the results, and print them."""

import dataclasses
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.text import Text

from jobs.console.progress import print_summary
from jobs.plan.open_job import JobContext
from jobs.plan.plan_file import read_rows
from jobs.plan.runs import Run
from jobs.run.items import write_items
from pipeline.output.duplicates import remove_rows
from pipeline.output.seal import seal_pieces, settle
from pipeline.output.table import ids_in, read_committed, read_files
from pipeline.output.views import write_views
from pipeline.storage.storage import Storage, join
from schemas.errors import TRANSIENT, ResourceError
from schemas.tables.annotation import ANNOTATIONS, PIECES
from schemas.tables.listing import LISTING


def finish(context: JobContext, run: Run, plan: pa.Table, seconds: float, console: Console) -> Run:
    """Remove superfluous rows, check that every unit has exactly one, and close the run.

    plan: UNIT rows. seconds: duration of this start.

    Raises:
        ResourceError: units have no row.
        StorageError: the storage refused or failed.
    """
    storage = context.storage
    rows = settle(lambda: read_rows(context, plan), context.job.output, storage, plan)
    is_planned = pc.is_in(rows["unit_id"], plan["unit_id"])
    is_of_run = pc.equal(rows["run_id"], pa.scalar(run.run_id))
    unplanned = rows.filter(pc.and_not(is_of_run, is_planned))
    rows = rows.filter(is_planned)
    seal_pieces(ids_in(rows, "file"), context.job.output, storage)
    remove_rows(_find_changed_rows(unplanned, plan, context), storage)
    if missing := plan.num_rows - rows.num_rows:
        raise ResourceError(
            f"{run.run_id}: {missing} units have no row yet; run the same command again"
        )
    counts = _counts(rows, run)
    finished = dataclasses.replace(
        run,
        status="complete",
        finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(seconds, 3),
        counts=counts,
    )
    finished.save(context.job, context.storage)
    write_views(context.job.output, storage)
    _remove_pending(run, context.job.output, storage)
    print_run(finished, context, console)
    write_items_table(context, plan, console)
    return finished


def write_items_table(context: JobContext, plan: pa.Table, console: Console) -> None:
    """Write the rows of whole videos that the table ``items`` lacks, and print their number."""
    if written := write_items(context, plan, console):
        write_views(context.job.output, context.storage)  # they have `items` from now on
        table = join(context.job.output, "items")
        console.print(Text(f"{written:,} videos as a whole: {table}"), soft_wrap=True)


def _remove_pending(run: Run, output: str, storage: Storage) -> None:
    """Remove the half-written files of killed writers; the lease keeps other writers out."""
    for folder, pattern in (
        (join(output, ANNOTATIONS), f"*/.part-{run.run_id}-*.pending-*"),
        (join(output, PIECES), f"*/.part-{run.run_id}-*.pending-*"),
        (run.folder(output), "**/.*.pending-*"),
    ):
        for file in storage.list_files(folder, pattern):
            storage.remove(file["uri"])


def _find_changed_rows(rows: pa.Table, plan: pa.Table, context: JobContext) -> pa.Table:
    """Find rows of earlier content of media that a retry planned with other content.

    rows: of the run, of units that its plan does not have. Returns ``unit_id`` first, and ``file``.
    Rows that ``latest`` shows under another name stay.
    """
    if not rows.num_rows:
        return rows.select(["unit_id", "file"])
    media_ids = rows["media_id"].combine_chunks().unique()
    planned = plan.filter(pc.is_in(plan["media_id"], media_ids)).select(["media_id", *_CONTENT])
    content = {(row["media_id"], *_versions(row)) for row in planned.to_pylist()}
    output, recipe_ids = context.job.output, context.run.recipe_ids
    columns = ("unit_id", "media_id", *_CONTENT.values())
    # Read again: removing duplicates may have just moved these rows into other files.
    found = read_committed(output, recipe_ids, context.storage, columns, media_ids)
    found = found.filter(pc.is_in(found["unit_id"], rows["unit_id"]))
    listed = read_files(join(output, "listing"), None, context.storage, _LISTED, LISTING)
    names = listed.to_pylist()
    shared = {row["answers_of"] for row in names if row["answers_of"] != row["media_id"]}
    is_changed = [
        bool(versions := _versions(row))
        and (row["media_id"], *versions) not in content
        and row["media_id"] not in shared
        for row in found.to_pylist()
    ]
    return found.filter(pa.array(is_changed, pa.bool_()))


_LISTED = ["media_id", "answers_of"]
_CONTENT = {
    "media": "media.content_version",
    "parts": "parts.list.element.media.content_version",
}


def _versions(row: dict[str, Any]) -> list[str | None]:
    seen = [row["media"]] if row["media"] else [part["media"] for part in row["parts"] or ()]
    return [media["content_version"] for media in seen]


def _counts(rows: pa.Table, run: Run) -> dict[str, Any]:
    """Counts and sums over the rows of a run's units."""
    responses = pc.list_flatten(rows["responses"])
    parts = pc.list_flatten(rows["parts"])
    sampled = [rows["sampling"], pc.struct_field(parts, "sampling")]
    decoders = [_tally(pc.struct_field(sampling, "decoder")) for sampling in sampled]

    def total(values: Any) -> Any:
        return pc.sum(values).as_py() or 0

    return {
        "units": rows.num_rows,
        "units_of_earlier_runs": total(pc.not_equal(rows["run_id"], pa.scalar(run.run_id))),
        "status": _tally(rows["status"]),
        "errors": _tally(pc.struct_field(rows["error"], "type")),
        "answers": _tally(pc.struct_field(responses, "status")),
        "decoders": {k: sum(of.get(k, 0) for of in decoders) for k in {*decoders[0], *decoders[1]}},
        "prompt_tokens": total(pc.struct_field(responses, "num_prompt_tokens")),
        "output_tokens": total(pc.struct_field(responses, "num_output_tokens")),
        "decode_seconds": round(total(pc.struct_field(rows["timings"], "decode_seconds")), 3),
        "engine_seconds": round(total(pc.struct_field(rows["timings"], "engine_seconds")), 3),
    }


def _tally(values: "pa.ChunkedArray[Any]") -> dict[str, int]:
    """How often each value occurs; nulls are left out."""
    counts: Any = pc.value_counts(values.drop_null())
    return {found["values"]: found["counts"] for found in counts.to_pylist()}


def print_run(run: Run, context: JobContext, console: Console) -> None:
    """Print the summary of a complete run."""
    counts = run.counts
    lines = [
        ("units", f"{counts['units']:,}: {_listed(counts['status'])}" + _earlier(counts)),
        ("answers", _listed(counts["answers"])),
        ("errors", _listed(counts["errors"])),
        ("decoded by", _listed(counts["decoders"])),
        (
            "tokens",
            f"{counts['prompt_tokens']:,} in, {counts['output_tokens']:,} out",
        ),
        ("seconds", f"{run.seconds:,.1f}" + _starts(run)),
        ("table", join(context.job.output, "annotations")),
    ]
    print_summary(console, f"run {run.run_id} is complete", lines)
    if num_transient := sum(counts["errors"].get(kind, 0) for kind in TRANSIENT):
        console.print(
            f"{num_transient:,} units failed with errors that may be gone by now: `reelscribe "
            "retry`, with the same job, does them again"
        )


def _earlier(counts: dict[str, Any]) -> str:
    earlier = counts["units_of_earlier_runs"]
    return f" ({earlier:,} by earlier runs)" if earlier else ""


def _starts(run: Run) -> str:
    last = f", the last of {run.starts} starts, which did {run.num_units:,} units"
    return last if run.starts > 1 else ""


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{n:,} {name}" for name, n in sorted(counts.items())) or "none"
