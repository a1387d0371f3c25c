"""Read a manifest file's bytes into rows of Python values: Parquet, JSON lines or CSV.

An error in the file is raised here, with its line or row. ``items`` checks the values later.
"""

import csv
import gzip
import io
import json
import logging
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.manifest.parquet_values import column_values
from schemas.errors import ManifestError
from schemas.tables.manifest import MANIFEST

logger = logging.getLogger(__name__)

_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?\Z")
"""JSON's numbers: without leading zeros, so that codes such as 007 stay text."""

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_PANDAS_INDEX = re.compile(r"__index_level_\d+__\Z")
_MAX_SHOWN_PROBLEMS = 5


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows, their columns in the file's order, and the place of each row, such as ``line 3``."""

    columns: list[str]
    values: list[dict[str, Any]]
    places: list[str]


class Problems:
    """Collects the errors of single rows, to show the first few and their number."""

    def __init__(self, name: str) -> None:
        """``name``: the manifest's name in messages."""
        self._name = name
        self._shown: list[str] = []
        self._num_problems = 0

    def add(self, place: str, problem: str) -> None:
        """Add a wrong row."""
        self._num_problems += 1
        if len(self._shown) < _MAX_SHOWN_PROBLEMS:
            self._shown.append(f"{place}: {problem}")

    def check(self, num_good: int) -> None:
        """Raise one error for all wrong rows.

        num_good: number of the other rows.

        Raises:
            ManifestError: at least one row is wrong.
        """
        if self._num_problems == 1:
            raise ManifestError(f"{self._name}, {self._shown[0]}")
        if self._num_problems:
            lines = "".join(f"\n  {line}" for line in self._shown)
            hidden = self._num_problems - len(self._shown)
            more = f"\n  and {hidden} more" if hidden else ""
            raise ManifestError(
                f"{self._name}: {self._num_problems} of {self._num_problems + num_good} rows are "
                f"wrong:{lines}{more}"
            )


def parquet_rows(content: bytes, name: str) -> Rows:
    """Read a Parquet file; rows count from 1.

    Raises:
        ManifestError: the file is broken.
    """
    try:
        # Spark's old times: as nanoseconds, those after 2262 would silently become others.
        file = pq.ParquetFile(pa.BufferReader(content), coerce_int96_timestamp_unit="us")
        table = file.read()
        names = table.column_names
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        raise ManifestError(f"{name} is not a readable Parquet file: {error}") from None
    _check_names(names, name)
    kept = [column for column in names if not _PANDAS_INDEX.match(column)]
    lists = [_parquet_column(table.column(column), column, name) for column in kept]
    values = [dict(zip(kept, row, strict=True)) for row in zip(*lists, strict=True)]
    return Rows(columns=kept, values=values, places=[f"row {i}" for i in range(1, len(values) + 1)])


def _parquet_column(values: "pa.ChunkedArray[Any]", column: str, name: str) -> list[Any]:
    """Return a column's values; warn of those of a further column that are text now, or null."""
    is_known = column in MANIFEST.names  # checked later; the name of a file may be any bytes
    found, changed = column_values(values, "surrogateescape" if is_known else "backslashreplace")
    if changed and not is_known:
        logger.warning(
            "%s: column %r has %s values that Python cannot hold (%s), such as dates after the "
            "year 9999, unknown time zones or text that is not UTF-8; they are passed on as text, "
            "or null, such as row %s: %.80r",
            *(name, column, f"{len(changed):,}", values.type, changed[0] + 1, found[changed[0]]),
        )
    return found


