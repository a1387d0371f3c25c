"""An answer that cannot be read is asked for once more."""

import pytest

from pipeline.engines.transformers.engine import TransformersEngine
from pipeline.plan.planner import Planner
from pipeline.stages.prepare import Prepare
from pipeline.stages.reask import ask_again
from pipeline.storage.storage import Storage
from pipeline.workers.code_version import code_digest
from schemas.job.generation import Generation, Retry
from schemas.job.job import check_job
from schemas.tables.manifest import MediaItem
from schemas.task import Question
from tests.support.units import answer, unit

QUESTIONS = {name: Question(task=name) for name in ("caption", "objects")}
BOXES = '[{"bbox_2d": [100, 200, 500, 1000], "label": "car", "time": 0}]'


class Engine:
    """Gives the answers it was made with, and keeps what it was asked."""

    def __init__(self, *answered) -> None:
        self.answered, self.calls = list(answered), []

    def __call__(self, units, generation):
        self.calls.append(([[p.task for p in unit.prompts] for unit in units], generation))
        return self.answered


def asked(first, *seconds, retry=None):
    engine, generation = Engine(*seconds), Generation(seed=7, retry=retry)
    return engine, ask_again(engine, first, first, QUESTIONS, generation)


@pytest.mark.parametrize(
    ("weak", "reason"), [("No boxes here, sorry.", "stop"), (BOXES[:-9] + "9" * 20, "loop")]
)
def test_a_second_answer_that_can_be_read_takes_the_first_ones_place(weak, reason):
    first = [
        unit(answer("caption", "A car."), answer("objects", weak, reason)),
        unit(answer("caption", "A tree."), answer("objects", BOXES), unit_id="u2"),
    ]
    engine, (again, untouched) = asked(first, unit(answer("objects", BOXES)), retry=Retry())
    assert [(a.raw_text, a.attempts) for a in again.answers] == [("A car.", 1), (BOXES, 2)]
    assert untouched == first[1]
    ((tasks, generation),) = engine.calls
    assert tasks == [["objects"]]  # no other prompt, and no other unit
    assert (generation.seed, generation.retry) == (8, None)
    assert (generation.temperature, generation.repetition_penalty) == (0.7, 1.0)


def test_only_prose_has_the_repetition_penalty():
    """Lists of coordinates, tables and JSON repeat themselves by their form."""
    weak = [unit(answer("caption", "a a a", "loop"), answer("objects", "none"))]
    good = unit(answer("caption", "A car."), answer("objects", BOXES))
    engine, (again,) = asked(weak, good, retry=Retry(repetition_penalty=1.3))
    assert [(a.raw_text, a.attempts) for a in again.answers] == [("A car.", 2), (BOXES, 2)]
    calls = [(tasks, generation.repetition_penalty) for tasks, generation in engine.calls]
    assert calls == [([["caption"]], 1.3), ([["objects"]], 1.0)]


def test_a_second_answer_that_cannot_be_read_is_not_taken():
    first = [unit(answer("objects", "none of them"))]
    for second in (unit(answer("objects", "still none")), unit()):  # unit(): it failed
        _, (again,) = asked(first, second, retry=Retry())
        assert [(a.raw_text, a.attempts) for a in again.answers] == [("none of them", 2)]


def test_nothing_is_asked_again_where_all_is_read_or_the_job_says_never():
    weak = [unit(answer("objects", "none of them"))]
    engine, same = asked(weak, retry=None)
    assert (engine.calls, same) == ([], weak)
    good = [unit(answer("caption", "A car.")), unit()]
    engine, same = asked(good, retry=Retry())
    assert (engine.calls, same) == ([], good)


def test_the_engine_takes_other_settings_than_the_jobs(archive, checkpoint):
    spec = {
        "input": {"manifest": "unused.jsonl"},
        "output": "unused",
        "model": {"source": str(checkpoint), "dtype": "float32"},
        "tasks": ["objects"],
        "budget": {"image_tokens": [4, 64]},
        "generation": {"max_new_tokens": 12},
    }
    job = check_job(spec, "test")
    item = MediaItem(media_id="a", uri=str(archive / "images" / "scene-0.jpg"))
    prepare = Prepare(job, Storage(), code_digest())
    units = [prepare.prepare(u) for u in Planner(job, 262_144, Storage()).plan([item])]
    engine = TransformersEngine(job, num_threads=2)
    (first,) = engine.generate(units)
    drawn, again = (
        engine.generate(units, Generation(temperature=1.0, seed=seed))[0].answers[0].raw_text
        for seed in (8, 8)
    )
    assert drawn == again != first.answers[0].raw_text
