"""Write media items as a manifest."""

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.storage.storage import Storage
from schemas.errors import ManifestError
from schemas.shown import redact_uri
from schemas.tables.manifest import MANIFEST, MediaItem, default_media_id


def write_manifest(items: Sequence[MediaItem], uri: str, storage: Storage) -> None:
    """Write items as Parquet or JSON lines, by the extension of ``uri``.

    Columns with only default values are left out; attributes become columns again.

    Raises:
        ManifestError: the extension is another one, or attributes do not fit into Parquet.
        StorageError: the storage refused or failed.
    """
    check_extension(uri)
    rows = [_row(item) for item in items]
    if uri.endswith(".jsonl"):
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        content = "".join(lines).encode()
    else:
        content = _parquet(rows, redact_uri(uri))
    storage.write_bytes(uri, content)


def check_extension(uri: str) -> None:
    """Check that a manifest can be written to ``uri``.

    Raises:
        ManifestError: the extension is neither .parquet nor .jsonl.
    """
    if not uri.endswith((".parquet", ".jsonl")):
        raise ManifestError(f"a manifest is written as .parquet or .jsonl, got {redact_uri(uri)}")


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
    filled = {key: value for key, value in row.items() if value not in (None, [])}
    return filled | (json.loads(item.attributes) if item.attributes else {})


def _parquet(rows: list[dict[str, Any]], name: str) -> bytes:
    keys = dict.fromkeys(key for row in rows for key in row)
    known = [key for key in MANIFEST.names if key in keys]
    columns = {}
    for key in [*known, *(key for key in keys if key not in known)]:
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
