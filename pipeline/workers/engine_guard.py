"""Limit an engine's death to the units that cause it, and replace an engine that hangs or grows.

Before an engine works on units, its process reports them to ``Deaths``, which outlives it. If the
process dies, Ray (or ``engine_process``) starts it again with the same block. The units that it
was working on are tried again in groups of up to 8, after a second death one by one; after a third
death the unit becomes an error row. So a bad unit costs three starts of an engine, not the run.

An engine that forms its own batches, as vLLM does, works on several blocks at a time, in threads.
Units that may have caused a death have the engine alone.
"""

import faulthandler
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from pipeline.workers.child_limits import resident_bytes
from schemas.errors import ErrorType, ResourceError, UnitError
from schemas.job.resources import Resources
from schemas.tables.error import ErrorRecord
from schemas.tables.unit import AnsweredUnit, PreparedUnit, UnitStatus

logger = logging.getLogger(__name__)

MAX_DEATHS = 3
_GROUP_UNITS = 8
_SLOWDOWN = 20
"""A call may take this many times its expected duration: cost times the slowest rate so far."""

_FIRST_SECONDS_PER_TOKEN = 1 / _SLOWDOWN
"""Rate assumed until the first call is measured: slower than any useful engine on a CPU."""

GPU_SECONDS_PER_TOKEN = 0.01 / _SLOWDOWN
"""The same of an engine on a GPU: 80,000 tokens that hang cost 45 minutes, not 22 hours."""


class Deaths:
    """Records what each engine works on, and how often engines died at it; on Ray, an actor.

    An engine that is restarted keeps its id: the units that it had not finished count a death.
    """

    def __init__(self) -> None:
        self._at_work: dict[str, dict[int, tuple[str, ...]]] = {}
        self._deaths: Counter[str] = Counter()

    def count_restart(self, engine_id: str) -> None:
        """Note that an engine's process starts; an earlier one of the same engine has died."""
        for names in self._at_work.pop(engine_id, {}).values():
            self._deaths.update(names)

    def begin(self, engine_id: str, call: int, names: Sequence[str]) -> None:
        """Note what an engine works on in one of its calls; no names: the call is finished."""
        self._at_work.setdefault(engine_id, {})[call] = tuple(names)

    def count(self, names: Sequence[str]) -> list[int]:
        """Return how often engines died at each of ``names``."""
        return [self._deaths[name] for name in names]


class DeathsLink(Protocol):
    """The way of one engine's process to ``Deaths``. engine_id: its name there."""

    @property
    def engine_id(self) -> str:
        """The same in each process of the engine."""

    def call(self, method: str, *args: Any) -> Any:
        """Call a method of ``Deaths``, and wait for what it returns."""


class DeathsActor:
    """A ``DeathsLink`` to the actor that ``running_deaths`` yields."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    @property
    def engine_id(self) -> str:
        """The id of this actor, which Ray keeps when it restarts it."""
        import ray

        return str(ray.get_runtime_context().get_actor_id())

    def call(self, method: str, *args: Any) -> Any:
        """Call a method of the actor."""
        import ray

        return ray.get(getattr(self._handle, method).remote(*args))


@contextmanager
def running_deaths() -> Iterator[Any]:
    """Run the actor ``Deaths`` on the driver's node; yields its handle.

    Ray itself keeps an actor whose handle was sent to other actors until the driver exits.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1}
    deaths = ray.remote(Deaths).options(scheduling_strategy=here, **options).remote()
    try:
        yield deaths
    finally:
        ray.kill(deaths)


