"""The rows to export, and their drawings: the input of all formats."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from jobs.results.read import Row
from pipeline.output.run_file import read_run_file
from pipeline.storage.storage import Storage
from pipeline.tasks.registry import TASKS
from pipeline.workers.isolated_decoder import IsolatedDecoder
from schemas.errors import StorageError
from schemas.shown import HIDDEN
from schemas.task import Drawing, Task

Files = Iterator[tuple[str, bytes]]
"""Names, relative to the export's folder, and contents."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """The rows to export.

    planned: unit id -> the unit's row of the plan, as ``jobs.results.frames`` returns it.
    decoder: decodes the media again.
    labels: those that the job asked for, in the job's order: the first classes of a detector.
    named: the columns of questions with names of their own.
    skipped: (name, reason) of each row that the format cannot hold or read; the format adds them.
    remarks: lines about the files, which the command prints; the format adds them.
    """

    rows: list[Row]
    recipe_ids: list[str]
    planned: dict[str, dict[str, Any]]
    decoder: IsolatedDecoder
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


HAS_NO_ADDRESS = "its address was written without its query"
"""Why a format that names media by their address leaves a row out."""


def has_address(row: Row) -> bool:
    """Whether a row has its media's whole address: rows do not have queries."""
    return not row["uri"].endswith(HIDDEN)


def requested_labels(output: str, run_ids: Collection[str], storage: Storage) -> list[str]:
    """Return the labels of boxes that the runs' job asked for, in its order; empty if unknown.

    Those of the newest run come first.
    """
    found: list[tuple[str, list[str]]] = []
    for run_id in run_ids:
        try:
            content = read_run_file(output, run_id, storage)
            tasks = [task for task in content["job"]["tasks"] if draws_boxes(TASKS[task["task"]])]
            labels = [label for task in tasks for label in task["labels"]]
            if not all(isinstance(label, str) for label in labels):
                continue
            found.append((str(content["created_at"]), labels))
        except (FileNotFoundError, StorageError, KeyError, TypeError):
            continue
    found.sort(key=lambda run: run[0], reverse=True)
    return list(dict.fromkeys(label for _, labels in found for label in labels))
