"""The columns of questions: those of the tasks, and those of questions with names of their own.

A named column carries what its question is, so that a reader of the table needs no job file.
"""

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from pipeline.tasks.json_columns import json_type
from pipeline.tasks.registry import TASKS
from schemas.job.task_spec import NAMED_TASKS
from schemas.task import Drawing, Question

_NAMED_TASKS = [name.encode() for name in NAMED_TASKS]


@functools.lru_cache(maxsize=256)
def column_of(question: Question) -> "pa.Field[Any]":
    """Return the column of a question's answers."""
    column = TASKS[question.task].column
    if question.is_vector:
        what = f"vector of length 1; the instruction was: {question.instruction}"
        metadata = {"description": what, "task": question.task}
        size = question.dimensions or -1  # -1: a list of any size
        return pa.field(question.name, pa.list_(pa.float16(), size), metadata=metadata)
    if not question.has_own_name:
        return column
    schema = question.json_schema
    what = f"answer to the question {question.name}, a task of the kind {question.task}"
    metadata = {"description": what, "task": question.task}
    return pa.field(
        question.name,
        json_type(schema).arrow if schema else column.type,
        metadata=metadata | ({"json_schema": schema} if schema else {}),
    )


def named_columns(schema: pa.Schema) -> "list[pa.Field[Any]]":
    """Return the columns of a table's schema that not all tables have.

    Those of questions with their own names, and those of vectors, whose size the checkpoint gives.
    """
    return [field for field in schema if (field.metadata or {}).get(b"task") in _NAMED_TASKS]


def questions_by_name(named: "Iterable[pa.Field[Any]]" = ()) -> dict[str, Question]:
    """Return the questions whose answers a table may have: of all tasks, and of named columns."""
    questions = {name: Question(task=name) for name in TASKS}
    for field in named:
        about = field.metadata or {}
        schema = about[b"json_schema"].decode() if b"json_schema" in about else None
        questions[field.name] = Question(
            task=about[b"task"].decode(), name=field.name, json_schema=schema
        )
    return questions


def draw(value: Any, question: Question) -> Drawing:
    """Return what the report and the exports show of an answer, which is not None."""
    drawing = TASKS[question.task].draw(value)
    if question.task == "moments" and question.has_own_name:
        events = [dataclasses.replace(each, caption=question.name) for each in drawing.events]
        return dataclasses.replace(drawing, events=tuple(events))
    return drawing
