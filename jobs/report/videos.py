"""Whole videos as JSON values for the page: the row of ``items``, and the video's units.

A video has an index entry, for the list, and details, which the page loads when it shows the video.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pyarrow.compute as pc

from jobs.report.units import cut, headline_of, href, name_of
from jobs.results.read import Row, parquet_files
from pipeline.storage.parquet import read_parquet
from pipeline.storage.storage import Storage, join
from schemas.tables.item import item_id
from schemas.task import Question

_EXCERPT_CHARS = 240
_SEARCHED_CHARS = 2000


def read_items(output: str, recipe_ids: Collection[str], storage: Storage) -> dict[str, list[Row]]:
    """Read the rows of ``items`` of some recipes, by media_id; empty if there are none."""
    found: dict[str, list[Row]] = defaultdict(list)
    if output.lower().endswith(".parquet"):
        return found
    for file in parquet_files(join(output, "items"), storage):
        table = read_parquet(file, storage)
        if "items_id" in table.column_names:
            for row in table.filter(pc.field("recipe_id").isin(list(recipe_ids))).to_pylist():
                found[row["media_id"]].append(row)
    return found


def video_values(
    rows: Sequence[Row],
    items: Mapping[str, Sequence[Row]],
    created: Mapping[str, str],
    questions: Mapping[str, Question],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the index entries and the details of the videos, in the order of their first unit.

    rows: units, as the page numbers them. items: as ``read_items`` returns them. created: when
    each run was created. questions: those of the table, by name.
    """
    numbers: dict[str, list[int]] = defaultdict(list)
    for number, row in enumerate(rows):
        if (row.get("media") or {}).get("media_type") == "video" and row.get("sampling"):
            numbers[row["media_id"]].append(number)
    entries, details = [], []
    for found in numbers.values():
        units = [rows[number] for number in found]
        item = _item_of(units, items, created)
        entries.append(_entry(units, found, item))
        details.append(_details(units, item, questions))
    return entries, details


def _item_of(
    units: Sequence[Row], items: Mapping[str, Sequence[Row]], created: Mapping[str, str]
) -> Row | None:
    """Return the newest row about exactly these units, else the newest about the same content.

    Units that are copied from another name have the row of that name.
    """
    sources = [unit.get("copied_from") or unit for unit in units]
    ids = [source["unit_id"] for source in sources]
    contents = {unit["media"].get("content_version") for unit in units}

    def is_exact(item: Row) -> bool:
        return bool(item["item_id"] == item_id(item["items_id"], ids))

    def is_same(item: Row) -> bool:
        return is_exact(item) or (item.get("media") or {}).get("content_version") in contents

    found = filter(is_same, items.get(sources[0]["media_id"], ()))
    return max(found, key=lambda i: (is_exact(i), created.get(i["run_id"], "")), default=None)


def _entry(units: Sequence[Row], numbers: list[int], item: Row | None) -> dict[str, Any]:
    statuses = {unit["status"] for unit in units}
    status = statuses.pop() if len(statuses) == 1 else "partial"
    summary = (item or {}).get("summary") or ""
    events = (item or {}).get("events") or []
    words = [name_of(units[0]), units[0]["uri"], summary, *(e["caption"] for e in events)]
    spans = [unit["sampling"] for unit in units]
    return {
        "name": name_of(units[0]),
        "units": numbers,
        "status": item["status"] if item else status,
        "num_failed": sum(unit["status"] == "failed" for unit in units),
        "start": min(span.get("start_seconds") or 0.0 for span in spans),
        "end": max(span.get("end_seconds") or 0.0 for span in spans),
        "text": " ".join(words)[:_SEARCHED_CHARS].lower(),
    }


def _details(
    units: Sequence[Row], item: Row | None, questions: Mapping[str, Question]
) -> dict[str, Any]:
    events = (item or {}).get("events") or []
    return {
        "uri": units[0]["uri"],
        "href": href(units[0]["uri"]),
        "summary": cut((item or {}).get("summary")),
        "note": (item or {}).get("summary_note"),
        "events": [
            {"start": e["start_seconds"], "end": e["end_seconds"], "caption": e["caption"]}
            for e in events
        ],
        "excerpts": [_excerpt(unit, questions) for unit in units],
    }


def _excerpt(row: Row, questions: Mapping[str, Question]) -> str:
    if row.get("error"):
        return f"{row['error']['type']}: {row['error']['message']}"[:_EXCERPT_CHARS]
    return " ".join(headline_of(row, questions).split())[:_EXCERPT_CHARS]
