"""The simulated engine: answers that every task can read, in about the time that a model takes."""

import dataclasses
import time

import pytest

from pipeline.engines.simulated.engine import SimulatedEngine
from pipeline.engines.speed import EngineTimes
from pipeline.tasks.parse import parse_raw
from pipeline.tasks.registry import TASKS
from schemas.job.engines import Simulated
from schemas.job.job import check_job
from schemas.tables.media import Media, Sampling
from schemas.tables.unit import PreparedUnit, Prompt
from schemas.task import AnswerStatus
from tests.support.job_files import SIMULATED, make_job

SCHEMA = {
    "type": "object",
    "properties": {
        "mood": {"enum": ["calm", "tense"]},
        "people": {"type": "integer", "minimum": 0, "maximum": 9},
        "words": {"type": "array", "items": {"type": "string"}, "minItems": 2},
        "indoors": {"type": "boolean"},
    },
    "required": ["mood", "people", "words", "indoors"],
    "additionalProperties": False,
}
TOOL = {
    "type": "function",
    "function": {
        "name": "click",
        "parameters": {"type": "object", "properties": {"seconds": {"type": "number"}}},
    },
}
EVERY_TASK = [
    *("caption", "events", "ocr", "text_spans", "points", "objects_3d", "document", "chat"),
    {"objects": {"labels": ["car"]}},
    {"tracks": {"labels": ["car"]}},
    {"moments": {"query": "a car stops"}},
    {"fields": {"keys": ["title", "total"]}},
    {"tool_calls": {"tools": [TOOL]}},
    {"custom": {"prompt": "Describe the mood.", "json_schema": SCHEMA}},
]


def job(**simulated):
    return check_job(
        {
            "input": {"manifest": "unused.jsonl"},
            "output": "unused",
            "model": {"engine": "simulated", "simulated": {"speed": 1e6} | simulated},
            "tasks": EVERY_TASK,
        },
        "test",
    )


def unit(unit_id: str, kind: str = "video", num_tokens: int = 90) -> PreparedUnit:
    is_video = kind == "video"
    asked = [q.task for q in job().questions() if {kind, "messages"} & TASKS[q.task].media_types]
    return PreparedUnit(
        unit_id=unit_id,
        media_id=unit_id,
        uri=f"{unit_id}.mp4",
        media=Media(media_type=kind, width=640, height=480),
        sampling=Sampling(
            start_seconds=8.0 if is_video else None,
            end_seconds=16.0 if is_video else None,
            origin_seconds=0.0,
            num_frames=4 if is_video else 1,
            resized_height=64,
            resized_width=64,
            grid_thw=(2 if is_video else 1, 4, 4),
            num_vision_tokens=8 if is_video else 4,
            pts_seconds=(8.0, 10.0, 12.0, 14.0) if is_video else None,
        ),
        num_shared_tokens=20,
        prompts=tuple(
            Prompt(
                task=task,
                num_prompt_tokens=num_tokens,
                num_own_tokens=num_tokens - 20,
                input_ids=(1,) * num_tokens,
            )
            for task in asked
        ),
    )


@pytest.mark.parametrize("kind", ["image", "video"])
def test_every_tasks_parser_reads_its_answers(kind: str):
    spec = job()
    assert {question.task for question in spec.questions()} == set(TASKS) - {"embedding"}
    questions = {question.task: question for question in spec.questions()}
    units = [unit(f"u{k}", kind) for k in range(20)]
    answered = SimulatedEngine(spec).generate(units)
    assert [u.unit_id for u in answered] == [u.unit_id for u in units]
    for found in answered:
        assert len(found.answers) == len(found.prompts) >= 11
        for raw in found.answers:
            answer = parse_raw(found, raw, questions)
            assert (answer.status, answer.note) == (AnswerStatus.OK, None), raw
            assert answer.value


