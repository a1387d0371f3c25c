"""The stage that commits: raw answers in, Parquet files and a summary of their rows out."""

import threading
from collections import defaultdict
from typing import Any

import pyarrow as pa

from pipeline.output.rows import RunKey, annotation_row, schema_of_questions
from pipeline.output.table import commit_rows
from pipeline.storage.storage import Storage, join
from pipeline.workers.code_version import check_code
from schemas.errors import ErrorType, StorageError
from schemas.job.job import Job
from schemas.shown import log_shown
from schemas.tables.annotation import PIECES, RESPONSE, TIMINGS
from schemas.tables.columns import from_table
from schemas.tables.error import ERROR
from schemas.tables.unit import UNIT, AnsweredUnit, Unit

OUTAGE_UNITS = 32
"""This many units in a row that failed because of the storage are an outage."""

_SUMMARY = ("task", "num_prompt_tokens", "num_output_tokens", "attempts", "status")


COMMITTED = pa.schema(
    [
        pa.field("unit_id", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("error", ERROR),
        pa.field("predicted_cost", pa.float64(), nullable=False),
        pa.field("num_vision_tokens", pa.int64(), nullable=False),
        pa.field("num_text_tokens", pa.int64(), nullable=False),
        pa.field("num_output_tokens", pa.int64(), nullable=False),
        pa.field("engine_seconds", pa.float64(), nullable=False),
        pa.field("engine", pa.string()),
        pa.field("responses", pa.list_(pa.struct([RESPONSE.field(name) for name in _SUMMARY]))),
        pa.field("timings", TIMINGS),
    ]
).append(UNIT.field("shard"))
"""What the driver gets of each committed unit, for progress, costs, log and metrics."""


class Commit:
    """Stage: ANSWERED in, pieces of shards and COMMITTED out. Threads may call it at once."""

    def __init__(
        self, job: Job, key: RunKey, storage: Storage, code: str, units_per_file: int = 1 << 31
    ) -> None:
        """units_per_file: the most rows of a file."""
        log_shown()
        check_code(code)
        self._folder = join(job.output, PIECES)
        self._questions = {question.name: question for question in job.questions()}
        self._schema = schema_of_questions(job.questions())
        self._key = key
        self._storage = storage
        self._units_per_file = units_per_file
        self._lock = threading.Lock()
        self._num_storage_failures = 0
        self._last_failure = ""

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Parse the answers, write files for each shard and recipe, and summarise the rows.

        Raises:
            StorageError: the output cannot be written, or no media can be read any more.
        """
        units = from_table(batch, AnsweredUnit)
        with self._lock:
            self._check_outage(units)
        rows = [annotation_row(unit, self._questions, self._key) for unit in units]
        of_shard: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for unit, row in zip(units, rows, strict=True):
            of_shard[unit.shard].append(row)
        for shard, some in of_shard.items():
            for start in range(0, len(some), self._units_per_file):
                few = some[start : start + self._units_per_file]
                commit_rows(few, self._folder, self._key, self._storage, self._schema, shard)
        summary = [
            {
                "unit_id": unit.unit_id,
                "shard": unit.shard,
                "status": row["status"],
                "error": row["error"],
                "predicted_cost": unit.predicted_cost,
                "num_vision_tokens": _vision_tokens(unit) if unit.answers else 0,
                "num_text_tokens": (
                    unit.num_fed_tokens - _vision_tokens(unit) if unit.answers else 0
                ),
                "engine_seconds": unit.engine_seconds,
                "engine": unit.engine,
                "num_output_tokens": sum(answer.num_output_tokens for answer in unit.answers),
                "responses": row["responses"],
                "timings": row["timings"],
            }
            for unit, row in zip(units, rows, strict=True)
        ]
        return pa.Table.from_pylist(summary, schema=COMMITTED)

    def _check_outage(self, units: list[AnsweredUnit]) -> None:
        """Without this stop, every further unit would become an error row."""
        for unit in units:
            if unit.error is not None and unit.error.stage == "plan":
                continue  # planned earlier: does not show the storage's present state
            if unit.error is not None and unit.error.type == ErrorType.STORAGE_FAILED:
                self._num_storage_failures += 1
                self._last_failure = unit.error.message
            else:
                self._num_storage_failures = 0
        if self._num_storage_failures >= OUTAGE_UNITS:
            raise StorageError(
                f"the storage of the media fails: the last {self._num_storage_failures} units "
                f"failed because of it, the last one with: {self._last_failure}. Run the same "
                "command again when the storage answers"
            )


def _vision_tokens(unit: Unit) -> int:
    return sum(part.sampling.num_vision_tokens for part in unit.seen)
