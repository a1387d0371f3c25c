"""The output table: one row for each unit, whatever happened."""

import pyarrow as pa

from schemas.errors import ERROR
from schemas.unit import PART, UNIT, described

SCHEMA_VERSION = 1
"""Raised when a column changes its meaning or type; new columns alone do not raise it."""

RESPONSE = pa.struct(
    [
        described("task", pa.string(), "name of the task", nullable=False),
        described(
            "prompt",
            pa.string(),
            "the text after the media, as the model got it; of `chat` the messages, as JSON",
            nullable=False,
        ),
        described(
            "raw_text", pa.string(), "the model's answer, untouched but for the copies of a loop"
        ),
        described("reasoning", pa.string(), "what a Thinking model wrote before its answer"),
        described(
            "finish_reason",
            pa.string(),
            "stop; length: cut at max_new_tokens; loop: stopped where it repeated itself",
        ),
        described(
            "num_prompt_tokens", pa.int32(), "tokens fed, vision included, as the engine counted"
        ),
        described("num_output_tokens", pa.int32(), "tokens generated"),
        described("attempts", pa.int8(), "2 where it was asked again, as generation.retry says"),
        described(
            "status",
            pa.string(),
            "ok, repaired, unparsed, truncated, looped or failed",
            nullable=False,
        ),
        described("note", pa.string(), "what was repaired, or why it could not be read"),
    ]
)

SEEN = pa.struct([PART.field(name) for name in ("uri", "media", "sampling")])
"""An image or video of a conversation."""

TIMINGS = pa.struct(
    [
        described("decode_seconds", pa.float64(), "decode, resize and prompt", unit="s"),
        described("engine_seconds", pa.float64(), "share of the batch's time", unit="s"),
        described("bytes_read", pa.int64(), "read from storage by the decoder", unit="bytes"),
        described("finished_at", pa.timestamp("us", tz="UTC"), "when the row was written"),
    ]
)


def annotation_schema(task_columns: list[pa.Field]) -> pa.Schema:
    """The schema of the output: the fixed columns, then one typed column for each known task.

    Every known task has its column in every run, null where the job did not ask it, so that files
    of different jobs are one table.
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
                "hash of all that determines the answers; (unit_id, recipe_id) is the table's key",
                nullable=False,
            ),
            unit["uri"],
            unit["content_version"],
            described(
                "status", pa.string(), "ok, partial (some task not ok), failed", nullable=False
            ),
            described("error", ERROR, "why it failed; null otherwise"),
            unit["media"],
            unit["sampling"],
            described(
                "parts",
                pa.list_(SEEN),
                "the images and videos of a conversation, in order; empty for other rows",
                nullable=False,
            ),
            *task_columns,
            described(
                "responses",
                pa.list_(RESPONSE),
                "one for each task asked; empty where the media could not be read",
                nullable=False,
            ),
            described("timings", TIMINGS, "where the seconds went", nullable=False),
            unit["attributes"],
        ],
        metadata={"schema_version": str(SCHEMA_VERSION)},
    )
