"""The events of a run as JSON lines: in the run's folder, and on stderr with ``--log-format json``.

One object per line, with ``time``, ``event`` and ``run_id``; units by ``unit_id``. Storages cannot
append, so each start of a run has a file of its own, which is rewritten every minute.
"""

import json
import logging
import time
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

from pipeline.storage.storage import Storage, join
from schemas.shown import redact_text

logger = logging.getLogger(__name__)

FLUSH_SECONDS = 60.0
_MAX_FAILED_UNITS = 10_000
"""Limit of logged failures, for the driver's memory; the table has all errors."""


class JsonFormatter(logging.Formatter):
    """Writes each record as one JSON object; records of a run's log are JSON already."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        if record.name == __name__:
            return record.getMessage()
        found = {"time": _time(record.created), "event": "log", "level": record.levelname.lower()}
        found |= {"logger": record.name, "message": redact_text(record.getMessage())}
        if record.exc_info:
            found["exception"] = redact_text(self.formatException(record.exc_info))
        return json.dumps(found)


def log_as_json() -> None:
    """Write all log records to stderr as JSON lines, including the events of runs."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    logging.getLogger().handlers = [handler]
    logger.setLevel(logging.INFO)


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


class RunLog:
    """Context manager that writes the log of one start of a run."""

    def __init__(self, folder: str, run_id: str, start: int, storage: Storage) -> None:
        """folder: the run's. start: number of this start of the run, from 1."""
        self._uri = join(folder, f"log-{start}.jsonl")
        self._run_id, self._storage = run_id, storage
        self._lines: list[str] = []
        self._failed = 0
        self._flushed = time.monotonic()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Write the last lines; an error that ended the run is one of them."""
        if error is not None:
            self.write(
                "run_stopped", type=type(error).__name__, message=redact_text(str(error))[:2000]
            )
        self._flush()

    def write(self, event: str, **fields: Any) -> None:
        """Add a line; JSON escapes names of media and answers of models."""
        named = {"time": _time(time.time()), "event": event, "run_id": self._run_id}
        line = json.dumps(named | fields)
        self._lines.append(line)
        logger.info("%s", line)
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self._flush()

    def committed(self, rows: list[dict[str, Any]]) -> None:
        """Add the number of committed units, and a line for each that failed. rows: COMMITTED."""
        tokens = sum(row["num_output_tokens"] for row in rows)
        self.write("units_committed", units=len(rows), output_tokens=tokens)
        for row in rows:
            if row["error"] is not None and self._failed < _MAX_FAILED_UNITS:
                self._failed += 1
                self.write("unit_failed", unit_id=row["unit_id"], **row["error"])

    def _flush(self) -> None:
        if self._lines:
            self._storage.write_bytes(self._uri, ("\n".join(self._lines) + "\n").encode())
        self._flushed = time.monotonic()
