"""Read Parquet in batches whose size in memory is limited, whatever the file repeats."""

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.manifest.formats.parquet_values import column_values
from pipeline.manifest.formats.rows import MAX_ROW_BYTES, Row, Rows, check_names, too_large
from schemas.errors import ManifestError
from schemas.tables.manifest import MANIFEST

logger = logging.getLogger(__name__)

_PANDAS_INDEX = re.compile(r"__index_level_\d+__\Z")
_BATCH_ROWS = 256
_BATCH_BYTES = 256 << 20
_DICTIONARY_BYTES = 2 << 20
_MAX_RATIO = 50
_SLICE_BYTES = 16 << 20
"""Of the rows of a batch that are Python values at a time."""
_MAX_VALUES = 64 << 20
"""Of one column in one row group; lists of numbers and nulls may be packed to nothing."""

_UNREADABLE = (pa.ArrowException, OSError, ValueError, MemoryError)


@dataclass
class _Changed:
    """Values of a column that are not as the file has them; the first one is an example."""

    kind: Any
    row: int
    value: Any
    count: int = 0


def parquet_rows(path: Path, name: str) -> Rows:
    """Read a Parquet file; rows count from 1.

    Raises:
        ManifestError: the file is broken.
    """
    try:
        with pq.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            _check_groups(file.metadata, name)
    except _UNREADABLE as error:
        raise ManifestError(f"{name} is not a readable Parquet file: {error}") from None
    check_names(columns, name)
    kept = [column for column in columns if not _PANDAS_INDEX.match(column)]

    def read() -> Iterator[tuple[str, Row]]:
        number, changes = 1, dict[str, _Changed]()
        for batch in _batches(path, kept, name):
            values = [_values(batch, column, number, changes) for column in kept]
            for row in zip(*values, strict=True):
                yield f"row {number}", dict(zip(kept, row, strict=True))
                number += 1
        for column, changed in changes.items():
            _warn(name, column, changed)

    return Rows(columns=kept, read=read)


def _batches(path: Path, columns: list[str], name: str) -> Iterator[pa.RecordBatch]:
    """Yield batches, of at most about ``_SLICE_BYTES`` of text, or of one row."""
    number = 1
    try:
        # Spark's old times: as nanoseconds, those after 2262 would silently become others.
        with pq.ParquetFile(path, coerce_int96_timestamp_unit="us") as file:
            num_rows = _batch_rows(file.metadata)
            for batch in file.iter_batches(num_rows, columns=columns, use_threads=False):
                largest = max((_largest(column) for column in batch.columns), default=0)
                if largest > MAX_ROW_BYTES:
                    raise too_large(name, f"rows {number} to {number + batch.num_rows - 1}")
                step = max(1, min(batch.num_rows, _SLICE_BYTES // max(largest, 1)))
                for begin in range(0, batch.num_rows, step):
                    yield batch.slice(begin, step)
                number += batch.num_rows
    except _UNREADABLE as error:
        raise ManifestError(f"{name} is not a readable Parquet file: {error}") from None


def _batch_rows(metadata: Any) -> int:
    """Rows of a batch: fewer if a text that is stored once may be large, since each row gets it.

    Writers end a dictionary at 1 MB, so that a larger one is rare.
    """
    largest = 1
    for k in range(metadata.num_row_groups):
        group = metadata.row_group(k)
        for j in range(group.num_columns):
            column = group.column(j)
            if not column.has_dictionary_page:
                continue
            size, packed = column.total_uncompressed_size, column.total_compressed_size
            dictionary = column.data_page_offset - (column.dictionary_page_offset or 0)
            if dictionary > _DICTIONARY_BYTES or size > max(_SLICE_BYTES, _MAX_RATIO * packed):
                largest = max(largest, size)
    return max(1, min(_BATCH_ROWS, _BATCH_BYTES // largest))


def _largest(values: Any) -> int:
    """Bytes of the largest text of a column, by which the values of a row are estimated."""
    if isinstance(values, pa.DictionaryArray):
        values = values.dictionary
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        return int(pc.max(pc.binary_length(values)).as_py() or 0)
    return int(-(-values.nbytes // max(len(values), 1)))


def _check_groups(metadata: Any, name: str) -> None:
    """Check what the file says of its row groups.

    Raises:
        ManifestError: a column has too many values.
    """
    for k in range(metadata.num_row_groups):
        group = metadata.row_group(k)
        for j in range(group.num_columns):
            column = group.column(j)
            if column.num_values > _MAX_VALUES:
                raise ManifestError(
                    f"{name}: column {column.path_in_schema!r} has over {_MAX_VALUES:,} values in "
                    "one row group; write smaller row groups, or leave the column out"
                )


def _values(
    batch: pa.RecordBatch, column: str, number: int, changes: dict[str, _Changed]
) -> list[Any]:
    """Return a column's values; count those of a further column that are text now, or null.

    number: of the first row.
    """
    values = pa.chunked_array([batch.column(column)])
    is_known = column in MANIFEST.names  # checked later; the name of a file may be any bytes
    found, changed = column_values(values, "surrogateescape" if is_known else "backslashreplace")
    if changed and not is_known:
        kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
        first = _Changed(kind, number + changed[0], found[changed[0]])
        changes.setdefault(column, first).count += len(changed)
    return found


def _warn(name: str, column: str, changed: _Changed) -> None:
    logger.warning(
        "%s: column %r has %s values that Python cannot hold (%s), such as dates after the year "
        "9999, unknown time zones or text that is not UTF-8; they are passed on as text, or null, "
        "such as row %s: %.80r",
        *(name, column, f"{changed.count:,}", changed.kind, changed.row, changed.value),
    )
