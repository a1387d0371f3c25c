"""The items table: one row for each video, made from its units' rows."""

import hashlib
from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from schemas.tables.columns import described
from schemas.tables.media import MEDIA
from schemas.tables.unit import UNIT


def item_id(items_id: str, unit_ids: Iterable[str]) -> str:
    """Return the key of the row of a video with these units."""
    parts = [items_id, *sorted(unit_ids)]
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:24]


def item_schema(events: "pa.Field[Any]") -> pa.Schema:
    """Return the schema of the items table. events: the column of the task ``events``."""
    return pa.schema(
        [
            described(
                "item_id",
                pa.string(),
                "hash of items_id and the ids of its units: the table's key",
                nullable=False,
            ),
            UNIT.field("media_id"),
            described("run_id", pa.string(), "the run that wrote this row", nullable=False),
            described("recipe_id", pa.string(), "recipe of the units' rows", nullable=False),
            described(
                "items_id",
                pa.string(),
                "hash of the recipe and of the summary's settings",
                nullable=False,
            ),
            UNIT.field("uri"),
            described(
                "status",
                pa.string(),
                "ok; partial: some unit, or the summary, is not ok; failed: every unit failed",
                nullable=False,
            ),
            described("media", MEDIA, "header facts; null if the media could not be read"),
            described("num_units", pa.int32(), "units of the video", nullable=False),
            described("num_failed_units", pa.int32(), "units without answers", nullable=False),
            events.with_metadata(
                {
                    "description": "what happens, and when, in the whole video; an event that two "
                    "units saw is listed once"
                }
            ),
            described("summary", pa.string(), "what the whole video shows; null if not requested"),
            described(
                "summary_note", pa.string(), "what is wrong with the summary, or missing from it"
            ),
            UNIT.field("attributes"),
        ]
    )
