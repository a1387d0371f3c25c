"""Training formats: conversations, WebDataset, a Hugging Face folder."""

import io
import json
import tarfile
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from jobs.console.json_values import json_text
from jobs.export.boxed_frames import file_name
from jobs.export.source import HAS_NO_ADDRESS, Files, Source, caption_of, has_address
from jobs.results.frames import decode_again, seen_parts
from jobs.results.read import Row
from pipeline.output.rows import table_schema
from pipeline.tasks.columns import questions_by_name
from pipeline.tasks.registry import TASKS
from schemas.errors import StorageError, UnitError
from schemas.tables.columns import from_row
from schemas.tables.media import Part
from schemas.task import AnswerStatus, Question, View

SHARD_BYTES = 256 << 20
_READ = (AnswerStatus.OK, AnswerStatus.REPAIRED)
_WHOLE_SECONDS = 0.05


def conversations(source: Source) -> Files:
    """The format of the model's makers: ``conversations.jsonl``, a line for each answer.

    The questions are the rows' prompts; the answers are the typed values in the model's format. The
    format names whole files, so units that are a part of a video are left out.
    """
    lines, questions = [], questions_by_name(source.named)
    for row in source.rows:
        if not row.get("media") or not row.get("sampling"):
            source.skipped.append((row["uri"], "failed" if row["error"] else "a conversation"))
            continue
        if not _is_whole(row):
            source.skipped.append((row["uri"], "a part of a longer video"))
            continue
        if not has_address(row):
            source.skipped.append((row["uri"], HAS_NO_ADDRESS))
            continue
        for answer in row["responses"]:
            if answer["status"] in _READ and row.get(answer["task"]) is not None:
                if (question := questions.get(answer["task"])) is None:
                    source.skipped.append((row["uri"], f"{answer['task']} is no known task"))
                    continue
                if question.is_vector:
                    source.skipped.append((row["uri"], f"{answer['task']} is a vector"))
                    continue
                written = _conversation(row, answer, question)
                lines.append(json_text(written))
    if lines:
        yield "conversations.jsonl", "".join(f"{line}\n" for line in lines).encode()


def _is_whole(row: Row) -> bool:
    media, sampling = row["media"], row["sampling"]
    if media["media_type"] == "image" or media.get("duration_seconds") is None:
        return True
    seconds = sampling["end_seconds"] - sampling["start_seconds"]
    return bool(seconds >= media["duration_seconds"] - _WHOLE_SECONDS)


def _conversation(row: Row, answer: dict[str, Any], question: Question) -> dict[str, Any]:
    part = from_row(row, Part)
    kind, sampling = part.media.media_type, part.sampling
    view = View(
        media_type=kind,
        width=part.media.width,
        height=part.media.height,
        pts_seconds=sampling.pts_seconds or (),
        start_seconds=sampling.start_seconds,
        end_seconds=sampling.end_seconds,
        intrinsics=part.media.intrinsics,
    )
    text = TASKS[question.task].write(row[question.name], question, view)
    return {
        "id": f"{row['unit_id']}/{question.name}",
        kind: row["uri"],
        "conversations": [
            {"from": "human", "value": f"<{kind}>\n{answer['prompt']}"},
            {"from": "gpt", "value": text},
        ],
    }


def webdataset(source: Source) -> Files:
    """WebDataset: ``shard-*.tar``; a sample is a unit with the frames that the model saw.

    Its files are ``<key>.frame-000.jpg`` and so on, ``<key>.json`` (the row) and ``<key>.txt`` (the
    caption).
    """
    buffer, number = io.BytesIO(), 0
    shard = tarfile.open(fileobj=buffer, mode="w")  # noqa: SIM115

    def add(name: str, content: bytes) -> None:
        entry = tarfile.TarInfo(name)
        entry.size = len(content)
        shard.addfile(entry, io.BytesIO(content))

    is_filled = False
    for key, row, frames in _units(source):
        is_filled = True
        for k, frame in enumerate(frames):
            add(f"{key}.frame-{k:03}.jpg", frame)
        add(f"{key}.json", json_text(row).encode())
        add(f"{key}.txt", caption_of(row).encode())
        if buffer.tell() > SHARD_BYTES:
            shard.close()
            yield f"shard-{number:06}.tar", buffer.getvalue()
            buffer, number, is_filled = io.BytesIO(), number + 1, False
            shard = tarfile.open(fileobj=buffer, mode="w")  # noqa: SIM115
    shard.close()
    if is_filled:
        yield f"shard-{number:06}.tar", buffer.getvalue()


def huggingface(source: Source) -> Files:
    """A folder for ``datasets.load_dataset``: ``train/metadata.parquet`` and ``train/frames/``.

    A row is a unit: the table's columns, and ``frames``, a list of images. Maps, which the library
    does not know, become JSON text.
    """
    columns = table_schema(source.named)
    maps = [field.name for field in columns if pa.types.is_map(field.type)]
    rows, names = [], []
    for key, row, frames in _units(source):
        names.append([f"frames/{key}-{k:03}.jpg" for k in range(len(frames))])
        for name, frame in zip(names[-1], frames, strict=True):
            yield f"train/{name}", frame
        rows.append(row | {name: json.dumps(dict(row[name] or ())) for name in maps})
    if not rows:
        return
    others = [field for field in columns if field.name not in maps]
    schema = pa.schema([*others, *(pa.field(name, pa.string()) for name in maps)])
    table = pa.Table.from_pylist(rows, schema=schema)
    table = table.append_column("frames_file_names", pa.array(names, pa.list_(pa.string())))
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(None), buffer)
    yield "train/metadata.parquet", buffer.getvalue()


def _units(source: Source) -> Iterator[tuple[str, Row, list[bytes]]]:
    """Yield key, row and JPEG frames of each unit; skip those whose media cannot be read now."""
    for number, row in enumerate(source.rows):
        try:
            pixels = [
                frame
                for part in seen_parts(row, source.planned.get(row["unit_id"]))
                for frame in decode_again(part, source.decoder)
            ]
        except (UnitError, StorageError) as error:
            source.skipped.append((row["uri"], str(error)))
            continue
        if not pixels:
            source.skipped.append((row["uri"], "there are no frames"))
            continue
        yield file_name(number, row["uri"]), row, [_jpeg(Image.fromarray(p)) for p in pixels]


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=92)
    return buffer.getvalue()
