"""Turn answered units into annotation rows, and commit them as Parquet.

One file is one commit: it is written whole or not at all, its name follows from the run, the
recipe and the units in it, and it holds all that is known of them. So a task that Ray runs twice
writes the same file twice, a killed run leaves only whole files, and the next one reads from them
what is done.
"""

import dataclasses
import hashlib
import io
import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.parse import TASKS, Answer, parse_raw
from pipeline.storage import Storage, join, shown
from schemas.annotation import annotation_schema
from schemas.task import AnswerStatus, Question
from schemas.unit import AnsweredUnit, RawAnswer, UnitStatus

ANNOTATION = annotation_schema([task.column for task in TASKS.values()])
"""The schema of the output table."""


@dataclass(frozen=True, kw_only=True)
class RunKey:
    """What names a run's rows: its id, its recipe, and the partition it writes to."""

    run_id: str
    recipe_id: str
    run_date: str


def annotation_row(
    unit: AnsweredUnit, questions: dict[str, Question], key: RunKey
) -> dict[str, Any]:
    """One row of ANNOTATION from one unit, whatever happened to it."""
    answers = [(raw, parse_raw(unit, raw, questions)) for raw in unit.answers]
    columns: dict[str, Any] = dict.fromkeys(TASKS)
    columns |= {raw.task: answer.value for raw, answer in answers}
    return {
        "unit_id": unit.unit_id,
        "media_id": unit.media_id,
        "run_id": key.run_id,
        "recipe_id": key.recipe_id,
        "uri": shown(unit.uri),
        "status": _status(unit, [answer for _, answer in answers]),
        "error": dataclasses.asdict(unit.error) if unit.error else None,
        "media": dataclasses.asdict(unit.media) if unit.media else None,
        "sampling": dataclasses.asdict(unit.sampling) if unit.sampling else None,
        "parts": [
            {
                "uri": shown(part.uri),
                "media": dataclasses.asdict(part.media),
                "sampling": dataclasses.asdict(part.sampling),
            }
            for part in unit.parts
        ],
        **columns,
        "responses": _responses(unit, answers, questions),
        "timings": {
            "decode_seconds": unit.decode_seconds,
            "engine_seconds": unit.engine_seconds,
            "bytes_read": unit.bytes_read,
        },
        "attributes": unit.attributes,
    }


def _status(unit: AnsweredUnit, answers: Sequence[Answer]) -> str:
    if unit.error is not None:
        return UnitStatus.FAILED
    whole = (AnswerStatus.OK, AnswerStatus.REPAIRED)
    complete = all(answer.status in whole for answer in answers)
    return UnitStatus.OK if complete else UnitStatus.PARTIAL


def _responses(
    unit: AnsweredUnit,
    answers: list[tuple[RawAnswer, Answer]],
    questions: dict[str, Question],
) -> list[dict[str, Any]]:
    """What was asked and said; for a failed unit, what would have been asked."""
    media_type = unit.media.media_type if unit.media else "image"

    def asked(task: str) -> dict[str, Any]:
        prompt = unit.messages or TASKS[task].prompt(questions[task], media_type)
        return {"task": task, "prompt": prompt}

    if not answers:
        return [
            asked(prompt.task) | {"status": AnswerStatus.FAILED, "note": "the unit failed"}
            for prompt in unit.prompts
        ]
    return [
        asked(raw.task)
        | {
            "raw_text": raw.raw_text,
            "reasoning": answer.reasoning,
            "finish_reason": raw.finish_reason,
            "num_prompt_tokens": raw.num_prompt_tokens,
            "num_output_tokens": raw.num_output_tokens,
            "attempts": raw.attempts,
            "status": answer.status,
            "note": answer.note,
        }
        for raw, answer in answers
    ]


def write_part(
    rows: Iterable[dict[str, Any]], output: str, key: RunKey, storage: Storage
) -> pa.Table:
    """Commit rows as one Parquet file; returns them as a table.

    Raises:
        StorageError: the file could not be written; nothing of it is visible then.
    """
    ordered = sorted(rows, key=_reading_order)
    table = pa.Table.from_pylist(ordered, schema=ANNOTATION)
    folder = join(output, "annotations", f"run_date={key.run_date}")
    name = part_name(table["unit_id"].to_pylist(), key.run_id, key.recipe_id)
    write_parquet(table, join(folder, name), storage)
    return table


def part_name(ids: Sequence[str], run_id: str, recipe_id: str) -> str:
    """Name of the file of these rows: the same rows of the same run have the same."""
    digest = hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()[:16]
    return f"part-{run_id}-{recipe_id}-{digest}.parquet"


