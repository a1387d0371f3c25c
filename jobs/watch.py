"""Tell the log and the metrics of a run what was committed."""

import pyarrow as pa

from jobs.run_log import RunLog
from pipeline.build import Pools
from pipeline.meters import Meters


class Watch:
    """Notes what is committed, in the run's log and for Prometheus. Needs a Ray session."""

    def __init__(self, job_name: str, pools: Pools, log: RunLog, num_units: int) -> None:
        """num_units: that have no row yet."""
        self._meters, self._log, self._waiting = Meters(job_name), log, num_units
        for stage, number in (("decode", pools.decoders), ("engine", pools.replicas)):
            self._meters.set("reelscribe_actors", number, stage=stage)
        self._meters.set("reelscribe_waiting_units", num_units)

    def committed(self, rows: pa.Table, seconds_left: float | None) -> None:
        """Note units that have their row now. rows: of COMMITTED."""
        self._waiting -= rows.num_rows
        self._meters.set("reelscribe_waiting_units", self._waiting)
        if seconds_left is not None:
            self._meters.set("reelscribe_remaining_seconds", seconds_left)
        found = rows.to_pylist()
        self._log.committed(found)
        for row in found:
            self._meters.committed(row)
