"""The table ``items``: one row for each video of a run, made of its units' rows.

It has the events of all units as one list, and, if the job asks for it, a summary. A row is written
once for the same units and the same settings, whichever run comes to it.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console

from jobs.cluster import actor_errors, connected, pools
from jobs.plan import Opened
from jobs.progress import Progress
from pipeline.build import build_summaries
from pipeline.parse import TASKS
from pipeline.stages import UNSUMMARISED
from pipeline.stitch import Seen, stitch
from pipeline.storage import join
from pipeline.write import committed, drop_rows, part_name, read_parts, settle, write_parquet
from schemas.item import item_schema
from schemas.unit import UnitStatus

VERSION = 1
"""Raised when the way that rows are made of units changes."""

ITEM = item_schema(TASKS["events"].column)
ITEMS_PER_FILE = 1024

_COLUMNS = (
    "unit_id", "media_id", "media", "run_id", "uri", "status", "error.type", "error.attempts",
    "sampling.start_seconds", "sampling.end_seconds", "sampling.sample_fps", "caption", "events",
    "attributes", "parts.list.element.uri",
)  # fmt: skip
_WRITTEN = ("item_id", "media_id", "run_id", "num_failed_units")


def write_items(opened: Opened, plan: pa.Table, console: Console) -> int:
    """Write the rows of a complete run's videos that are not there yet; returns how many.

    plan: the run's units. A job that asks for neither events nor a summary has no such table.

    Raises:
        UserError: the storage failed, or the cluster.
    """
    job, storage, key = opened.job, opened.storage, opened.run.key
    if job.summary is None and "events" not in [task.name for task in job.tasks]:
        return 0
    settings = {
        "recipe": key.recipe_id,
        "version": VERSION,
        "summary": job.summary.model_dump(mode="json") if job.summary else None,
    }
    items_id = _hash(json.dumps(settings, sort_keys=True))[:16]
    folder = join(job.output, "items")
    rows = committed(job.output, key.recipe_id, storage, _COLUMNS)
    rows = settle(rows, storage, plan)
    is_video = pc.equal(pc.struct_field(rows["media"], "media_type"), "video")
    is_planned = pc.is_in(rows["unit_id"], plan["unit_id"])
    videos: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows.filter(pc.and_(is_planned, is_video)).to_pylist():
        videos[row["media_id"]].append(row)
    written = read_parts(folder, items_id, storage, _WRITTEN, ITEM)
    ids = {
        media: _hash(items_id, *sorted(unit["unit_id"] for unit in units))[:24]
        for media, units in videos.items()
    }
    failed = {ids[media]: _num_failed(units) for media, units in videos.items()}
    # After a retry, rows are stale that counted a unit as failed, or were of the object's content.
    stale = [
        row
        for row in written.to_pylist()
        if row["num_failed_units"] != failed.get(row["item_id"], row["num_failed_units"])
        or (row["run_id"] == key.run_id and row["item_id"] != ids.get(row["media_id"]))
    ]
    done = set(written["item_id"].to_pylist()) - {row["item_id"] for row in stale}
    todo = [media for media in sorted(videos) if ids[media] not in done]
    names = {"run_id": key.run_id, "recipe_id": key.recipe_id, "items_id": items_id}
    blocks = [
        [item_row(videos[m], {"item_id": ids[m]} | names) for m in todo[k : k + ITEMS_PER_FILE]]
        for k in range(0, len(todo), ITEMS_PER_FILE)
    ]
    notes = {ids[media]: notes_of(videos[media]) for media in todo}
    for block in _summarised(blocks, notes, opened, console) if job.summary else blocks:
        table = pa.Table.from_pylist(block, schema=ITEM)
        name = part_name(table["item_id"].to_pylist(), key.run_id, items_id)
        part = join(folder, f"run_date={key.run_date}", name)
        write_parquet(table, part, storage)
        stale = [row for row in stale if row["file"] != part]  # that name's old rows are gone
    drop_rows(
        pa.table({name: [row[name] for row in stale] for name in ("item_id", "file")}), storage
    )
    return len(todo)


def item_row(units: Sequence[dict[str, Any]], names: dict[str, str]) -> dict[str, Any]:
    """One row of ITEM, without a summary, from the rows of a video's units."""
    units = sorted(units, key=_start)
    failed = _num_failed(units)
    told = [unit for unit in units if unit["events"] is not None]
    status = (
        UnitStatus.OK if all(u["status"] == UnitStatus.OK for u in units) else UnitStatus.PARTIAL
    )
    return names | {
        "media_id": units[0]["media_id"],
        "uri": units[0]["uri"],
        "status": UnitStatus.FAILED if failed == len(units) else status,
        "media": units[0]["media"],
        "num_units": len(units),
        "num_failed_units": failed,
        "events": stitch([_seen(unit) for unit in told]) if told else None,
        "summary": None,
        "summary_note": None,
        "attributes": units[0]["attributes"],
    }


def _num_failed(units: Sequence[dict[str, Any]]) -> int:
    return sum(unit["status"] == UnitStatus.FAILED for unit in units)


def _seen(unit: dict[str, Any]) -> Seen:
    sampling = unit["sampling"]
    return Seen(
        start_seconds=sampling["start_seconds"],
        end_seconds=sampling["end_seconds"],
        step_seconds=2 / sampling["sample_fps"],
        events=unit["events"],
    )


def notes_of(units: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a summary is made of: the captions, in the order of time."""
    said = [unit for unit in units if unit["caption"]]
    return [
        {
            "start_seconds": unit["sampling"]["start_seconds"],
            "end_seconds": unit["sampling"]["end_seconds"],
            "text": unit["caption"],
        }
        for unit in sorted(said, key=_start)
    ]


def _summarised(
    blocks: list[list[dict[str, Any]]],
    notes: dict[str, list[dict[str, Any]]],
    opened: Opened,
    console: Console,
) -> Iterator[list[dict[str, Any]]]:
    """Blocks as they are done, with their summaries. notes: what is said of each, by item_id."""
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
    with connected(console), pools(opened.job) as fitted:
        dataset = build_summaries(tables, opened.job, opened.checkpoint.max_model_len, fitted)
        with (
            Progress(
                console, "summarising", total_units=len(rows), total_cost=float(len(rows))
            ) as bar,
            actor_errors(),
        ):
            bar.status("starting engines")
            for batch in dataset.iter_batches(
                batch_size=None, batch_format="pyarrow", prefetch_batches=0
            ):
                found = batch.select(["item_id", "summary", "summary_note"]).to_pylist()
                yield [_with_summary(rows[row["item_id"]], row) for row in found]
                bar.advance(units=len(found), cost=float(len(found)))


def _with_summary(row: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    note = found["summary_note"]
    if found["summary"] is None and note is None:
        note = "no unit has a caption"
    whole = found["summary"] is not None and row["status"] != UnitStatus.FAILED
    status = row["status"] if whole or row["status"] != UnitStatus.OK else UnitStatus.PARTIAL
    return row | {"summary": found["summary"], "summary_note": note, "status": status}


def _start(unit: dict[str, Any]) -> float:
    return (unit["sampling"] or {}).get("start_seconds") or 0.0


def _hash(*parts: str) -> str:
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()