def test_a_vector_has_the_tasks_size_and_no_tokens():
    spec = make_job(model=SIMULATED, tasks=[{"embedding": {"dimensions": 24}}])
    prompt = Prompt(task="embedding", num_prompt_tokens=90, input_ids=(1,) * 90)
    seen = dataclasses.replace(unit("u", "image"), prompts=(prompt,))
    (found,) = SimulatedEngine(spec).generate([seen])
    (raw,) = found.answers
    answer = parse_raw(found, raw, {q.name: q for q in spec.questions()})
    assert (answer.status, len(answer.value), raw.num_output_tokens) == ("ok", 24, 0)


def test_answers_follow_from_the_units_id_alone():
    engine = SimulatedEngine(job())
    together = engine.generate([unit("a"), unit("b")])
    (alone,) = engine.generate([unit("b")])
    assert alone.answers == together[1].answers
    assert together[0].answers != together[1].answers


def test_a_failed_unit_costs_nothing_and_stays_as_it_is():
    from schemas.errors import ErrorType, UnitError
    from schemas.tables.error import ErrorRecord

    error = ErrorRecord.from_error("decode", UnitError(ErrorType.MEDIA_UNREADABLE, "broken"))
    failed = unit("a").failed(error)
    (found,) = SimulatedEngine(job(speed=1)).generate([failed])
    assert (found.answers, found.error, found.engine_seconds) == ((), error, 0.0)


def test_it_takes_the_time_it_says():
    engine = SimulatedEngine(
        job(
            speed=1,
            seconds_per_prompt_token=0,
            seconds_per_cached_token=0,
            seconds_per_vision_token=0.05,
            seconds_per_step=0,
        )
    )
    started = time.perf_counter()
    answered = engine.generate([unit("a"), unit("b")])
    elapsed = time.perf_counter() - started
    assert sum(found.engine_seconds for found in answered) == pytest.approx(2 * 8 * 0.05)
    assert elapsed >= 2 * 8 * 0.05


def test_assumed_times_follow_from_the_size_and_the_gpu():
    # 8.19e9 parameters x 2 bytes over 3.35 TB/s at 60%; x 2 operations over 989 TFLOPS at 40%.
    times = EngineTimes.of(Simulated(size="8B", gpu="h100"))
    assert times.per_step == pytest.approx(8.190735e9 * 2 / (3.35e12 * 0.6))
    assert times.per_prompt_token == pytest.approx(2 * 8.190735e9 / (989e12 * 0.4))
    faster = EngineTimes.of(Simulated(size="8B", gpu="h200", speed=10))
    assert faster.per_step == pytest.approx(times.per_step * 3.35 / 4.8 / 10)
    given = EngineTimes.of(Simulated(seconds_per_step=0.5, speed=2))
    assert given.per_step == 0.25


def test_a_whole_job_without_weights(archive, checkpoint, tmp_path, no_ray):
    import io
    import shutil

    import pyarrow.dataset as ds
    from rich.console import Console

    from jobs.run import annotate
    from tests.support.job_files import SMALL

    bare = tmp_path / "bare"
    shutil.copytree(checkpoint, bare, ignore=shutil.ignore_patterns("*.safetensors*"))
    spec = SMALL | {
        "input": {"scan": str(archive)},
        "output": str(tmp_path / "out"),
        "model": {"source": str(bare), "engine": "simulated", "simulated": {"speed": 1000}},
        "generation": {"max_new_tokens": 400},
    }
    run = annotate.run(check_job(spec, "test"), Console(file=io.StringIO(), width=120))
    rows = ds.dataset(tmp_path / "out" / "annotations", partitioning="hive").to_table().to_pylist()
    assert len(rows) == run.counts["units"]
    assert run.counts["status"] == {"ok": len(rows) - 4, "failed": 4}  # the archive's broken files
    assert run.counts["output_tokens"] > 50 * len(rows)
    assert run.recipe["model"]["engine"] == "simulated"
