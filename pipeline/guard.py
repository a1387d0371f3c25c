"""Keep an engine's death to the units that cause it, and notice an engine that hangs or grows.

Before an engine works on units, its actor says so to another one, which outlives it. If the
engine's process dies, Ray starts it anew and gives it the same block of units; those that it was at
then come again in a group of at most 8, the next time each alone, and one at which it dies a third
time becomes an error row. So a bad unit costs three starts of an engine, and the run goes on.

An engine that forms its batches by itself, as vLLM does, works on several blocks at a time, in
threads; not on units that it may have died at: these have it for themselves.
"""

import faulthandler
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from schemas.errors import ErrorRecord, ErrorType, ResourceError, UnitError
from schemas.resources import Resources
from schemas.unit import AnsweredUnit, PreparedUnit, UnitStatus

logger = logging.getLogger(__name__)

MAX_DEATHS = 3
_GROUP_UNITS = 8
_USUAL_TIMES = 20
"""A call may take so many times as long as the slowest did until now, by predicted cost."""

_FIRST_SECONDS_PER_TOKEN = 1 / _USUAL_TIMES
"""Assumed until the first call was measured: slower than any engine of use."""


class Deaths:
    """An actor that remembers what each engine is at, and how often engines died at it.

    An actor that Ray starts anew has the same id: what it had begun and not ended, it died at.
    """

    def __init__(self) -> None:
        self._at_work: dict[str, dict[int, tuple[str, ...]]] = {}
        self._deaths: Counter[str] = Counter()

    def born(self, actor_id: str) -> None:
        """An engine's process begins: one of the same actor that was before is dead."""
        for names in self._at_work.pop(actor_id, {}).values():
            self._deaths.update(names)

    def at(self, actor_id: str, call: int, names: Sequence[str]) -> None:
        """Note what an engine begins with in one of its calls; nothing: it has ended it."""
        self._at_work.setdefault(actor_id, {})[call] = tuple(names)

    def of(self, names: Sequence[str]) -> list[int]:
        """How often engines died at each of ``names``."""
        return [self._deaths[name] for name in names]


