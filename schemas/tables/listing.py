"""The table ``listing``: what a listing changed without a new answer.

A name whose content is known gets a row that says whose answers are its own; a name that is not
listed any more gets a row that says so. Rows are added and never changed: the newest row of a name
counts, unless the name has newer rows in ``annotations``.
"""

import pyarrow as pa

from schemas.tables.columns import described
from schemas.tables.unit import UNIT

MAX_AHEAD_SECONDS = 3600
"""A row's time that is further ahead of a reader's clock is not believed: it counts as no time."""

LISTING = pa.schema(
    [
        UNIT.field("media_id"),
        UNIT.field("uri"),
        described("run_id", pa.string(), "the run that wrote this row", nullable=False),
        described("recipe_id", pa.string(), "recipe of the answers", nullable=False),
        described("content_version", pa.string(), "the content as listed; null if it is gone"),
        described(
            "answers_of",
            pa.string(),
            "media_id of the rows that have the answers: the same, or that of another name with "
            "the same content; null if it is gone",
        ),
        described(
            "is_gone", pa.bool_(), "the source does not list the media any more", nullable=False
        ),
        described(
            "listed_at", pa.timestamp("us", tz="UTC"), "when the listing began", nullable=False
        ),
    ]
)
"""The schema of the table ``listing``."""
