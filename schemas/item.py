"""The items table: one row for each video, made of its units' rows."""

import pyarrow as pa

from schemas.unit import MEDIA, UNIT, described


def item_schema(events: pa.Field) -> pa.Schema:
    """The schema of the items table. events: the column of the task of that name."""
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
            described(
                "recipe_id", pa.string(), "the recipe of the rows it is made of", nullable=False
            ),
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
            described("num_failed_units", pa.int32(), "those without answers", nullable=False),
            events.with_metadata(
                {
                    "description": "what happens, and when, over all units: an event that two "
                    "units saw is there once"
                }
            ),
            described("summary", pa.string(), "what the whole video shows; null if not asked for"),
            described(
                "summary_note", pa.string(), "what was wrong with the summary, or is left out of it"
            ),
            UNIT.field("attributes"),
        ]
    )
