"""Seal shards while a run goes on: each as soon as all of its units have rows."""

import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.output.duplicates import settle_files
from pipeline.output.file_names import piece_files, shard_of
from pipeline.output.rows import RunKey
from pipeline.output.seal import seal_shard
from pipeline.output.table import ids_in
from pipeline.storage.storage import Storage
from schemas.tables.unit import UNIT

_SHARDS_AT_ONCE = 2
"""A shard is some 10 to 50 MB in the driver's memory."""


class Sealing:
    """Context manager that counts committed units, and seals shards in threads.

    At its end all shards that are complete are sealed, unless an error ends it.
    """

    def __init__(
        self,
        output: str,
        key: RunKey,
        storage: Storage,
        units: pa.Table,
        earlier: pa.Table,
        check: Callable[[], None],
    ) -> None:
        """Prepare to seal; nothing is sealed yet.

        units: UNIT rows that are left to do. earlier: ``unit_id`` and ``file`` of their rows.
        check: raises if another driver has the run; called before each change of the table.
        """
        self._place = (output, key, storage)
        self._check = check
        self._left: Counter[int] = Counter()
        self._waiting: dict[str, set[int]] = defaultdict(set)
        self._written: dict[str, list[str]] = defaultdict(list)
        self._settling = threading.Lock()
        self._threads = ThreadPoolExecutor(_SHARDS_AT_ONCE, thread_name_prefix="seal")
        self._sealed: list[Future[None]] = []
        self._seals_earlier = True
        self.add(units, earlier)

    @classmethod
    def of_later_units(
        cls, output: str, key: RunKey, storage: Storage, check: Callable[[], None]
    ) -> Self:
        """Without units yet: shards that an earlier start left complete are sealed when it ends."""
        sealing = cls(output, key, storage, UNIT.empty_table(), _NO_ROWS, check)
        sealing._seals_earlier = False
        return sealing

    def add(self, units: pa.Table, earlier: pa.Table) -> None:
        """Add units that are left to do, all of their shards. earlier: as for the constructor."""
        self._left.update(_counts(units))
        with self._settling:
            for file, shards in _shards_by_file(units, earlier).items():
                self._waiting[file] |= shards

    def __enter__(self) -> Self:
        """Seal what an earlier start left complete."""
        output, key, storage = self._place
        if not self._seals_earlier:
            return self
        files = piece_files(output, storage, key.run_id, key.run_date)
        self._seal(sorted({shard_of(file["uri"]) for file in files}))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Wait for what is being sealed; after an error, only for what has begun."""
        self._threads.shutdown(wait=True, cancel_futures=error is not None)
        if error is None:
            for found in self._sealed:
                found.result()

    def committed(self, rows: pa.Table) -> list[int]:
        """Count committed units, and seal the shards that are complete with them. rows: COMMITTED.

        Returns these shards.

        Raises:
            StorageError: the output could not be written.
        """
        counts = _counts(rows)
        self._left.subtract(counts)
        complete = self._seal(counts)
        while self._sealed and self._sealed[0].done():
            self._sealed.pop(0).result()
        return complete

    def _seal(self, shards: Iterable[int]) -> list[int]:
        complete = [shard for shard in shards if not self._left[shard]]
        for shard in complete:
            self._sealed.append(self._threads.submit(self._seal_one, shard))
        return complete

    def _seal_one(self, shard: int) -> None:
        """Seal a shard, and remove the rows that new ones replace.

        A file is settled once, when all shards with new rows for it are sealed: two threads would
        both copy its other rows.
        """
        written = seal_shard(shard, *self._place, self._check)
        with self._settling:
            for file in [file for file, shards in self._waiting.items() if shard in shards]:
                self._waiting[file].discard(shard)
                self._written[file] += written
                if not self._waiting[file]:
                    del self._waiting[file]
                    self._check()
                    settle_files([file, *self._written.pop(file)], self._place[-1])


_NO_ROWS = pa.table({"unit_id": pa.array([], pa.string()), "file": pa.array([], pa.string())})


def _shards_by_file(units: pa.Table, earlier: pa.Table) -> dict[str, set[int]]:
    """The shards of the units of which a file has earlier rows, by its uri."""
    again = units.filter(pc.is_in(units["unit_id"], earlier["unit_id"]))
    shards = dict(zip(ids_in(again, "unit_id"), again["shard"].to_numpy().tolist(), strict=True))
    found: dict[str, set[int]] = defaultdict(set)
    for row in earlier.select(["unit_id", "file"]).to_pylist():
        if row["unit_id"] in shards:
            found[row["file"]].add(shards[row["unit_id"]])
    return found


def _counts(rows: pa.Table) -> dict[int, int]:
    """The number of rows of each shard."""
    shards, numbers = np.unique(rows["shard"].to_numpy(), return_counts=True)
    return dict(zip(shards.tolist(), numbers.tolist(), strict=True))
