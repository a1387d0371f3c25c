"""Read gold: what people say is right, in the annotation table's own columns."""

import math
import re
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from jobs.metrics import METRICS
from jobs.read_annotations import parquet_files
from pipeline.manifest_item import PROTOCOL, RowError, media_item
from pipeline.manifest_rows import Problems, Rows, parquet_rows, reader_for
from pipeline.storage import Storage, shown
from schemas.errors import UserError
from schemas.task import box_type

_STRETCH = ("start_seconds", "end_seconds")
_INTERVAL = [("start_seconds", pa.float64()), ("end_seconds", pa.float64())]
_BOX = [("box", box_type()), ("pts_seconds", pa.float64())]
_TYPES: dict[str, pa.DataType] = {
    "caption": pa.string(),
    "events": pa.list_(pa.struct([*_INTERVAL, ("caption", pa.string())])),
    "ocr": pa.string(),
    "text_spans": pa.list_(pa.struct([("text", pa.string()), *_BOX])),
    "objects": pa.list_(pa.struct([("label", pa.string()), *_BOX])),
    "moments": pa.list_(pa.struct(_INTERVAL)),
}
_NEEDED = {
    "events": ("start_seconds", "end_seconds"),
    "text_spans": ("text",),
    "objects": ("label", "box"),
    "moments": ("start_seconds", "end_seconds"),
}
_FORMS = {
    "caption": "text",
    "events": 'a list of {"start_seconds": 1.0, "end_seconds": 2.5, "caption": "..."}',
    "ocr": "text",
    "text_spans": 'a list of {"text": "...", "box": {"x1": 0, "y1": 0, "x2": 9, "y2": 9}, '
    '"pts_seconds": null}',
    "objects": 'a list of {"label": "...", "box": {"x1": 0, "y1": 0, "x2": 9, "y2": 9}, '
    '"pts_seconds": null}',
    "moments": 'a list of {"start_seconds": 1.0, "end_seconds": 2.5}',
}
_OF_TABLE = frozenset({"media", "sampling", "responses", "timings", "error", "attributes"})


@dataclass(frozen=True, kw_only=True)
class GoldRow:
    """One row of gold.

    place: where it is in its file, as a person counts. media_id, uri: at least one is given.
    start_seconds, end_seconds: the unit's stretch; None where not given.
    answers: the right answer of each task that the row judges. columns: all further columns.
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
    """Gold, checked.

    rows: those that judge something. num_rows: all. tasks: those that some row judges.
    columns: those that may name a slice.
    """

    rows: list[GoldRow]
    num_rows: int
    tasks: list[str]
    columns: list[str]


def read_gold(uri: str, storage: Storage) -> Gold:
    """Read and check gold: Parquet (a file or a folder of them), or JSON lines.

    Relative uris start at gold's folder. A task's null means that the row does not judge it.

    Raises:
        UserError: gold is missing, broken, has no task column or no rows, or wrong ones.
    """
    rows, base = _read(uri, storage)
    tasks = [task for task in METRICS if task in rows.columns]
    if not tasks:
        raise UserError(
            f"{shown(uri)} has no task column: it has {', '.join(rows.columns) or 'no columns'}; "
            f"gold's columns are named as the table's: {', '.join(METRICS)}"
        )
    recipes = {row["recipe_id"] for row in rows.values if row.get("recipe_id")}
    if len(recipes) > 1:
        raise UserError(
            f"{shown(uri)} has rows of {len(recipes)} recipes; gold is one answer for each unit: "
            "write the rows of one recipe into a file"
        )
    judging: list[GoldRow] = []
    problems = Problems(shown(uri))
    for place, row in zip(rows.places, rows.values, strict=True):
        try:
            if any(row.get(task) is not None for task in tasks):
                judging.append(_gold_row(place, row, tasks, base))
        except RowError as error:
            problems.add(place, str(error))
    problems.check(len(judging))
    if not judging:
        raise UserError(f"{shown(uri)} judges nothing: {', '.join(tasks)} is null in every row")
    known = {*tasks, *_OF_TABLE, *_STRETCH}
    columns = [column for column in rows.columns if column not in known]
    return Gold(
        rows=judging,
        num_rows=len(rows.values),
        tasks=[task for task in tasks if any(task in row.answers for row in judging)],
        columns=columns,
    )


def _read(uri: str, storage: Storage) -> tuple[Rows, str]:
    """Return gold's rows, and the folder where its relative uris start."""
    is_lines = re.search(r"\.(jsonl|ndjson)(\.gz)?\Z", uri, re.IGNORECASE)
    files = [uri] if is_lines else parquet_files(uri, storage)
    if not files:
        raise UserError(
            f"there is no gold {shown(uri)}, or it is neither a .parquet nor a .jsonl file nor a "
            "folder of Parquet"
        )
    if files != [uri]:
        parts = [_read_file(file, storage) for file in files]
        places = [
            f"{file.rpartition('/')[2]} {place}"
            for file, part in zip(files, parts, strict=True)
            for place in part.places
        ]
        columns = list(dict.fromkeys(column for part in parts for column in part.columns))
        values = [row for part in parts for row in part.values]
        return Rows(columns=columns, values=values, places=places), _absolute(uri, storage)
    return _read_file(uri, storage), _absolute(uri, storage).rpartition("/")[0]


