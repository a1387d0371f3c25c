"""Read and write whole Parquet and JSON objects."""

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.storage.storage import Storage
from schemas.errors import StorageError
from schemas.shown import redact_uri

_RANGED_BYTES = 4 << 20
"""Minimum size of an object that is read by ranges."""


def write_parquet(table: pa.Table, uri: str, storage: Storage) -> None:
    """Write a table as one Parquet object, atomically.

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

    columns: read only these.
    size: of the object in bytes, if known. A small object is read with one request; of a large one
        only the ranges of the columns are read.

    Raises:
        FileNotFoundError: there is none.
        StorageError: the storage refused or failed, or the file is damaged.
    """
    with readable(uri):
        if columns is None or size is None or size < _RANGED_BYTES:
            return pq.ParquetFile(io.BytesIO(storage.read_bytes(uri))).read(columns=columns)
        with storage.open_ranges(uri) as file, pq.ParquetFile(file, pre_buffer=True) as parquet:
            return parquet.read(columns=columns)


def read_schema(uri: str, storage: Storage) -> pa.Schema:
    """Read the schema of one Parquet object, by its last bytes.

    Raises:
        FileNotFoundError: there is none.
        StorageError: the storage refused or failed, or the file is damaged.
    """
    with storage.open_ranges(uri) as file, readable(uri):
        return pq.read_schema(file)


@contextmanager
def readable(uri: str) -> Iterator[None]:
    """Turn what Arrow raises on a damaged file, or on one of other types, into StorageError."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise StorageError(
            f"{redact_uri(uri)} is not a readable Parquet file: {error}; for a damaged file of an "
            "output see disasters in docs/operations.md"
        ) from None


MAX_JSON_BYTES = 16 << 20
MAX_JSON_DEPTH = 64


def read_json(uri: str, storage: Storage) -> dict[str, Any]:
    """Read one JSON object that ``write_json`` wrote, or that is in its place.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not a JSON object of at most ``MAX_JSON_BYTES`` and ``MAX_JSON_DEPTH``.
        StorageError: the storage refused or failed.
    """
    with storage.open_ranges(uri) as file:
        text = file.read(MAX_JSON_BYTES + 1)
    if len(text) > MAX_JSON_BYTES:
        raise ValueError(f"it is larger than {MAX_JSON_BYTES >> 20} MiB")
    content = parse_json(text)
    if not isinstance(content, dict):
        raise ValueError("it is not a JSON object")
    return content


def parse_json(text: bytes) -> Any:
    """Parse JSON of any form.

    Raises:
        ValueError: it is not JSON, or nested deeper than ``MAX_JSON_DEPTH``.
    """
    try:
        content = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if _is_deeper(content, MAX_JSON_DEPTH):
        raise ValueError("it is nested too deeply")
    return content


def _is_deeper(content: Any, depth: int) -> bool:
    level = [content]
    for _ in range(depth):
        level = [
            part
            for value in level
            if isinstance(value, dict | list)
            for part in (value.values() if isinstance(value, dict) else value)
        ]
    return bool(level)


def write_json(content: dict[str, Any], uri: str, storage: Storage) -> None:
    """Write a dict as indented JSON, atomically.

    Raises:
        StorageError: the storage refused or failed.
    """
    text = json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n"
    storage.write_bytes(uri, text.encode())
