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
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.parse import TASKS, Answer, parse_raw
from pipeline.storage import Storage, join, shown
from schemas.annotation import annotation_schema
from schemas.errors import ErrorType, StorageError
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
        "content_version": unit.content_version,
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
            "finished_at": datetime.now(UTC),
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
    return f"part-{run_id}-{recipe_id}-{_digest(ids)}.parquet"


def _digest(ids: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()[:16]


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


def read_parquet(
    uri: str, storage: Storage, columns: list[str] | None = None, size: int | None = None
) -> pa.Table:
    """Read one Parquet object.

    columns: only these. size: of the object in bytes, if known: of a large one only the ranges
        that hold the columns are read then; a small one costs one request.

    Raises:
        FileNotFoundError: there is none.
        StorageError: the storage refused or failed, or the file is damaged.
    """
    try:
        if columns is None or size is None or size < _RANGED_BYTES:
            return pq.ParquetFile(io.BytesIO(storage.read_bytes(uri))).read(columns=columns)
        with storage.open_ranges(uri) as file, pq.ParquetFile(file, pre_buffer=True) as parquet:
            return parquet.read(columns=columns)
    except pa.ArrowInvalid as error:
        raise StorageError(
            f"{shown(uri)} is not a readable Parquet file: {error}; of a damaged part of an "
            "output see disasters in docs/operations.md"
        ) from None


_RANGED_BYTES = 4 << 20
_FILES_AT_ONCE = 512

COUNTED = (
    "unit_id",
    "media_id",
    "media.media_type",
    "run_id",
    "status",
    "error.type",
    "error.attempts",
    "sampling.decoder",
    "parts.list.element.sampling.decoder",
    "responses.list.element.status",
    "responses.list.element.num_prompt_tokens",
    "responses.list.element.num_output_tokens",
    "timings.decode_seconds",
    "timings.engine_seconds",
)


def committed(
    output: str,
    recipe_id: str,
    storage: Storage,
    columns: Sequence[str] = COUNTED,
    media_ids: pa.Array | None = None,
) -> pa.Table:
    """Read which units have a row under a recipe, from any run, and how it came out.

    media_ids: rows of these only. A table of millions is read part by part, and no more is held.

    Few columns of the table, and ``file``, the uri of each row's part. They stay in Arrow: a
    million rows as Python objects would be gigabytes of the driver's memory.

    Raises:
        StorageError: the storage refused or failed.
    """
    folder = join(output, "annotations")
    return read_parts(folder, recipe_id, storage, columns, ANNOTATION, media_ids)


def read_parts(
    folder: str,
    recipe_id: str,
    storage: Storage,
    columns: Sequence[str],
    schema: pa.Schema,
    media_ids: pa.Array | None = None,
) -> pa.Table:
    """Read some columns of all parts under a recipe, and ``file``, the uri of each row's part.

    schema: of the parts. media_ids: rows of these only. Parts that are joined meanwhile, by
    ``reelscribe compact``, are read where they are then.

    Raises:
        StorageError: the storage refused or failed.
    """

    def read(file: dict[str, Any]) -> pa.Table:
        table = read_parquet(file["uri"], storage, list(columns), file["size"])
        return _with_file(table, file["uri"])

    buffer = io.BytesIO()
    pq.write_table(schema.empty_table(), buffer)
    empty = _with_file(pq.ParquetFile(buffer).read(columns=list(columns)), "")

    def read_all(files: list[dict[str, Any]]) -> pa.Table:
        held = [empty]
        with ThreadPoolExecutor(16) as pool:
            for start in range(0, len(files), _FILES_AT_ONCE):
                some = [empty, *pool.map(read, files[start : start + _FILES_AT_ONCE])]
                # Tables of before may lack a column.
                table = pa.concat_tables(some, promote_options="default")
                if media_ids is not None:
                    table = table.filter(pc.is_in(table["media_id"], media_ids))
                held.append(table)
        return pa.concat_tables(held).unify_dictionaries()

    for _ in range(2):
        with suppress(FileNotFoundError):
            return read_all(storage.list_files(folder, f"*/part-*-{recipe_id}-*.parquet"))
    return read_all(storage.list_files(folder, f"*/part-*-{recipe_id}-*.parquet"))


def _with_file(table: pa.Table, uri: str) -> pa.Table:
    places = pa.array([0] * table.num_rows, pa.int32())
    return table.append_column("file", pa.DictionaryArray.from_arrays(places, [uri]))


_RANKS = {UnitStatus.OK: 0, UnitStatus.PARTIAL: 1, UnitStatus.FAILED: 2}


def settle(rows: pa.Table, storage: Storage, plan: pa.Table | None = None) -> pa.Table:
    """Leave one row for each unit, the best, where runs beside each other wrote several.

    rows: what ``committed`` read. The choice follows from the rows alone, so that two drivers make
    the same one. Of two that failed, the one that was tried more often is the later one.
    plan: units in the place of which there may be rows of the time when their media could not be
        read. Those go.

    Returns the rows that stay.

    Raises:
        StorageError: the storage refused or failed.
    """
    counts = pc.value_counts(rows["unit_id"])
    repeated = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
    replaced = pa.chunked_array([pa.repeat(False, rows.num_rows)])
    if plan is not None:
        was_read = is_read(rows)
        read = pc.unique(rows["media_id"].filter(was_read))
        replaced = pc.and_not(pc.is_in(rows["media_id"], read), was_read)
        replaced = pc.and_(replaced, pc.is_in(rows["unit_id"], plan["unread_id"]))
        replaced = pc.and_not(replaced, pc.is_in(rows["unit_id"], plan["unit_id"]))
    doubtful = pc.or_(pc.is_in(rows["unit_id"], repeated), replaced)
    places = pc.indices_nonzero(doubtful)
    if not len(places):
        return rows
    few = rows.select(["unit_id", "status", "error", "file"]).take(places).to_pylist()
    best: dict[str, tuple[int, int, str]] = {}
    for row in few:
        attempts = row["error"]["attempts"] if row["error"] else 0
        rank = (_RANKS[row["status"]], -attempts, row["file"])
        best[row["unit_id"]] = min(best.get(row["unit_id"], rank), rank)
    stays = [
        best[row["unit_id"]][-1] == row["file"] and not is_replaced
        for row, is_replaced in zip(few, replaced.take(places).to_pylist(), strict=True)
    ]
    lost = places.filter(pc.invert(pa.array(stays)))
    drop_rows(rows.take(lost), storage)
    return rows.filter(pc.invert(pc.is_in(pa.array(range(rows.num_rows), pa.uint64()), lost)))


def drop_rows(rows: pa.Table, storage: Storage) -> None:
    """Take rows out of a table: a part that loses some is written anew, then the old one goes.

    rows: their ids, as the first of the columns, and ``file``, as ``read_parts`` gives them.

    Of a part that is gone meanwhile nothing is dropped.

    Raises:
        StorageError: the storage refused or failed.
    """
    id_column = rows.column_names[0]
    losers: dict[str, list[str]] = {}
    for row in rows.select([id_column, "file"]).to_pylist():
        losers.setdefault(row["file"], []).append(row[id_column])
    rewritten = {}
    for file, ids in losers.items():
        try:
            table = read_parquet(file, storage)
        except FileNotFoundError:
            continue  # another run or `compact` wrote it anew just now: another time
        kept = table.filter(pc.invert(pc.is_in(table[id_column], pa.array(ids, pa.string()))))
        if kept.num_rows:
            rewritten[file] = kept
        else:
            storage.remove(file)
    # Only now: what is kept of one part may come to have the name of another that was to go.
    for file, kept in rewritten.items():
        write_parquet(kept, _renamed(file, kept[id_column].to_pylist()), storage)
        storage.remove(file)


def _renamed(file: str, ids: Sequence[str]) -> str:
    """The uri of a part of the same run with these rows."""
    return f"{file.rpartition('-')[0]}-{_digest(ids)}.parquet"


def is_read(rows: pa.Table) -> pa.ChunkedArray:
    """Whether the media of a row could be read, be it that they are not what it asks for.

    rows: of a plan or of the table. Tables of before have no column ``parts``.
    """
    has_parts = pc.fill_null(pc.greater(pc.list_value_length(rows["parts"]), 0), False)
    is_refused = pc.equal(pc.struct_field(rows["error"], "type"), ErrorType.BAD_REQUEST.value)
    is_found = pc.or_(pc.is_valid(rows["media"]), has_parts)
    return pc.or_(is_found, pc.fill_null(is_refused, False))


def write_json(content: dict[str, Any], uri: str, storage: Storage) -> None:
    """Write a JSON object, indented for people.

    Raises:
        StorageError: the storage refused or failed.
    """
    text = json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n"
    storage.write_bytes(uri, text.encode())
