"""Record the committed units of a run in its log and its metrics."""

import pyarrow as pa
import pyarrow.compute as pc

from jobs.observe.log import RunLog
from jobs.observe.prometheus import Metrics
from pipeline.stages.pools import Pools


class Watch:
    """Records committed units in the run's log and for Prometheus."""

    def __init__(self, metrics: Metrics | None, pools: Pools, log: RunLog, num_units: int) -> None:
        """metrics: None without a Ray session. num_units: the number of units without a row.

        Its fields ``num_units`` and ``num_output_tokens`` count what was committed since then;
        ``engines`` has what engines reported about themselves.
        """
        self._metrics, self._log, self._waiting = metrics, log, num_units
        self.num_units = self.num_output_tokens = 0
        self.engines: set[str] = set()
        for stage, number in (("decode", pools.decoders), ("engine", pools.replicas)):
            self._set("reelscribe_actors", number, stage=stage)
        self._set("reelscribe_waiting_units", num_units)

    def expect(self, num_units: int) -> None:
        """Set the number of units, where more are known by now."""
        self._waiting = max(0, num_units - self.num_units)
        self._set("reelscribe_waiting_units", self._waiting)

    def committed(self, rows: pa.Table, seconds_left: float | None) -> None:
        """Record committed units. rows: COMMITTED."""
        self._waiting -= rows.num_rows
        self.num_units += rows.num_rows
        self.num_output_tokens += pc.sum(rows["num_output_tokens"]).as_py() or 0
        self._set("reelscribe_waiting_units", self._waiting)
        if seconds_left is not None:
            self._set("reelscribe_remaining_seconds", seconds_left)
        found = rows.to_pylist()
        self.engines |= {row["engine"] for row in found if row["engine"]}
        self._log.committed(found)
        if self._metrics:
            for row in found:
                self._metrics.committed(row)

    def _set(self, name: str, value: float, **tags: str) -> None:
        if self._metrics:
            self._metrics.set(name, value, **tags)
