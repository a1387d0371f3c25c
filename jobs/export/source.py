"""The rows to export, and their drawings: the input of all formats."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from jobs.results.read import Row
from pipeline.storage.parquet import read_json
from pipeline.storage.storage import Storage, join
from pipeline.tasks.registry import TASKS
from schemas.errors import StorageError
from schemas.task import Drawing, Task

Files = Iterator[tuple[str, bytes]]
"""Names, relative to the export's folder, and contents."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """The rows to export.

    planned: unit id -> the unit's row of the plan, as ``jobs.results.frames`` returns it.
    labels: those that the job asked for, in the job's order: the first classes of a detector.
    named: the columns of questions with names of their own.
    skipped: (name, reason) of each row that the format cannot hold or read; the format adds them.
    remarks: lines about the files, which the command prints; the format adds them.
    """

    rows: list[Row]
    recipe_id: str
    planned: dict[str, dict[str, Any]]
    storage: Storage
    labels: Sequence[str] = ()
    named: "Sequence[pa.Field[Any]]" = ()
    skipped: list[tuple[str, str]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def drawings(row: Row, selects: Callable[[Task], bool]) -> list[Drawing]:
    """Return the drawings of a row's values, of the tasks that ``selects`` is true for."""
    return [
        task.draw(row[name])
        for name, task in TASKS.items()
        if selects(task) and row.get(name) is not None
    ]


def caption_of(row: Row) -> str:
    """Return the row's caption; an empty text if there is none."""
    found = drawings(row, lambda task: task.subtitles == "captions")
    return next((drawing.headline for drawing in found if drawing.headline), "")


def draws_boxes(task: Task) -> bool:
    """Whether a task's answers are labelled boxes in a picture."""
    return task.mark_kind in ("object", "track")


def requested_labels(output: str, run_ids: Collection[str], storage: Storage) -> list[str]:
    """Return the labels of boxes that the runs' job asked for, in its order; empty if unknown.

    All runs of a recipe asked for the same: labels are in the prompts.
    """
    for run_id in run_ids:
        try:
            content = read_json(join(output, "runs", run_id, "run.json"), storage)
            tasks = [task for task in content["job"]["tasks"] if draws_boxes(TASKS[task["task"]])]
            labels = [label for task in tasks for label in task["labels"]]
        except (FileNotFoundError, StorageError, ValueError, KeyError, TypeError):
            continue
        return list(dict.fromkeys(labels))
    return []
