"""Write media items as a manifest, to be read again or given to others."""

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.storage import Storage, shown
from schemas.errors import ManifestError
from schemas.manifest import MANIFEST, MediaItem, default_media_id


def write_manifest(items: Sequence[MediaItem], uri: str, storage: Storage) -> None:
    """Write items as a manifest, Parquet or JSON lines by the extension of ``uri``.

    Columns that hold nothing but defaults are left out; attributes become columns again.

    Raises:
        ManifestError: another extension, or attributes that no Parquet column can hold.
        StorageError: the storage refused.
    """
    check_extension(uri)
    rows = [_row(item) for item in items]
    if uri.endswith(".jsonl"):
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        content = "".join(lines).encode()
    else:
        content = _parquet(rows, shown(uri))
    storage.write_bytes(uri, content)


def check_extension(uri: str) -> None:
    """Check that a manifest can be written to ``uri``.

    Raises:
        ManifestError: the extension is none of those that can be written.
    """
    if not uri.endswith((".parquet", ".jsonl")):
        raise ManifestError(f"a manifest is written as .parquet or .jsonl, got {shown(uri)}")


def _row(item: MediaItem) -> dict[str, Any]:
    row = {
        "uri": None if item.messages else item.uri,
        "frames": list(item.frames),
        "sample_fps": item.sample_fps,
        "messages": item.messages,
        "media_id": item.media_id,
        "media_type": item.media_type,
        "start_seconds": item.start_seconds,
        "end_seconds": item.end_seconds,
        "tasks": list(item.tasks),
        "content_version": item.content_version,
    }
    if item.media_id == default_media_id(item.frames or [item.messages or item.uri]):
        del row["media_id"]
    told = {key: value for key, value in row.items() if value not in (None, [])}
    return told | (json.loads(item.attributes) if item.attributes else {})


def _parquet(rows: list[dict[str, Any]], name: str) -> bytes:
    told = {key: None for row in rows for key in row}
    known = [key for key in MANIFEST.names if key in told]
    columns = {}
    for key in [*known, *(key for key in told if key not in known)]:
        type_ = MANIFEST.field(key).type if key in known else None
        try:
            columns[key] = pa.array([row.get(key) for row in rows], type=type_)
        except (pa.ArrowException, OverflowError) as error:
            raise ManifestError(
                f"{name}: column {key!r} does not fit into Parquet ({error}); write .jsonl instead"
            ) from None
    buffer = pa.BufferOutputStream()
    try:
        pq.write_table(pa.table(columns), buffer)
    except pa.ArrowException as error:
        raise ManifestError(f"{name}: {error}; write .jsonl instead") from None
    return bytes(buffer.getvalue())