def remember_deaths() -> Any:
    """Start the actor, on the driver's node: it is of no use after the driver."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1}
    return ray.remote(Deaths).options(scheduling_strategy=here, **options).remote()


class Guard:
    """Watches over one engine, inside its actor. Safe for as many threads as it is told.

    deaths: the handle that ``remember_deaths`` gives.
    """

    def __init__(self, deaths: Any, resources: Resources, num_threads: int = 1) -> None:
        import ray

        self._deaths = deaths
        self._id = str(ray.get_runtime_context().get_actor_id())
        self._timeout_seconds = resources.engine_timeout_seconds
        self._load_seconds = resources.engine_load_timeout_seconds
        self._max_growth = int(resources.engine_growth_gib * (1 << 30))
        self._seconds_per_token = _FIRST_SECONDS_PER_TOKEN
        self._first_resident: int | None = None
        self._num_threads = num_threads
        self._places = threading.Semaphore(num_threads)
        self._alone = threading.Lock()
        self._lock = threading.Lock()
        self._deadlines: dict[int, float] = {}

    @contextmanager
    def start(self) -> Iterator[None]:
        """Load an engine within this.

        Raises:
            ResourceError: the process has died of it again and again.
        """
        import ray

        ray.get(self._deaths.born.remote(self._id))
        name = f"start of {self._id}"
        (deaths,) = self._died([name])
        if deaths >= MAX_DEATHS:
            raise ResourceError(
                f"the engine's process ended {deaths} times while it loaded the model. If memory "
                "was short, lower resources.replicas or take a machine with more; if it took "
                f"longer than {self._load_seconds:g} s, raise resources.engine_load_timeout_seconds"
            )
        self._at([name])
        self._watch(time.monotonic() + self._load_seconds)
        try:
            yield
        finally:
            self._watch(None)
        self._at([])

    def answer(
        self,
        units: Sequence[PreparedUnit],
        generate: Callable[[list[PreparedUnit]], list[AnsweredUnit]],
    ) -> list[AnsweredUnit]:
        """Return what ``generate`` makes of units, in order, and an error for one that kills.

        May end this process: if it has grown too large, or hangs.
        """
        self._end_if_grown()
        deaths = self._died([unit.unit_id for unit in units])
        answered: dict[int, AnsweredUnit] = {}
        for group in _groups(deaths):
            some = [_quarantined(units[k], deaths[k]) for k in group]
            with self._place(alone=deaths[group[0]] > 0):
                self._at([unit.unit_id for unit in some])
                with self._deadline(sum(unit.predicted_cost for unit in some)):
                    answered |= dict(zip(group, generate(some), strict=True))
                self._at([])
        if self._first_resident is None:
            self._first_resident = resident_bytes()
        return [answered[k] for k in range(len(units))]

    @contextmanager
    def _place(self, *, alone: bool) -> Iterator[None]:
        """Wait until the engine may be used, beside other threads or alone."""
        count = self._num_threads if alone else 1
        with self._alone:  # one at a time, lest two wait for what the other has
            for _ in range(count):
                self._places.acquire()
        try:
            yield
        finally:
            self._places.release(count)

    def _at(self, names: list[str]) -> None:
        import ray

        # Before the work, not beside it.
        ray.get(self._deaths.at.remote(self._id, threading.get_ident(), names))

    def _died(self, names: list[str]) -> list[int]:
        import ray

        counts: list[int] = ray.get(self._deaths.of.remote(names))
        return counts

    @contextmanager
    def _deadline(self, cost: float) -> Iterator[None]:
        """End the process if this takes much longer than the work before made probable.

        cost: predicted, in tokens.
        """
        expected = cost * self._seconds_per_token
        started = time.monotonic()
        self._watch(started + self._timeout_seconds + _USUAL_TIMES * expected)
        try:
            yield
        finally:
            self._watch(None)
        if cost:
            measured = (time.monotonic() - started) / cost
            with self._lock:
                is_first = self._seconds_per_token == _FIRST_SECONDS_PER_TOKEN
                self._seconds_per_token = (
                    measured if is_first else max(measured, self._seconds_per_token)
                )

    def _watch(self, deadline: float | None) -> None:
        """Set this thread's deadline, and the alarm to the first one of all threads."""
        with self._lock:
            self._deadlines.pop(threading.get_ident(), None)
            if deadline is not None:
                self._deadlines[threading.get_ident()] = deadline
            faulthandler.cancel_dump_traceback_later()
            if self._deadlines:
                left = min(self._deadlines.values()) - time.monotonic()
                # A thread in C: it ends a process whose interpreter hangs too, and logs where.
                faulthandler.dump_traceback_later(max(left, 0.001), exit=True, file=2)

    def _end_if_grown(self) -> None:
        """End a process that leaks, between two blocks, where it costs nothing but a start."""
        now = resident_bytes()
        if self._first_resident is None or now is None:
            return
        if now - self._first_resident > self._max_growth:
            with self._place(alone=True):
                logger.warning(
                    "this engine's memory grew from %d to %d bytes: another takes its place",
                    self._first_resident,
                    now,
                )
                os._exit(1)


def _groups(deaths: Sequence[int]) -> Iterator[list[int]]:
    """What is done at once: the less, the more often an engine died at it."""
    for count in sorted(set(deaths)):
        some = [k for k, of_unit in enumerate(deaths) if of_unit == count]
        size = {0: len(some), 1: _GROUP_UNITS}.get(count, 1)
        yield from (some[k : k + size] for k in range(0, len(some), size))


def _quarantined(unit: PreparedUnit, deaths: int) -> PreparedUnit:
    if deaths < MAX_DEATHS or unit.status == UnitStatus.FAILED:
        return unit
    message = f"the engine's process ended {deaths} times at this unit, the last time at it alone"
    error = UnitError(ErrorType.ENGINE_CRASHED, message, attempts=deaths)
    return unit.failed(ErrorRecord.from_error("engine", error))


def resident_bytes() -> int | None:
    """Memory of this process alone; None where the system does not tell.

    Without what it shares: pages of Ray's object store that it has read are no growth of its own.
    """
    try:
        with open("/proc/self/statm") as file:
            _, resident, shared, *_ = map(int, file.read().split())
            return (resident - shared) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None
