"""The table ``items``: one row per video of a run, built from its units' rows.

A row has the events of all units as one list and, if the job asks for it, a summary. A row is
written once for the same units and the same settings, by whichever run comes first.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console

from jobs.cluster.session import fit_job, fitted_pools, ray_session, tables_of
from jobs.cluster.small import early_engine, why_ray
from jobs.console.progress import Progress
from jobs.plan.open_job import JobContext
from jobs.plan.plan_file import read_rows
from pipeline.output.duplicates import remove_duplicates, remove_rows
from pipeline.output.file_names import file_name, level_of
from pipeline.output.rows import ITEM
from pipeline.output.stitch import UnitEvents, stitch
from pipeline.output.table import read_files
from pipeline.stages.graph import build_summaries
from pipeline.stages.here import SmallChain
from pipeline.stages.summarise import UNSUMMARISED
from pipeline.storage.parquet import write_parquet
from pipeline.storage.storage import join
from schemas.tables.item import item_id
from schemas.tables.unit import UnitStatus

VERSION = 1
"""Raise it when the way in which rows are built from units changes."""

ITEMS_PER_FILE = 1024

Row = dict[str, Any]

_UNIT_COLUMNS = (
    "unit_id", "media_id", "content_version", "media", "run_id", "uri", "status", "error.type",
    "error.attempts",
    "sampling.start_seconds", "sampling.end_seconds", "sampling.sample_fps", "caption", "events",
    "attributes", "parts.list.element.uri",
)  # fmt: skip
_ITEM_COLUMNS = ("item_id", "media_id", "run_id", "num_failed_units")


def write_items(context: JobContext, plan: pa.Table, console: Console) -> int:
    """Write the missing rows of a complete run's videos, and remove stale ones.

    plan: the run's units. A job without events and summary has no such table.

    Returns the number of rows written.

    Raises:
        UserError: the storage or the cluster failed.
    """
    job, storage, key = context.job, context.storage, context.run.key
    if job.summary is None and "events" not in [task.name for task in job.tasks]:
        return 0
    settings = {
        "recipe": key.recipe_ids.video,
        "version": VERSION,
        "summary": job.summary.model_dump(mode="json") if job.summary else None,
    }
    items_id = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    folder = join(job.output, "items")
    rows = remove_duplicates(read_rows(context, plan, _UNIT_COLUMNS), storage, plan)
    videos = _units_by_video(rows, plan)
    ids = {
        media_id: item_id(items_id, [unit["unit_id"] for unit in units])
        for media_id, units in videos.items()
    }
    written = read_files(folder, [items_id], storage, _ITEM_COLUMNS, ITEM).to_pylist()
    stale = _find_stale(written, videos, ids, key.run_id)
    stale_files = {(row["item_id"], row["file"]) for row in stale}
    done = {row["item_id"] for row in written if (row["item_id"], row["file"]) not in stale_files}
    todo = [media_id for media_id in sorted(videos) if ids[media_id] not in done]
    names = {"run_id": key.run_id, "recipe_id": key.recipe_ids.video, "items_id": items_id}
    blocks = [
        [item_row(videos[m], {"item_id": ids[m]} | names) for m in todo[k : k + ITEMS_PER_FILE]]
        for k in range(0, len(todo), ITEMS_PER_FILE)
    ]
    notes = {ids[media_id]: caption_notes(videos[media_id]) for media_id in todo}
    for block in _summarise(blocks, notes, context, console) if job.summary else blocks:
        table = pa.Table.from_pylist(block, schema=ITEM)
        name = file_name(key.run_id, items_id)
        write_parquet(table, join(folder, f"run_date={key.run_date}", name), storage)
    stale_rows = {name: [row[name] for row in stale] for name in ("item_id", "file")}
    remove_rows(pa.table(stale_rows), storage)
    return len(todo)


def _units_by_video(rows: pa.Table, plan: pa.Table) -> dict[str, list[Row]]:
    """The rows of the plan's units of videos, by ``media_id``."""
    is_video = pc.equal(pc.struct_field(rows["media"], "media_type"), pa.scalar("video"))
    is_planned = pc.is_in(rows["unit_id"], plan["unit_id"])
    videos: dict[str, list[Row]] = defaultdict(list)
    for row in rows.filter(pc.and_(is_planned, is_video)).to_pylist():
        videos[row["media_id"]].append(row)
    return videos