class Guard:
    """Watches one engine, inside its process. Safe for ``num_threads`` threads."""

    def __init__(self, deaths: DeathsLink, resources: Resources, num_threads: int = 1) -> None:
        self._deaths = deaths
        self._id = deaths.engine_id
        self._timeout_seconds = resources.engine_timeout_seconds
        self._load_seconds = resources.engine_load_timeout_seconds
        self._max_growth = int(resources.engine_growth_gib * (1 << 30))
        self.seconds_per_token = _FIRST_SECONDS_PER_TOKEN
        self._is_measured = False
        self._first_resident: int | None = None
        self._num_threads = num_threads
        self._places = threading.Semaphore(num_threads)
        self._alone = threading.Lock()
        self._lock = threading.Lock()
        self._deadlines: dict[int, float] = {}

    @contextmanager
    def start(self) -> Iterator[None]:
        """Watch the loading of an engine, which the caller does in the ``with`` block.

        Raises:
            ResourceError: the process has died ``MAX_DEATHS`` times while loading.
        """
        self._deaths.call("count_restart", self._id)
        name = f"start of {self._id}"
        (deaths,) = self._count_deaths([name])
        if deaths >= MAX_DEATHS:
            raise ResourceError(
                f"the engine's process died {deaths} times while it loaded the model. If memory "
                "was short, lower resources.replicas or use a machine with more; if loading took "
                f"over {self._load_seconds:g} s, raise resources.engine_load_timeout_seconds"
            )
        self._note([name])
        self._watch(time.monotonic() + self._load_seconds)
        try:
            yield
        finally:
            self._watch(None)
        self._note([])

    def answer(
        self,
        units: Sequence[PreparedUnit],
        generate: Callable[[list[PreparedUnit]], list[AnsweredUnit]],
    ) -> list[AnsweredUnit]:
        """Return the answers of ``generate`` in the order of ``units``.

        A unit at which engines died ``MAX_DEATHS`` times is given to ``generate`` as failed. Ends
        this process if its memory has grown too much, or if ``generate`` hangs.
        """
        self._end_if_grown()
        deaths = self._count_deaths([unit.unit_id for unit in units])
        answered: dict[int, AnsweredUnit] = {}
        for group in group_by_deaths(deaths):
            some = [_quarantined(units[k], deaths[k]) for k in group]
            with self._place(alone=deaths[group[0]] > 0):
                self._note([unit.unit_id for unit in some])
                with self._deadline(sum(unit.predicted_cost for unit in some)):
                    answered |= dict(zip(group, generate(some), strict=True))
                self._note([])
        if self._first_resident is None:
            self._first_resident = resident_bytes()
        return [answered[k] for k in range(len(units))]

    @contextmanager
    def _place(self, *, alone: bool) -> Iterator[None]:
        """Wait until this thread may use the engine, alone or together with others."""
        count = self._num_threads if alone else 1
        with self._alone:  # one thread at a time: two with some places each would deadlock
            for _ in range(count):
                self._places.acquire()
        try:
            yield
        finally:
            self._places.release(count)

    def _note(self, names: list[str]) -> None:
        # Wait: the note must be there before the work begins.
        self._deaths.call("begin", self._id, threading.get_ident(), names)

    def _count_deaths(self, names: list[str]) -> list[int]:
        counts: list[int] = self._deaths.call("count", names)
        return counts

    @contextmanager
    def _deadline(self, cost: float) -> Iterator[None]:
        """End the process if the block takes much longer than expected from earlier work.

        cost: predicted cost of the block, in tokens.
        """
        expected = cost * self.seconds_per_token
        started = time.monotonic()
        self._watch(started + self._timeout_seconds + _SLOWDOWN * expected)
        try:
            yield
        finally:
            self._watch(None)
        if cost:
            measured = (time.monotonic() - started) / cost
            with self._lock:
                slowest = self.seconds_per_token if self._is_measured else 0.0
                self.seconds_per_token, self._is_measured = max(measured, slowest), True

    def _watch(self, deadline: float | None) -> None:
        """Set this thread's deadline, and the alarm to the first deadline of all threads."""
        with self._lock:
            self._deadlines.pop(threading.get_ident(), None)
            if deadline is not None:
                self._deadlines[threading.get_ident()] = deadline
            faulthandler.cancel_dump_traceback_later()
            if self._deadlines:
                left = min(self._deadlines.values()) - time.monotonic()
                # A C thread: it ends the process even if the interpreter hangs; logs the traceback.
                faulthandler.dump_traceback_later(max(left, 0.001), exit=True, file=2)

    def _end_if_grown(self) -> None:
        """End a process that leaks memory, between two blocks, so that no work is lost."""
        now = resident_bytes()
        if self._first_resident is None or now is None:
            return
        if now - self._first_resident > self._max_growth:
            with self._place(alone=True):
                logger.warning(
                    "this engine's memory grew from %d to %d bytes: it is replaced",
                    self._first_resident,
                    now,
                )
                os._exit(1)


def group_by_deaths(deaths: Sequence[int]) -> Iterator[list[int]]:
    """Yield indices of units to do at once: fewer, the more often engines died at them."""
    for count in sorted(set(deaths)):
        some = [k for k, of_unit in enumerate(deaths) if of_unit == count]
        size = {0: len(some), 1: _GROUP_UNITS}.get(count, 1)
        yield from (some[k : k + size] for k in range(0, len(some), size))


def _quarantined(unit: PreparedUnit, deaths: int) -> PreparedUnit:
    if deaths < MAX_DEATHS or unit.status == UnitStatus.FAILED:
        return unit
    message = f"the engine's process died {deaths} times at this unit, the last time alone with it"
    error = UnitError(ErrorType.ENGINE_CRASHED, message, attempts=deaths)
    return unit.failed(ErrorRecord.from_error("engine", error))
