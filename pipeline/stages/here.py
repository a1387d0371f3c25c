"""Run the stages of a small job in this process, without Ray: the chain of ``graph``, in threads.

    decoder threads   Prepare, which decodes in child processes
    engine thread     Generate, in an ``EngineProcess``
    this thread       Commit

Few jobs are large enough to win back the start of Ray and of its actors. At most one block for each
decoder and one more wait for the engine, and one block of answers for ``Commit``.
"""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

import pyarrow as pa

from pipeline.output.rows import RunKey
from pipeline.stages.commit import Commit
from pipeline.stages.generate import Generate
from pipeline.stages.pools import Pools
from pipeline.stages.prepare import Prepare
from pipeline.stages.summarise import Summarise
from pipeline.storage.storage import Storage
from pipeline.workers.code_version import code_digest
from pipeline.workers.engine_process import EngineProcess
from schemas.job.job import Job


class SmallChain:
    """The chains of a small job, around its engine's process."""

    def __init__(self, engine: EngineProcess) -> None:
        self._engine = engine

    @contextmanager
    def annotate(
        self,
        blocks: list[pa.Table],
        job: Job,
        key: RunKey,
        storage: Storage,
        pools: Pools,
        units_per_file: int,
    ) -> Iterator[Iterator[pa.Table]]:
        """The chain of ``build_annotate``: yields an iterator of COMMITTED tables."""
        code = code_digest()
        commit = Commit(job, key, storage, code)
        self._engine.open(Generate, job=job, code=code, cpus=pools.cpus_per_replica)
        prepare = Prepare(job, storage, code, num_children=pools.decoders, quiet=True)
        # One table for each block, as an engine takes it.
        prepared = _Threads(lambda block: pa.concat_tables(prepare(block)), blocks, pools.decoders)
        answered = _Threads(self._engine, self._loaded(prepared))
        try:
            yield (commit(some) for some in _of_rows(answered, units_per_file))
        finally:
            answered.stop()
            prepared.stop()

    def _loaded(self, prepared: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """Load the model while the first block is decoded."""
        self._engine.load()
        yield from prepared

    def summarise(
        self, blocks: list[pa.Table], job: Job, max_model_len: int, pools: Pools
    ) -> Iterator[pa.Table]:
        """The chain of ``build_summaries``: yields SUMMARISED tables, one for each block."""
        cpus, code = pools.cpus_per_replica, code_digest()
        self._engine.open(Summarise, job=job, max_model_len=max_model_len, code=code, cpus=cpus)
        yield from map(self._engine, blocks)


class _Threads:
    """Tables that threads make, in the order in which they are done.

    The threads are daemons: after Ctrl-C the command ends without waiting for what they do.
    """

    def __init__(
        self, stage: Callable[[pa.Table], pa.Table], source: Iterable[pa.Table], number: int = 1
    ) -> None:
        self._stage = stage
        self._source, self._lock = iter(source), threading.Lock()
        self._done: queue.Queue[pa.Table | BaseException | None] = queue.Queue(1)
        self._is_stopped = False
        self._num_running = number
        for _ in range(number):
            threading.Thread(target=self._work, daemon=True).start()

    def __iter__(self) -> Iterator[pa.Table]:
        """Yield the tables; raise what a thread raised."""
        while self._num_running:
            found = self._done.get()
            if self._is_stopped:
                return
            if isinstance(found, BaseException):
                raise found
            if found is None:
                self._num_running -= 1
            else:
                yield found

    def stop(self) -> None:
        """Let the threads end after the table that they are making, and who reads them at once."""
        self._is_stopped = True
        with suppress(queue.Full):
            self._done.put_nowait(None)

    def _work(self) -> None:
        try:
            while not self._is_stopped:
                with self._lock:
                    block = next(self._source, None)
                if block is None:
                    break
                self._put(self._stage(block))
                del block
            self._put(None)
        except BaseException as error:  # the thread's boundary: the reader raises it
            self._put(error)

    def _put(self, found: pa.Table | BaseException | None) -> None:
        while not self._is_stopped:
            try:
                return self._done.put(found, timeout=1.0)
            except queue.Full:
                continue


def _of_rows(tables: Iterable[pa.Table], num_rows: int) -> Iterator[pa.Table]:
    """Cut tables that follow each other into tables of ``num_rows``; the last may be smaller."""
    held: list[pa.Table] = []
    for table in tables:
        held.append(table)
        while sum(map(len, held)) >= num_rows:
            whole = pa.concat_tables(held)
            yield whole.slice(0, num_rows)
            held = [whole.slice(num_rows)]
    if sum(map(len, held)):
        yield pa.concat_tables(held)