def _find_stale(
    written: Sequence[Row],
    videos: Mapping[str, Sequence[Row]],
    ids: Mapping[str, str],
    run_id: str,
) -> list[Row]:
    """Find rows that a retry has outdated.

    These are rows that count a unit as failed that has an answer now, rows of this run about
    earlier content of the media, and all but one row of the same units, as two drivers write.
    ids: the item_id of each video.
    """
    num_failed = {ids[media_id]: _num_failed(units) for media_id, units in videos.items()}
    stale, kept = [], set()
    for row in sorted(written, key=lambda row: (-level_of(row["file"]), row["file"])):
        if (
            row["num_failed_units"] != num_failed.get(row["item_id"], row["num_failed_units"])
            or (row["run_id"] == run_id and row["item_id"] != ids.get(row["media_id"]))
            or row["item_id"] in kept
        ):
            stale.append(row)
        else:
            kept.add(row["item_id"])
    return stale


def item_row(units: Sequence[Row], names: dict[str, str]) -> Row:
    """Make one row of ITEM, without a summary, from the rows of a video's units.

    names: the ids of the row.
    """
    units = sorted(units, key=_start)
    num_failed = _num_failed(units)
    with_events = [unit for unit in units if unit["events"] is not None]
    is_ok = all(unit["status"] == UnitStatus.OK for unit in units)
    status = UnitStatus.OK if is_ok else UnitStatus.PARTIAL
    return names | {
        "media_id": units[0]["media_id"],
        "uri": units[0]["uri"],
        "status": UnitStatus.FAILED if num_failed == len(units) else status,
        "media": units[0]["media"],
        "num_units": len(units),
        "num_failed_units": num_failed,
        "events": stitch([_unit_events(unit) for unit in with_events]) if with_events else None,
        "summary": None,
        "summary_note": None,
        "attributes": units[0]["attributes"],
    }


def _num_failed(units: Sequence[Row]) -> int:
    return sum(unit["status"] == UnitStatus.FAILED for unit in units)


def _unit_events(unit: Row) -> UnitEvents:
    sampling = unit["sampling"]
    return UnitEvents(
        start_seconds=sampling["start_seconds"],
        end_seconds=sampling["end_seconds"],
        step_seconds=2 / sampling["sample_fps"],
        events=unit["events"],
    )


def caption_notes(units: Sequence[Row]) -> list[Row]:
    """The captions for a video's summary, with their time spans, in order of time."""
    return [
        {
            "start_seconds": unit["sampling"]["start_seconds"],
            "end_seconds": unit["sampling"]["end_seconds"],
            "text": unit["caption"],
        }
        for unit in sorted((unit for unit in units if unit["caption"]), key=_start)
    ]


def _summarise(
    blocks: list[list[Row]], notes: dict[str, list[Row]], context: JobContext, console: Console
) -> Iterator[list[Row]]:
    """Yield blocks of rows with their summaries, as they are done. notes: by item_id."""
    if not blocks:
        return
    rows = {row["item_id"]: row for block in blocks for row in block}
    tables = [
        pa.Table.from_pylist(
            [{"item_id": r["item_id"], "notes": notes[r["item_id"]]} for r in block],
            schema=UNSUMMARISED,
        )
        for block in blocks
    ]
    progress = Progress(console, "summarising", total_units=len(rows), total_cost=float(len(rows)))
    with _summaries(tables, len(rows), context, console) as found_tables, progress:
        progress.status("starting engines")
        for batch in found_tables:
            found = batch.select(["item_id", "summary", "summary_note"]).to_pylist()
            yield [_with_summary(rows[row["item_id"]], row) for row in found]
            progress.advance(units=len(found), cost=float(len(found)))


@contextmanager
def _summaries(
    tables: list[pa.Table], num_videos: int, context: JobContext, console: Console
) -> Iterator[Iterator[pa.Table]]:
    """Start the chain of the summaries, in this process or on Ray; yields SUMMARISED tables."""
    job, max_model_len = context.job, context.checkpoint.max_model_len
    with ExitStack() as stack:
        engine = None
        # Not fitted before it is clear: the engines' nodes of a growing cluster are gone by now.
        if why_ray(job, num_videos, "videos") is None and fit_job(job).replicas == 1:
            engine = stack.enter_context(early_engine(job))
        if engine is not None:
            yield SmallChain(engine).summarise(tables, job, max_model_len, fit_job(job))
            return
        stack.enter_context(ray_session(console))
        pools = stack.enter_context(fitted_pools(job))
        chain = build_summaries(tables, job, max_model_len, pools)
        yield tables_of(stack.enter_context(chain))


def _with_summary(row: Row, found: Row) -> Row:
    note = found["summary_note"]
    if found["summary"] is None and note is None:
        note = "no unit has a caption"
    is_whole = found["summary"] is not None and row["status"] != UnitStatus.FAILED
    status = row["status"] if is_whole or row["status"] != UnitStatus.OK else UnitStatus.PARTIAL
    return row | {"summary": found["summary"], "summary_note": note, "status": status}


def _start(unit: Row) -> float:
    return (unit["sampling"] or {}).get("start_seconds") or 0.0
