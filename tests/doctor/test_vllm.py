"""What the doctor says of vLLM before it runs: whether tasks share what was read of the media."""

from pathlib import Path
from typing import Any

import pytest

from jobs.doctor.finding import State
from jobs.doctor.model import model_findings
from jobs.doctor.vllm import vllm_findings
from tests.support.family import family_checkpoint
from tests.support.job_files import make_job

TASKS = ["caption", "ocr", "text_spans"]


def line_of(source: Path, tasks: list[str] = TASKS, **model: Any) -> tuple[State, str] | None:
    job = make_job(tasks=tasks, model={"source": str(source), **model})
    _, found = model_findings(job)
    assert found is not None
    lines = vllm_findings(job, found)
    assert len(lines) < 2
    return (lines[0].state, lines[0].text) if lines else None


def vllm(**args: Any) -> dict[str, Any]:
    return {"engine": "vllm", "vllm": {"engine_args": args}}


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return family_checkpoint(tmp_path_factory, "qwen3_5")


def test_with_attention_alone_tasks_share_their_media(checkpoint: Path):
    line = line_of(checkpoint, **vllm())
    assert line == (State.OK, "on: 3 tasks share what was read of a unit's media")


def test_with_linear_layers_media_shorter_than_a_block_are_read_for_each_task(hybrid: Path):
    state, text = line_of(hybrid, **vllm()) or (None, "")
    assert state == State.OK
    assert text.startswith("on, in blocks of ") and "media with fewer tokens are read once" in text


@pytest.mark.parametrize(
    "args", [{"enable_prefix_caching": False}, {"speculative_config": {"method": "mtp"}}]
)
def test_without_the_cache_each_task_reads_the_media_again(hybrid: Path, args: dict[str, Any]):
    state, text = line_of(hybrid, **vllm(**args)) or (None, "")
    assert state == State.WARNING and "each of 3 tasks reads the media again" in text


def test_nothing_is_said_where_nothing_could_be_shared(hybrid: Path):
    assert line_of(hybrid, ["caption"], **vllm()) is None
    assert line_of(hybrid) is None