def jsonl_rows(content: bytes, name: str) -> Rows:
    """Read JSON lines; blank lines are skipped.

    Raises:
        ManifestError: a line is not a JSON object.
    """
    columns: dict[str, None] = {}
    values, places, problems = [], [], Problems(name)
    for number, line in enumerate(_text(content, name).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if _SURROGATE.search(line):
                json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            problems.add(
                f"line {number}",
                "a \\u escape is half of a character; write the uri of a file whose name is not "
                "UTF-8 as Path.as_uri() does",
            )
            continue
        except (ValueError, RecursionError) as error:
            problems.add(f"line {number}", f"not valid JSON: {error}")
            continue
        if not isinstance(row, dict):
            problems.add(
                f"line {number}",
                f'must be a JSON object such as {{"uri": ...}}, one a line, got {line[:40]!r}',
            )
            continue
        columns.update(dict.fromkeys(row))
        values.append(row)
        places.append(f"line {number}")
    problems.check(len(values))
    return Rows(columns=list(columns), values=values, places=places)


def csv_rows(content: bytes, name: str) -> Rows:
    """Read CSV: commas, double quotes, a header line. An empty cell is null.

    A further column becomes numbers or booleans if all its cells are, else it stays text.

    Raises:
        ManifestError: the quoting is broken, or a row has more or fewer cells than the header.
    """
    records = _csv_records(_text(content, name), name)
    _, header = next(records, (0, []))
    _check_names([column for column in header if column], name)
    values, places, problems = [], [], Problems(name)
    for number, cells in records:
        if len(cells) != len(header):
            problems.add(f"line {number}", f"has {len(cells)} cells, the header has {len(header)}")
            continue
        # pandas writes its index as a column without a name
        values.append({c: cell or None for c, cell in zip(header, cells, strict=True) if c})
        places.append(f"line {number}")
    problems.check(len(values))
    columns = [column for column in header if column]
    for column in set(columns) - set(MANIFEST.names):
        _type_column(column, values)
    return Rows(columns=columns, values=values, places=places)


Reader = Callable[[bytes, str], Rows]

READERS: dict[str, Reader] = {
    ".parquet": parquet_rows,
    ".jsonl": jsonl_rows,
    ".ndjson": jsonl_rows,
    ".csv": csv_rows,
}
"""Manifest formats by extension; all but Parquet also with ``.gz``."""


def reader_for(uri: str) -> Reader | None:
    """Return the reader for a uri by its extension; None for other extensions."""
    path = uri.lower()
    for extension, read in READERS.items():
        if path.endswith(extension):
            return read
        if extension != ".parquet" and path.endswith(extension + ".gz"):
            return partial(_gzipped, read)
    return None


def joined_rows(files: list[str], parts: list[Rows]) -> Rows:
    """Join the rows of several files; a row's place begins with the name of its file."""
    return Rows(
        columns=list(dict.fromkeys(column for part in parts for column in part.columns)),
        values=[row for part in parts for row in part.values],
        places=[
            f"{file.rpartition('/')[2]} {place}"
            for file, part in zip(files, parts, strict=True)
            for place in part.places
        ],
    )


def _gzipped(read: Reader, content: bytes, name: str) -> Rows:
    try:
        plain = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise ManifestError(f"{name} is not a readable gzip file: {error}") from None
    return read(plain, name)


def _text(content: bytes, name: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ManifestError(
            f"{name}, line {line}: not UTF-8 (byte 0x{content[error.start]:02x}); save it as UTF-8"
        ) from None


def _csv_records(text: str, name: str) -> Iterator[tuple[int, list[str]]]:
    """Yield records with their first line; blank lines are skipped."""
    csv.field_size_limit(sys.maxsize)  # a data: uri is one long cell
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    while True:
        begin = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise ManifestError(f"{name}, line {begin}: not valid CSV: {error}") from None
        if cells:
            yield begin, cells


def _type_column(column: str, values: list[dict[str, Any]]) -> None:
    cells = [row[column] for row in values if row[column] is not None]
    if all(len(cell) < 40 and _NUMBER.match(cell) for cell in cells):
        parse: Callable[[str], Any] = json.loads
    elif all(cell.lower() in ("true", "false") for cell in cells):
        parse = _is_true
    else:
        return
    for row in values:
        if row[column] is not None:
            row[column] = parse(row[column])


def _is_true(cell: str) -> bool:
    return cell.lower() == "true"


def _check_names(columns: list[str], name: str) -> None:
    repeated = sorted({column for column in columns if columns.count(column) > 1})
    if repeated:
        raise ManifestError(f"{name}: two columns are named {repeated[0]!r}; rename one")
