"""The output table: one row for each unit, also for failed ones."""

from typing import Any, NamedTuple

import pyarrow as pa

from schemas.tables.columns import described
from schemas.tables.error import ERROR
from schemas.tables.media import PART
from schemas.tables.unit import UNIT

ANNOTATIONS = "annotations"
"""The folder of the table in an output."""

PIECES = "annotations-pieces"
"""The folder of rows that are not in the table yet, since their shard is not sealed."""

SCHEMA_VERSION = 1
"""Incremented when a column changes its meaning or type; not for new columns."""

RESPONSE = pa.struct(
    [
        described("task", pa.string(), "name of the task", nullable=False),
        described(
            "prompt",
            pa.string(),
            "the text after the media, as the model read it; for `chat` the messages, as JSON",
            nullable=False,
        ),
        described(
            "raw_text",
            pa.string(),
            "the model's answer, unchanged except for removed loop copies; null for a vector",
        ),
        described("reasoning", pa.string(), "what the model reasoned before its answer"),
        described(
            "finish_reason",
            pa.string(),
            "stop; length: cut at max_new_tokens; loop: stopped because it repeated itself",
        ),
        described(
            "num_prompt_tokens",
            pa.int32(),
            "prompt tokens, vision included, as the engine counted them",
        ),
        described("num_output_tokens", pa.int32(), "tokens generated"),
        described(
            "attempts", pa.int8(), "2 if the answer was generated again, see generation.retry"
        ),
        described(
            "status",
            pa.string(),
            "ok, repaired, unparsed, truncated, looped or failed",
            nullable=False,
        ),
        described("note", pa.string(), "what was repaired, or why it could not be parsed"),
    ]
)

TIMINGS = pa.struct(
    [
        described(
            "decode_seconds", pa.float64(), "decoding, resizing and building prompts", unit="s"
        ),
        described("engine_seconds", pa.float64(), "the unit's share of its batch's time", unit="s"),
        described(
            "bytes_read", pa.int64(), "bytes that the decoder read from storage", unit="bytes"
        ),
        described("finished_at", pa.timestamp("us", tz="UTC"), "when the row was written"),
    ]
)

_SEEN = pa.struct([PART.field(name) for name in ("uri", "media", "sampling")])


class RecipeIds(NamedTuple):
    """The recipe ids of a run's rows, by what a row is about.

    image, video: rows of one image or video. messages: rows of conversations, which may hold both.
    unread: rows of media that could not be read, or that no task fits: they may be of any kind, so
        this is the id of the whole recipe.
    """

    image: str
    video: str
    messages: str
    unread: str


def annotation_schema(task_columns: "list[pa.Field[Any]]") -> pa.Schema:
    """Return the output's schema: the fixed columns, with one typed column for each known task.

    Every file has the columns of all known tasks, null for tasks that the job does not have, so
    that files of different jobs are one table.
    """
    unit = {name: UNIT.field(name) for name in UNIT.names}
    return pa.schema(
        [
            unit["unit_id"],
            unit["media_id"],
            described("run_id", pa.string(), "the run that wrote this row", nullable=False),
            described(
                "recipe_id",
                pa.string(),
                "hash of the settings that determine the answers to media of this kind; "
                "(unit_id, recipe_id) is the table's key",
                nullable=False,
            ),
            unit["uri"],
            unit["content_version"],
            described(
                "status", pa.string(), "ok, partial (some task not ok), failed", nullable=False
            ),
            described("error", ERROR, "why the unit failed; else null"),
            unit["media"],
            unit["sampling"],
            described(
                "parts",
                pa.list_(_SEEN),
                "the images and videos of a conversation, in order; empty for other rows",
                nullable=False,
            ),
            *task_columns,
            described(
                "responses",
                pa.list_(RESPONSE),
                "one for each task; empty if the media could not be read",
                nullable=False,
            ),
            described("timings", TIMINGS, "time and bytes that the unit took", nullable=False),
            unit["attributes"],
        ],
        metadata={"schema_version": str(SCHEMA_VERSION)},
    )
