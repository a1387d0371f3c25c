"""Record the committed units of a run in its log and its metrics."""

import pyarrow as pa

from jobs.observe.log import RunLog
from jobs.observe.prometheus import Metrics
from pipeline.stages.graph import Pools


class Watch:
    """Records committed units in the run's log and for Prometheus; needs a Ray session."""

    def __init__(self, job_name: str, pools: Pools, log: RunLog, num_units: int) -> None:
        """num_units: the number of units without a row."""
        self._metrics, self._log, self._waiting = Metrics(job_name), log, num_units
        for stage, number in (("decode", pools.decoders), ("engine", pools.replicas)):
            self._metrics.set("reelscribe_actors", number, stage=stage)
        self._metrics.set("reelscribe_waiting_units", num_units)

    def committed(self, rows: pa.Table, seconds_left: float | None) -> None:
        """Record committed units. rows: COMMITTED."""
        self._waiting -= rows.num_rows
        self._metrics.set("reelscribe_waiting_units", self._waiting)
        if seconds_left is not None:
            self._metrics.set("reelscribe_remaining_seconds", seconds_left)
        found = rows.to_pylist()
        self._log.committed(found)
        for row in found:
            self._metrics.committed(row)
