"""What each task declares for the report, the exports, the metrics and the simulated engine."""

import dataclasses
import json
from random import Random
from typing import get_args

import pyarrow as pa
import pytest

from pipeline.tasks.parse import parse_answer
from pipeline.tasks.registry import TASKS
from schemas.job.task_spec import TASK_NAMES
from schemas.task import MarkKind, MetricKind, Question, SubtitleTrack, Task, View

VIEWS = {
    "image": View(media_type="image", width=640, height=480),
    "video": View(
        media_type="video",
        width=640,
        height=480,
        pts_seconds=(8.0, 10.0, 12.0, 14.0),
        start_seconds=8.0,
        end_seconds=16.0,
    ),
    "messages": View(media_type="text", width=0, height=0),
}
TOOL = {"name": "click", "parameters": {"properties": {"coordinate": {"const": [500, 250]}}}}
SCHEMA = {"type": "object", "properties": {"mood": {"enum": ["calm"]}}, "required": ["mood"]}
EACH = [
    pytest.param(task, VIEWS[media_type], id=f"{name}-{media_type}")
    for name, task in TASKS.items()
    for media_type in sorted(task.media_types)
]


def question(task: Task) -> Question:
    """A question with all settings; a task uses those that it has."""
    return Question(
        task=task.name,
        labels=("car", "dog"),
        query="a car stops",
        keys=("title", "total"),
        tools=json.dumps([TOOL]),
        json_schema=json.dumps(SCHEMA),
    )


def simulated(task: Task, view: View, number: int):
    text = task.simulate(question(task), view, Random(number))
    return parse_answer(text, question(task), view)


def test_the_names_of_the_job_file_are_the_tasks():
    assert tuple(TASKS) == TASK_NAMES
    assert all(task.name == name == task.column.name for name, task in TASKS.items())


def test_a_task_without_a_declaration_fails_at_import():
    declared = {field.name: getattr(TASKS["ocr"], field.name) for field in dataclasses.fields(Task)}
    for name in ("simulate", "draw", "mark_kind", "metric", "subtitles"):
        with pytest.raises(TypeError, match=name):
            Task(**{key: value for key, value in declared.items() if key != name})


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_kinds_are_known(task: Task):
    for kind, known in (
        (task.mark_kind, MarkKind),
        (task.metric, MetricKind),
        (task.subtitles, SubtitleTrack),
    ):
        assert kind is None or kind in get_args(known)
    assert task.media_types <= VIEWS.keys()


@pytest.mark.parametrize(("task", "view"), EACH)
def test_a_simulated_answer_is_read_and_written_again(task: Task, view: View):
    for number in range(20):
        answer = simulated(task, view, number)
        assert (answer.status, answer.note) == ("ok", None)
        pa.array([answer.value], task.column.type).validate(full=True)
        text = task.write(answer.value, question(task), view)
        assert parse_answer(text, question(task), view).status == "ok"


@pytest.mark.parametrize(("task", "view"), EACH)
def test_a_value_is_drawn(task: Task, view: View):
    """As the table has it: through the task's Arrow column."""
    for number in range(20):
        value = pa.array([simulated(task, view, number).value], task.column.type).to_pylist()[0]
        drawing = task.draw(value)
        assert drawing.headline or drawing.text or drawing.events or drawing.marks
        assert bool(drawing.marks) == (task.mark_kind is not None)
        for mark in drawing.marks:
            assert mark.label and (mark.box is None) != (mark.point is None)
            (x, y), (right, bottom) = (
                (mark.box or mark.point * 2)[:2],
                (mark.box or mark.point)[-2:],
            )
            assert 0 <= x <= right <= view.width and 0 <= y <= bottom <= view.height
        for span in drawing.events:
            assert span.caption
            assert view.start_seconds <= span.start_seconds <= span.end_seconds <= view.end_seconds
