"""Formats that models are trained from: conversations, WebDataset, a Hugging Face folder."""

import io
import json
import tarfile
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from jobs.boxed_frames import file_name
from jobs.export_source import Files, Source
from jobs.pictures import decode_again, seen_parts
from jobs.read_annotations import Row
from pipeline.parse import TASKS
from pipeline.write import ANNOTATION
from schemas.errors import StorageError, UnitError
from schemas.task import AnswerStatus, Question, View
from schemas.unit import part_from

SHARD_BYTES = 256 << 20
_READ = (AnswerStatus.OK, AnswerStatus.REPAIRED)
_WHOLE_SECONDS = 0.05


def conversations(source: Source) -> Files:
    """The format of the model's makers: ``conversations.jsonl``, a line for each answer.

    Questions are those that were asked, answers those of the typed columns, written as the model
    writes them. The format names whole files, so that stretches of longer videos are left out.
    """
    lines = []
    for row in source.rows:
        if not row.get("media") or not row.get("sampling"):
            source.skipped.append(f"{row['uri']}: {'failed' if row['error'] else 'a conversation'}")
            continue
        if not _is_whole(row):
            source.skipped.append(f"{row['uri']}: a stretch of a longer video")
            continue
        for answer in row["responses"]:
            if answer["status"] in _READ and row.get(answer["task"]) is not None:
                lines.append(json.dumps(_conversation(row, answer), ensure_ascii=False))
    yield "conversations.jsonl", "".join(f"{line}\n" for line in lines).encode()


def _is_whole(row: Row) -> bool:
    media, sampling = row["media"], row["sampling"]
    if media["media_type"] == "image" or media.get("duration_seconds") is None:
        return True
    stretch = sampling["end_seconds"] - sampling["start_seconds"]
    return bool(stretch >= media["duration_seconds"] - _WHOLE_SECONDS)


def _conversation(row: Row, answer: dict[str, Any]) -> dict[str, Any]:
    part = part_from(row)
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
    task = answer["task"]
    said = TASKS[task].write(row[task], Question(task=task), view)
    return {
        "id": f"{row['unit_id']}/{task}",
        kind: row["uri"],
        "conversations": [
            {"from": "human", "value": f"<{kind}>\n{answer['prompt']}"},
            {"from": "gpt", "value": said},
        ],
    }


def webdataset(source: Source) -> Files:
    """WebDataset: ``shard-*.tar``; a sample is a unit with the frames the model saw.

    Its files are ``<key>.frame-000.jpg`` and on, ``<key>.json`` (the row), ``<key>.txt`` (caption).
    """
    buffer, number = io.BytesIO(), 0
    shard = tarfile.open(fileobj=buffer, mode="w")  # noqa: SIM115

    def add(name: str, content: bytes) -> None:
        entry = tarfile.TarInfo(name)
        entry.size = len(content)
        shard.addfile(entry, io.BytesIO(content))

    for key, row, frames in _units(source):
        for k, frame in enumerate(frames):
            add(f"{key}.frame-{k:03}.jpg", frame)
        add(f"{key}.json", json.dumps(row, ensure_ascii=False, default=str).encode())
        add(f"{key}.txt", (row.get("caption") or "").encode())
        if buffer.tell() > SHARD_BYTES:
            shard.close()
            yield f"shard-{number:06}.tar", buffer.getvalue()
            buffer, number = io.BytesIO(), number + 1
            shard = tarfile.open(fileobj=buffer, mode="w")  # noqa: SIM115
    shard.close()
    yield f"shard-{number:06}.tar", buffer.getvalue()


def huggingface(source: Source) -> Files:
    """A folder for ``datasets.load_dataset``: ``train/metadata.parquet`` and ``train/frames/``.

    A row for each unit: the table's columns, and ``frames``, a list of images.
    """
    rows, names = [], []
    for key, row, frames in _units(source):
        names.append([f"frames/{key}-{k:03}.jpg" for k in range(len(frames))])
        for name, frame in zip(names[-1], frames, strict=True):
            yield f"train/{name}", frame
        # Maps are not among the library's types: pairs are a list of structs there.
        pairs = [{"key": k, "value": v} for k, v in row["fields"] or ()]
        rows.append(row | {"fields": json.dumps({p["key"]: p["value"] for p in pairs})})
    columns = [field for field in ANNOTATION if field.name != "fields"]
    schema = pa.schema([*columns, pa.field("fields", pa.string())])
    table = pa.Table.from_pylist(rows, schema=schema)
    table = table.append_column("frames_file_names", pa.array(names, pa.list_(pa.string())))
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(None), buffer)
    yield "train/metadata.parquet", buffer.getvalue()


def _units(source: Source) -> Iterator[tuple[str, Row, list[bytes]]]:
    """Units whose media can be read: key, row, and the frames that the model saw, as JPEG."""
    for number, row in enumerate(source.rows):
        try:
            pixels = [
                frame
                for part in seen_parts(row, source.planned.get(row["unit_id"]))
                for frame in decode_again(part, source.storage)
            ]
        except (UnitError, StorageError) as error:
            source.skipped.append(f"{row['uri']}: {error}")
            continue
        if not pixels:
            source.skipped.append(f"{row['uri']}: there are no frames")
            continue
        yield file_name(number, row["uri"]), row, [_jpeg(Image.fromarray(p)) for p in pixels]


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=92)
    return buffer.getvalue()
