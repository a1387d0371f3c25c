"""Show the progress of a run and its remaining time: a live bar in a terminal, lines in a log."""

import threading
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple, Self

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TextColumn
from rich.progress import Progress as Bars
from rich.text import Text

from schemas.shown import one_line

RECENT_SECONDS = 60.0
RECENT_EVENTS = 20
"""Rates are measured over the last minute, or over the last 20 completions if they took longer."""

_BURST_SECONDS = 0.1  # rows of one block arrive one after another, but were completed together


class _Event(NamedTuple):
    seconds: float
    cost: float
    tokens: int


class Recent:
    """The recent rates of cost and tokens, from completions that arrive in bursts.

    A rate needs two completions, because the time before the first one is start-up.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        """``clock``: seconds, monotonic."""
        self._clock = clock
        self._events: deque[_Event] = deque()

    def add(self, cost: float, tokens: int) -> None:
        """Record a completion; ``cost`` and ``tokens`` are the totals so far."""
        now = self._clock()
        if self._events and now - self._events[-1].seconds < _BURST_SECONDS:
            now = self._events.pop().seconds
        self._events.append(_Event(now, cost, tokens))
        while len(self._events) > RECENT_EVENTS and now - self._events[1].seconds > RECENT_SECONDS:
            self._events.popleft()

    def tokens_per_second(self) -> float | None:
        """Tokens generated per second; None before the second completion."""
        elapsed = self._elapsed()
        return elapsed and (self._events[-1].tokens - self._events[0].tokens) / elapsed

    def seconds_left(self, remaining_cost: float) -> float | None:
        """Seconds until ``remaining_cost`` is done at the recent rate; None if there is no rate.

        Between two completions this counts down; when the next one is overdue, it grows.
        """
        elapsed = self._elapsed()
        cost = self._events[-1].cost - self._events[0].cost if elapsed else 0.0
        if not elapsed or cost <= 0:
            return None
        waited = min(self._clock() - self._events[-1].seconds, self._gap())
        return max(0.0, remaining_cost * elapsed / cost - waited)

    def _gap(self) -> float:
        """Mean seconds between completions."""
        return (self._events[-1].seconds - self._events[0].seconds) / (len(self._events) - 1)

    def _elapsed(self) -> float | None:
        """Seconds of the recent completions, plus the delay of the next one if it is overdue."""
        if len(self._events) < 2:
            return None
        overdue = self._clock() - self._events[-1].seconds - self._gap()
        return self._events[-1].seconds - self._events[0].seconds + max(0.0, overdue)


class Progress:
    """Context manager that shows units done, failures, tokens per second and the time left.

    The time left is computed from the predicted cost, not from the number of units, because the
    longest units come first.
    """

    def __init__(
        self,
        console: Console,
        title: str,
        total_units: int,
        total_cost: float,
        *,
        interval: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare the display; ``__enter__`` shows it.

        interval: seconds between lines in a log.
        """
        self._console = console
        self._title = one_line(title)
        self._total_units = total_units
        self._is_about = False
        self._by_cost = total_cost > 0
        self._total_cost = total_cost if self._by_cost else float(total_units)
        self._interval = interval
        self._clock = clock
        self._started = clock()
        self._recent = Recent(clock)
        self._status: str | None = None
        self._units = self._failed = self._tokens = 0
        self._cost = 0.0
        self._ended = threading.Event()
        self._lines: threading.Thread | None = None
        self._bars: Bars | None = None

    def __enter__(self) -> Self:
        """Start the display."""
        self._started = self._clock()
        if self._console.is_interactive:
            self._bars = Bars(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                _StateColumn(self),
                console=self._console,
                refresh_per_second=2,
            )
            self._bars.add_task(self._title, start=False, total=self._total_cost)
            self._bars.start()
        else:
            self._lines = threading.Thread(target=self._print_lines, daemon=True)
            self._lines.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Show the last state, and stop the display."""
        self._ended.set()
        self._status = None if error is None else "stopped"
        if self._bars:
            self._bars.stop()
        if self._lines:
            self._lines.join()
            self._print_line()

    def status(self, text: str) -> None:
        """Show a step before the first completed unit, such as ``starting engines``."""
        self._status = one_line(text)
        if self._lines:
            self._print_line()

    def expect(self, *, units: int, cost: float, is_about: bool) -> None:
        """Replace the totals: more is planned. is_about: the rest is not yet."""
        self._total_units, self._is_about = units, is_about
        self._by_cost |= cost > 0 and not self._units
        self._total_cost = cost if self._by_cost else float(units)
        if self._bars:
            self._bars.update(self._bars.task_ids[0], total=self._total_cost)

    def advance(
        self, units: int = 1, *, cost: float = 0.0, failed: int = 0, tokens: int = 0
    ) -> None:
        """Count completed units: ``failed`` of them without an answer, ``tokens`` generated."""
        self._status = None
        self._units += units
        self._failed += failed
        self._tokens += tokens
        self._cost += cost if self._by_cost else units
        self._recent.add(self._cost, self._tokens)
        if self._bars:
            task = self._bars.task_ids[0]
            self._bars.start_task(task)
            self._bars.update(task, completed=min(self._cost, self._total_cost))

    def recost(self, *, done: float, total: float) -> None:
        """Replace the predicted costs by measured ones: of the completed units, and of all."""
        self._cost, self._total_cost, self._by_cost = done, total, True
        self._recent = Recent(self._clock)
        self._recent.add(self._cost, self._tokens)
        if self._bars:
            self._bars.update(self._bars.task_ids[0], completed=done, total=total)

    def state(self) -> str:
        """Describe the state in one line, as it is shown."""
        parts = [self._status] if self._status else []
        about = "about " if self._is_about else ""
        parts.append(f"{self._units:,}/{about}{self._total_units:,} units")
        if self._failed:
            parts.append(f"{self._failed:,} failed")
        tokens_per_second = self._recent.tokens_per_second()
        if self._ended.is_set():
            parts += [f"{self._tokens:,} tokens"] if self._tokens else []
        elif tokens_per_second:
            parts.append(f"{tokens_per_second:,.0f} tokens/s")
        parts.append(f"{duration(self._clock() - self._started)} elapsed")
        left = self.seconds_left()
        if left is not None and not self._ended.is_set():
            parts.append(f"{about}{duration(left)} left")
        return ", ".join(parts)

    def seconds_left(self) -> float | None:
        """Seconds until all units are completed at the recent rate; None without a rate."""
        return self._recent.seconds_left(self._total_cost - self._cost)

    def _print_line(self) -> None:
        self._console.print(Text(f"{self._title}: {self.state()}"), soft_wrap=True)

    def _print_lines(self) -> None:
        while not self._ended.wait(self._interval):
            self._print_line()


class _StateColumn(ProgressColumn):
    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self._progress = progress

    def render(self, task: Task) -> Text:
        """Show the state beside the bar."""
        return Text(self._progress.state())


def duration(seconds: float) -> str:
    """Write seconds as hours, minutes and seconds: ``1:02:03``."""
    minutes, whole_seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{whole_seconds:02}"


def print_summary(console: Console, title: str, rows: list[tuple[str, str]]) -> None:
    """Print names and values below a title, without wrapping: paths can be copied."""
    console.print(Text(one_line(title), style="bold"), soft_wrap=True)
    width = max((len(name) for name, _ in rows), default=0)
    for name, value in rows:
        line = Text(f"  {one_line(name):<{width}}  ", style="dim")
        line.append(one_line(value), style="not dim")
        console.print(line, soft_wrap=True)
