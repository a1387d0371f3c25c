"""Read gold: the right answers, in columns named as those of the annotation table."""

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from jobs.evaluate.metrics import METRICS, Metric
from jobs.results.read import parquet_files
from pipeline.manifest.formats.parquet import parquet_rows
from pipeline.manifest.formats.readers import joined_rows, reader_for
from pipeline.manifest.formats.rows import Problems, Rows
from pipeline.manifest.items import media_item
from pipeline.manifest.uris import base_uri, parent_folder
from pipeline.manifest.values import RowError, brief
from pipeline.storage.storage import Storage
from schemas.errors import UserError
from schemas.shown import HIDDEN, redact_uri

_SPAN = ("start_seconds", "end_seconds")
_TABLE_COLUMNS = frozenset({"media", "sampling", "responses", "timings", "error", "attributes"})


@dataclass(frozen=True, kw_only=True)
class GoldRow:
    """One row of gold.

    place: its position in the file, for messages. media_id, uri: at least one is given.
    start_seconds, end_seconds: the unit's time span; None where not given.
    answers: task -> right answer, for the tasks that the row judges. columns: all other columns.
    """

    place: str
    media_id: str | None
    uri: str | None
    start_seconds: float | None
    end_seconds: float | None
    answers: dict[str, Any]
    columns: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Gold:
    """Checked gold.

    rows: the rows that judge some task. num_rows: number of all rows.
    tasks: the tasks that some row judges. metrics: of all tasks, by name.
    columns: the columns that may name a slice.
    """

    rows: list[GoldRow]
    num_rows: int
    tasks: list[str]
    columns: list[str]
    metrics: Mapping[str, Metric]


def read_gold(uri: str, storage: Storage, metrics: Mapping[str, Metric] = METRICS) -> Gold:
    """Read and check gold: Parquet (a file or a folder of them), or JSON lines.

    metrics: of the tasks that gold may judge, by name.

    Relative uris are relative to gold's folder. A null means that the row does not judge the task.

    Raises:
        UserError: gold is missing or broken, or has no task column, no rows or invalid rows.
    """
    judging: list[GoldRow] = []
    problems, recipe_of, num_rows = Problems(redact_uri(uri)), dict[str, str](), 0
    with _open(uri, storage) as (rows, base):
        tasks = [task for task in metrics if task in rows.columns]
        if not tasks:
            raise UserError(
                f"{redact_uri(uri)} has no task column; its columns: "
                f"{', '.join(rows.columns) or 'none'}; name gold's columns as the table's: "
                f"{', '.join(metrics)}"
            )
        of_tasks = {task: metrics[task] for task in tasks}
        for place, row in rows.read():
            num_rows += 1
            _check_recipe(row, recipe_of, redact_uri(uri))
            try:
                if any(row.get(task) is not None for task in tasks):
                    judging.append(_gold_row(place, row, of_tasks, base))
            except RowError as error:
                problems.add(place, str(error))
    problems.check(len(judging))
    if not judging:
        raise UserError(
            f"{redact_uri(uri)} judges nothing: {', '.join(tasks)} is null in every row"
        )
    known = {*tasks, *_TABLE_COLUMNS, *_SPAN}
    columns = [column for column in rows.columns if column not in known]
    return Gold(
        rows=judging,
        num_rows=num_rows,
        tasks=[task for task in tasks if any(task in row.answers for row in judging)],
        columns=columns,
        metrics=metrics,
    )


def _check_recipe(row: Mapping[str, Any], recipe_of: dict[str, str], name: str) -> None:
    """Refuse a table with rows of several recipes about one unit. recipe_of: by unit, so far."""
    unit, recipe = row.get("unit_id") or row.get("media_id"), row.get("recipe_id")
    if isinstance(unit, str) and recipe and recipe_of.setdefault(unit, recipe) != recipe:
        raise UserError(
            f"{name} has rows of several recipes about the unit {unit}, but gold has one answer "
            "for each unit: write the rows of one run to a file"
        )


@contextmanager
def _open(uri: str, storage: Storage) -> Iterator[tuple[Rows, str]]:
    """Give gold's rows, and the folder that its relative uris are relative to."""
    is_lines = re.search(r"\.(jsonl|ndjson)(\.gz)?\Z", uri, re.IGNORECASE)
    files = [uri] if is_lines else parquet_files(uri, storage)
    if not files:
        raise UserError(
            f"there is no gold {redact_uri(uri)}; give a .parquet or .jsonl file, or a folder of "
            "Parquet files"
        )
    with ExitStack() as stack:
        parts = []
        for file in files:
            try:
                copy = stack.enter_context(storage.local_copy(file))
            except FileNotFoundError:
                raise UserError(f"there is no gold {redact_uri(file)}") from None
            parts.append((reader_for(file) or parquet_rows)(copy, redact_uri(file)))
        if files != [uri]:
            yield joined_rows(files, parts, redact_uri(uri)), base_uri(uri, storage)
        else:
            yield parts[0], parent_folder(base_uri(uri, storage))


def _gold_row(place: str, row: dict[str, Any], metrics: Mapping[str, Metric], base: str) -> GoldRow:
    named = {key: row.get(key) for key in ("media_id", "uri", "frames", *_SPAN)}
    sampling = row.get("sampling")
    if isinstance(sampling, dict) and named["start_seconds"] is named["end_seconds"] is None:
        named |= {key: sampling.get(key) for key in _SPAN}
    has_uri = bool(named["uri"] or named["frames"])
    has_id = named["media_id"] not in (None, "")
    if not has_uri and not has_id:
        raise RowError("has neither media_id nor uri: give one of the annotated media")
    if not has_uri:  # a manifest row must have one, and gold is read as manifest rows are
        named["uri"] = "none"
    item = media_item(named, [], base)
    # Of an address with a query, rows have the id, but not the query.
    is_hidden = has_uri and redact_uri(item.uri).endswith(HIDDEN)
    return GoldRow(
        place=place,
        media_id=item.media_id if has_id or is_hidden else None,
        uri=redact_uri(item.uri) if has_uri else None,
        start_seconds=item.start_seconds,
        end_seconds=item.end_seconds,
        answers={
            task: _answer(task, row[task], metric)
            for task, metric in metrics.items()
            if row.get(task) is not None
        },
        columns={key: value for key, value in row.items() if key not in metrics},
    )


def _answer(task: str, value: Any, metric: Metric) -> Any:
    try:
        column: pa.Array[Any] = pa.array([value], metric.gold_type)
        answer = column.to_pylist()[0]
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        raise RowError(f"{task} must be {metric.example}, got {brief(value)}") from None
    for number, element in enumerate(answer if isinstance(answer, list) else [], 1):
        problem = "is null" if element is None else _problem(element, metric.required)
        if problem:
            raise RowError(f"element {number} of {task} {problem}; it must be {metric.example}")
    return answer


def _problem(element: dict[str, Any], required: tuple[str, ...]) -> str | None:
    for key in required:
        if element[key] is None:
            return f"has no {key}"
    box = element.get("box")
    numbers = [*(box or {}).values(), *(v for v in element.values() if isinstance(v, float))]
    if not all(number is not None and math.isfinite(number) for number in numbers):
        return "has a number that is missing or not finite"
    if box and (box["x1"] > box["x2"] or box["y1"] > box["y2"]):
        return "has a box whose x1, y1 is not its upper left corner"
    if element.get("start_seconds", 0.0) > element.get("end_seconds", math.inf):
        return f"starts at {element['start_seconds']} s and ends at {element['end_seconds']} s"
    return None