def _reading_order(row: dict[str, Any]) -> tuple[str, float]:
    return row["media_id"], (row["sampling"] or {}).get("start_seconds") or 0.0


def write_parquet(table: pa.Table, uri: str, storage: Storage) -> None:
    """Write a table as one Parquet object, whole or not at all.

    Raises:
        StorageError: the storage refused or failed.
    """
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    storage.write_bytes(uri, buffer.getvalue())


def read_parquet(uri: str, storage: Storage, columns: list[str] | None = None) -> pa.Table:
    """Read one Parquet object.

    Raises:
        FileNotFoundError: there is none.
        StorageError: the storage refused or failed.
    """
    return pq.ParquetFile(io.BytesIO(storage.read_bytes(uri))).read(columns=columns)


COUNTED = (
    "unit_id",
    "media_id",
    "media.media_type",
    "run_id",
    "status",
    "error.type",
    "sampling.decoder",
    "parts.list.element.sampling.decoder",
    "responses.list.element.status",
    "responses.list.element.num_prompt_tokens",
    "responses.list.element.num_output_tokens",
    "timings.decode_seconds",
    "timings.engine_seconds",
)


def committed(
    output: str, recipe_id: str, storage: Storage, columns: Sequence[str] = COUNTED
) -> list[dict[str, Any]]:
    """Read which units have a row under a recipe, from any run, and how it came out.

    Each is a row of the table with few of its columns, and ``file``, the uri of its part.

    Raises:
        StorageError: the storage refused or failed.
    """
    return read_parts(join(output, "annotations"), recipe_id, storage, columns)


def read_parts(
    folder: str, recipe_id: str, storage: Storage, columns: Sequence[str]
) -> list[dict[str, Any]]:
    """Read some columns of all parts under a recipe, and ``file``, the uri of each row's part.

    Raises:
        StorageError: the storage refused or failed.
    """
    files = storage.list_files(folder, f"*/part-*-{recipe_id}-*.parquet")

    def read(file: dict[str, Any]) -> list[dict[str, Any]]:
        rows = read_parquet(file["uri"], storage, list(columns)).to_pylist()
        return [row | {"file": file["uri"]} for row in rows]

    with ThreadPoolExecutor(16) as pool:
        return [row for rows in pool.map(read, files) for row in rows]


def settle(rows: list[dict[str, Any]], storage: Storage) -> list[dict[str, Any]]:
    """Leave one row for each unit, the best, where runs beside each other wrote several.

    rows: what ``committed`` read. The choice follows from the rows alone, so that two drivers make
    the same one. A part that loses rows is written anew without them, then the old one is removed.

    Returns the rows that stay.

    Raises:
        StorageError: the storage refused or failed.
    """
    ranks = {UnitStatus.OK: 0, UnitStatus.PARTIAL: 1, UnitStatus.FAILED: 2}
    best: dict[str, tuple[int, str]] = {}
    for row in rows:
        rank = (ranks[row["status"]], row["file"])
        best[row["unit_id"]] = min(best.get(row["unit_id"], rank), rank)
    read = {row["media_id"] for row in rows if _is_read(row)}

    def stays(row: dict[str, Any]) -> bool:
        # Media that could not be read had no version, so its unit had another id than it has now.
        replaced = not _is_read(row) and row["media_id"] in read
        return best[row["unit_id"]][1] == row["file"] and not replaced

    losers: dict[str, list[str]] = {}
    for row in rows:
        if not stays(row):
            losers.setdefault(row["file"], []).append(row["unit_id"])
    for file, ids in losers.items():
        table = read_parquet(file, storage)
        kept = table.filter(pc.invert(pc.is_in(table["unit_id"], pa.array(ids, pa.string()))))
        if kept.num_rows:
            first = kept.slice(0, 1).to_pylist()[0]
            name = part_name(kept["unit_id"].to_pylist(), first["run_id"], first["recipe_id"])
            write_parquet(kept, f"{file.rpartition('/')[0]}/{name}", storage)
        storage.remove(file)
    return [row for row in rows if stays(row)]


def _is_read(row: dict[str, Any]) -> bool:
    """Whether the media of a row could be read. Tables of before have no column ``parts``."""
    return bool(row["media"] or row.get("parts"))


def write_json(content: dict[str, Any], uri: str, storage: Storage) -> None:
    """Write a JSON object, indented for people.

    Raises:
        StorageError: the storage refused or failed.
    """
    text = json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n"
    storage.write_bytes(uri, text.encode())