def _read_file(uri: str, storage: Storage) -> Rows:
    try:
        content = storage.read_bytes(uri)
    except FileNotFoundError:
        raise UserError(f"there is no gold {shown(uri)}") from None
    return (reader_for(uri) or parquet_rows)(content, shown(uri))


def _absolute(uri: str, storage: Storage) -> str:
    if PROTOCOL.match(uri) and not uri.startswith(("file:", "local:")):
        return uri.rstrip("/")
    return str(storage.filesystem(uri)[1])


def _gold_row(place: str, row: dict[str, Any], tasks: list[str], base: str) -> GoldRow:
    named = {key: row.get(key) for key in ("media_id", "uri", "frames", *_STRETCH)}
    sampling = row.get("sampling")
    if isinstance(sampling, dict) and named["start_seconds"] is named["end_seconds"] is None:
        named |= {key: sampling.get(key) for key in _STRETCH}
    has_uri = bool(named["uri"] or named["frames"])
    has_id = named["media_id"] not in (None, "")
    if not has_uri and not has_id:
        raise RowError("give it a media_id or a uri: that of the annotated media")
    if not has_uri:  # which a row of the manifest must have, and is read as one
        named["uri"] = "none"
    item = media_item(named, [], base)
    return GoldRow(
        place=place,
        media_id=item.media_id if has_id else None,
        uri=shown(item.uri) if has_uri else None,
        start_seconds=item.start_seconds,
        end_seconds=item.end_seconds,
        answers={task: _answer(task, row[task]) for task in tasks if row.get(task) is not None},
        columns={key: value for key, value in row.items() if key not in tasks},
    )


def _answer(task: str, value: Any) -> Any:
    try:
        answer = pa.array([value], _TYPES[task]).to_pylist()[0]
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        raise RowError(f"{task} must be {_FORMS[task]}, got {repr(value)[:80]}") from None
    for number, element in enumerate(answer if isinstance(answer, list) else [], 1):
        problem = "is null" if element is None else _problem(element, _NEEDED[task])
        if problem:
            raise RowError(f"element {number} of {task} {problem}; it must be {_FORMS[task]}")
    return answer


def _problem(element: dict[str, Any], needed: tuple[str, ...]) -> str | None:
    for key in needed:
        if element[key] is None:
            return f"has no {key}"
    box = element.get("box")
    numbers = [*(box or {}).values(), *(v for v in element.values() if isinstance(v, float))]
    if not all(number is not None and math.isfinite(number) for number in numbers):
        return "has a number that is missing or not finite"
    if box and (box["x1"] > box["x2"] or box["y1"] > box["y2"]):
        return "has a box whose x1, y1 is not its upper left corner"
    if element.get("start_seconds", 0.0) > element.get("end_seconds", math.inf):
        return f"begins at {element['start_seconds']} and ends at {element['end_seconds']} s"
    return None
