"""What an answer may cost: time and memory of parsers on text that is written to be slow."""

import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.tasks.registry import TASKS
from tests.support.adversarial_answers import PATTERNS, QUESTIONS, cpu_seconds
from tests.support.paths import ROOT

KB = 1024
SECONDS = 2.0
"""Of a few patterns the constant part, the repair of JSON, takes half a second."""
SECONDS_PER_KB = 0.03
"""Measured on two busy cores: 0.0005 to 0.003. A machine may be ten times slower."""

OWN_READERS = {"moments", "objects", "html", "markdown"}
"""The others read JSON with the same code: every sixth pattern is enough."""


def bound(text: str) -> float:
    return SECONDS + SECONDS_PER_KB * len(text) / KB


def test_each_task_has_a_question():
    assert {question.task for question, _ in QUESTIONS.values()} == set(TASKS)


@pytest.mark.parametrize("name", QUESTIONS)
def test_no_pattern_is_slow(name: str):
    """8 KB of the worst took minutes: ``1`` and spaces, time keys, tags that stay open."""
    patterns = list(PATTERNS)[:: 1 if name in OWN_READERS else 6]
    for pattern in patterns:
        text = PATTERNS[pattern].text(8 * KB)
        seconds, answer = cpu_seconds(name, text)
        assert seconds < bound(text), pattern
        assert not str(answer.note).startswith("the parser failed"), pattern


PARTS = sorted({part for p in PATTERNS.values() for part in (p.begin, p.part, p.end)}, key=len)
PART = st.sampled_from([part for part in PARTS if 0 < len(part) <= 200]) | st.text(
    "[]{}()<>\"'`:;,.-=&#| \n\\/0123x日", min_size=1, max_size=4
)
RUN = st.tuples(st.lists(PART, min_size=1, max_size=3).map("".join), st.integers(1, 4000))


@settings(max_examples=100)
@given(
    name=st.sampled_from(sorted(QUESTIONS)),
    runs=st.lists(RUN, min_size=1, max_size=4),
)
def test_no_text_is_slow(name: str, runs: list[tuple[str, int]]):
    """Runs of anything that a parser looks for; `make fuzz` finds others each time."""
    text = "".join(part * min(times, 8 * KB // len(part)) for part, times in runs)
    seconds, answer = cpu_seconds(name, text)
    assert seconds < bound(text)
    assert not str(answer.note).startswith("the parser failed")


@pytest.mark.long
@pytest.mark.parametrize("name", QUESTIONS)
def test_64_000_tokens_take_a_second(name: str):
    """And twice as much takes twice as long, not four times; on a busy machine it varies."""
    for pattern in PATTERNS.values():
        once, twice = (pattern.text(size * KB) for size in (250, 500))
        seconds = [
            min(cpu_seconds(name, text)[0] for _ in range(times))
            for text, times in ((once, 3), (twice, 2))
        ]
        assert seconds[0] < 1.0, pattern
        assert seconds[1] < 3 * seconds[0] + 0.2, pattern


MEMORY = {
    "html": ("blocks not closed", "open tags, then ends"),
    "markdown": ("marked in one paragraph",),
    "objects": ("repeated and shared keys", "members around many elements"),
    "events": ("events with shared members",),
}


@pytest.mark.parametrize("name", MEMORY)
def test_memory_is_linear(name: str):
    """195 KB of open blocks took 1.5 GiB; an object around many elements as much."""
    for pattern in MEMORY[name]:
        text = PATTERNS[pattern].text(48 * KB)
        tracemalloc.start()
        try:
            cpu_seconds(name, text)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 300 * len(text), pattern


@pytest.mark.long
def test_what_coverage_leads_to_is_not_slow(tmp_path: Path):
    """Ten minutes of atheris, which finds its way into branches by their coverage."""
    pytest.importorskip("atheris", reason="atheris is not installed (pip install atheris)")
    command = [sys.executable, "-m", "tests.support.fuzz_answers", "-max_total_time=600"]
    done = subprocess.run(
        [*command, f"-artifact_prefix={tmp_path}/"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
