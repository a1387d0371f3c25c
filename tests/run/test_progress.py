"""Progress: the time left by cost, lines in a log, a bar in a terminal."""

import io
import re

import pytest
from rich.console import Console

from jobs.console.progress import Progress, Recent, duration, print_summary
from tests.support.waiting import wait_until


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now

    def wait(self, seconds):
        self.now += seconds


@pytest.fixture
def clock():
    return Clock()


def console(*, terminal=False, width=120):
    return Console(file=io.StringIO(), force_terminal=terminal, width=width)


def text_of(console):
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", console.file.getvalue())


def progress(clock, units=100, cost=1000.0):
    return Progress(console(), "annotating", units, cost, clock=clock, interval=1e6)


def test_nothing_is_foretold_before_the_second_completion(clock):
    bar = progress(clock)
    clock.wait(300)  # loading a model says nothing about its speed
    assert bar.state() == "0/100 units, 0:05:00 elapsed"
    bar.advance(cost=10, tokens=50)
    assert bar.state() == "1/100 units, 0:05:00 elapsed"
    clock.wait(2)
    bar.advance(cost=10, tokens=50)
    assert bar.state() == "2/100 units, 25 tokens/s, 0:05:02 elapsed, 0:03:16 left"


def test_time_left_follows_cost_and_not_units(clock):
    """Ten long units, then ninety that cost a tenth: by units, 90 s would be foretold."""
    recent = Recent(clock)
    for done in range(1, 11):
        clock.wait(1.0)
        recent.add(done * 10.0, 0)
    assert recent.seconds_left(90 * 1.0) == pytest.approx(9.0)


def test_time_left_is_that_of_the_recent_rate(clock):
    recent = Recent(clock)
    for done in range(1, 101):  # a slow start: 1 a second
        clock.wait(1.0)
        recent.add(float(done), done)
    for done in range(1, 1001):  # then 10 a second, for 100 s
        clock.wait(0.1)
        recent.add(100.0 + done, 100 + done)
    assert recent.seconds_left(100.0) == pytest.approx(10.0, rel=0.01)
    assert recent.tokens_per_second() == pytest.approx(10.0, rel=0.01)


def test_bursts_are_one_completion(clock):
    """Blocks of 64 rows every 30 s: the truth is 64 / 30 of a row each second, not thousands."""
    recent = Recent(clock)
    done = 0
    for _ in range(3):
        clock.wait(30)
        for _ in range(64):
            clock.wait(0.0001)
            done += 1
            recent.add(float(done), done)
    assert recent.seconds_left(640.0) == pytest.approx(300.0, rel=0.01)


def test_time_left_counts_down_between_completions_and_grows_when_they_stop(clock):
    recent = Recent(clock)
    for done in range(1, 6):
        clock.wait(10)
        recent.add(float(done), 0)
    assert recent.seconds_left(10.0) == pytest.approx(100.0)
    clock.wait(5)
    assert recent.seconds_left(10.0) == pytest.approx(95.0)
    clock.wait(5)
    assert recent.seconds_left(10.0) == pytest.approx(90.0)  # as it will be after the next
    clock.wait(40)  # a whole window late: half the rate
    assert recent.seconds_left(10.0) == pytest.approx(190.0)
    assert recent.seconds_left(0.0) == 0.0


def test_units_stand_in_for_a_cost_that_is_none(clock):
    bar = progress(clock, units=10, cost=0.0)
    for _ in range(2):
        clock.wait(3)
        bar.advance()
    assert bar.state() == "2/10 units, 0:00:06 elapsed, 0:00:24 left"


def test_a_whole_run_in_a_log(clock):
    out = console(width=40)  # lines of a log are never broken
    with Progress(out, "annotating [b]", 3, 30.0, clock=clock, interval=1e6) as bar:
        bar.status("starting engines")
        clock.wait(61)
        bar.advance(cost=10.0, tokens=1000)
        clock.wait(1)
        bar.advance(2, cost=20.0, failed=1, tokens=2000)
    assert text_of(out).splitlines() == [
        "annotating [b]: starting engines, 0/3 units, 0:00:00 elapsed",
        "annotating [b]: 3/3 units, 1 failed, 3,000 tokens, 0:01:02 elapsed",
    ]


def test_a_log_has_a_line_every_interval():
    out = console()
    with Progress(out, "planning", 5, 5.0, interval=0.02) as bar:
        bar.status("reading headers")
        wait_until(lambda: out.file.getvalue().count("\n") >= 4)
    assert text_of(out).count("planning: reading headers, 0/5 units") >= 4


def test_an_interrupted_run_says_so(clock):
    out = console()

    def interrupted():
        with Progress(out, "annotating", 3, 30.0, clock=clock, interval=1e6) as bar:
            bar.advance(cost=10.0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert text_of(out) == "annotating: stopped, 1/3 units, 0:00:00 elapsed\n"


def test_a_bar_in_a_terminal(clock):
    out = console(terminal=True)
    with Progress(out, "annotating [b]", 4, 40.0, clock=clock) as bar:
        bar.status("starting engines")
        bar._bars.refresh()
        clock.wait(5)
        bar.advance(cost=10.0, tokens=10)
        clock.wait(5)
        bar.advance(cost=10.0, tokens=10)
        bar._bars.refresh()
        assert bar._bars.tasks[0].percentage == 50.0
    shown = text_of(out)
    assert "annotating [b]" in shown
    assert "starting engines, 0/4 units, 0:00:00 elapsed" in shown
    assert "2/4 units, 2 tokens/s, 0:00:10 elapsed, 0:00:10 left" in shown
    assert shown.rstrip().endswith("2/4 units, 20 tokens, 0:00:10 elapsed")


def test_a_summary_is_whole_and_takes_no_orders():
    out = console(width=30)
    print_summary(
        out,
        "run [red]x[/red]",
        [("rows", "s3://bucket/" + "long/" * 20), ("file", "a[bold]b\x1b]0;owned\x07.mp4")],
    )
    assert out.file.getvalue().splitlines() == [
        "run [red]x[/red]",
        "  rows  s3://bucket/" + "long/" * 20,
        "  file  a[bold]b\\x1b]0;owned\\x07.mp4",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0:00:00"), (59.6, "0:01:00"), (3723, "1:02:03"), (9e5, "250:00:00")],
)
def test_duration(seconds, text):
    assert duration(seconds) == text
