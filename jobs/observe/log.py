"""The events of a run as JSON lines: in the run's folder, and on stderr with ``--log-format json``.

One object per line, with ``time``, ``event`` and ``run_id``; units by ``unit_id``. Storages cannot
append, so each start of a run has files of its own, ``log-<start>.jsonl``, ``log-<start>.1.jsonl``
and so on, of which the last is rewritten every minute, and none is larger than a megabyte.
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
COUNT_SECONDS = 10.0
"""Committed units are counted together for so long: a run of weeks has a small log."""
_MAX_FILE_BYTES = 1 << 20
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
        self._place, self._file = join(folder, f"log-{start}"), 0
        self._run_id, self._storage = run_id, storage
        self._lines: list[str] = []
        self._num_bytes = 0
        self._failed = 0
        self._flushed = self._counted = time.monotonic()
        self._units = self._tokens = 0

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
        self.count()
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
        self._num_bytes += len(line) + 1
        logger.info("%s", line)
        if self._num_bytes >= _MAX_FILE_BYTES:
            self._flush()
            self._lines, self._num_bytes, self._file = [], 0, self._file + 1
        elif time.monotonic() - self._flushed > FLUSH_SECONDS:
            self._flush()

    def committed(self, rows: list[dict[str, Any]]) -> None:
        """Count committed units, and add a line for each that failed. rows: COMMITTED."""
        self._units += len(rows)
        self._tokens += sum(row["num_output_tokens"] for row in rows)
        if time.monotonic() - self._counted > COUNT_SECONDS:
            self.count()
        for row in rows:
            if row["error"] is not None and self._failed < _MAX_FAILED_UNITS:
                self._failed += 1
                self.write("unit_failed", unit_id=row["unit_id"], **row["error"])

    def count(self) -> None:
        """Write the number of units that were committed since it was written last."""
        if self._units:
            self.write("units_committed", units=self._units, output_tokens=self._tokens)
        self._units = self._tokens = 0
        self._counted = time.monotonic()

    def _flush(self) -> None:
        if self._lines:
            name = f".{self._file}.jsonl" if self._file else ".jsonl"
            content = ("\n".join(self._lines) + "\n").encode()
            self._storage.write_bytes(self._place + name, content)
        self._flushed = time.monotonic()
