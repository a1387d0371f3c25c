"""Read JSON lines and CSV, plain or packed by gzip, line by line."""

import csv
import gzip
import io
import itertools
import json
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from pipeline.manifest.formats.rows import (
    MAX_ROW_BYTES,
    Problems,
    Row,
    Rows,
    check_names,
    too_large,
)
from schemas.errors import ManifestError
from schemas.tables.manifest import MANIFEST

_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?\Z")
"""JSON's numbers: without leading zeros, so that codes such as 007 stay text."""

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_MAX_NUMBER = 40
_MAX_LINES = 1_000_000
"""That are blank, or of one row of CSV."""
_MIN_UNPACKED = 256 << 20
_MAX_RATIO = 200
"""gzip makes text of manifests 5 to 30 times smaller; what it makes smaller is no manifest."""


def jsonl_rows(path: Path, name: str, *, is_packed: bool = False) -> Rows:
    """Read JSON lines; blank lines are skipped.

    Raises:
        ManifestError: a line is not a JSON object.
    """

    def read() -> Iterator[tuple[str, Row]]:
        problems, num_good = Problems(name), 0
        for number, line in enumerate(_lines(path, name, is_packed), 1):
            if not line.strip():
                continue
            row, problem = _json_row(line.rstrip("\n"))
            if problem is None:
                num_good += 1
                yield f"line {number}", row
            else:
                problems.add(f"line {number}", problem)
        problems.check(num_good)

    columns: dict[str, None] = {}
    for _, row in read():
        if row.keys() - columns.keys():
            columns.update(dict.fromkeys(row))
            check_names(list(columns), name)
    return Rows(columns=list(columns), read=read)


def csv_rows(path: Path, name: str, *, is_packed: bool = False) -> Rows:
    """Read CSV: commas, double quotes, a header line. An empty cell is null.

    A further column becomes numbers or booleans if all its cells are, else it stays text.

    Raises:
        ManifestError: the quoting is broken, or a row has more or fewer cells than the header.
    """

    def records() -> Iterator[tuple[int, list[str]]]:
        return _csv_records(_lines(path, name, is_packed), name)

    _, header = next(records(), (0, []))
    # pandas writes its index as a column without a name
    columns = [column for column in header if column]
    check_names(columns, name)
    problems, num_good = Problems(name), 0
    further = [k for k, column in enumerate(header) if column and column not in MANIFEST.names]
    numbers, booleans = set(further), set(further)
    for number, cells in itertools.islice(records(), 1, None):
        if len(cells) != len(header):
            problems.add(f"line {number}", f"has {len(cells)} cells, the header has {len(header)}")
            continue
        num_good += 1
        numbers = {k for k in numbers if not cells[k] or _is_number(cells[k])}
        booleans = {k for k in booleans if not cells[k] or cells[k].lower() in ("true", "false")}
    problems.check(num_good)
    parse: dict[int, Callable[[str], Any]] = {
        **dict.fromkeys(booleans, _is_true),
        **dict.fromkeys(numbers, json.loads),
    }

    def read() -> Iterator[tuple[str, Row]]:
        for number, cells in itertools.islice(records(), 1, None):
            values: list[Any] = [cell or None for cell in cells]
            for k, as_value in parse.items():
                values[k] = None if values[k] is None else as_value(values[k])
            pairs = zip(header, values, strict=True)
            yield f"line {number}", {column: value for column, value in pairs if column}

    return Rows(columns=columns, read=read)


def _json_row(line: str) -> tuple[Row, str | None]:
    """The row of a line, or what is wrong with it."""
    try:
        row = json.loads(line)
        if _SURROGATE.search(line):
            json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return {}, (
            "a \\u escape is half of a character; write the uri of a file whose name is not "
            "UTF-8 as Path.as_uri() does"
        )
    except (ValueError, RecursionError) as error:
        return {}, f"not valid JSON: {error}"
    if isinstance(row, dict):
        return row, None
    return {}, f'must be a JSON object such as {{"uri": ...}}, one a line, got {line[:40]!r}'


def _csv_records(lines: Iterator[str], name: str) -> Iterator[tuple[int, list[str]]]:
    """Yield records with their first line; blank lines are skipped."""
    csv.field_size_limit(MAX_ROW_BYTES)  # a data: uri is one long cell
    num_chars = num_lines = 0

    def counted() -> Iterator[str]:
        nonlocal num_chars, num_lines
        for line in lines:
            num_chars, num_lines = num_chars + len(line), num_lines + 1
            if (
                num_chars > MAX_ROW_BYTES or num_lines > _MAX_LINES
            ):  # such as after a quote that nothing closes
                raise too_large(name, f"line {begin}")
            if "\r" in line.rstrip("\r\n"):  # a carriage return alone ends a line too
                yield from io.StringIO(line, newline="")
            else:
                yield line

    begin = 1
    reader = csv.reader(counted(), strict=True)
    while True:
        begin, num_chars, num_lines = reader.line_num + 1, 0, 0
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise ManifestError(f"{name}, line {begin}: not valid CSV: {error}") from None
        if cells:
            yield begin, cells


def _lines(path: Path, name: str, is_packed: bool) -> Iterator[str]:
    """Yield the lines of a file with their line feeds; UTF-8, with a byte order mark or without.

    Raises:
        ManifestError: not UTF-8, a line that is too long, or gzip that is broken or no manifest.
    """
    number = num_bytes = num_blank = 0
    max_bytes = max(_MIN_UNPACKED, _MAX_RATIO * path.stat().st_size)
    with path.open("rb") as stored:
        file = cast(BinaryIO, gzip.GzipFile(fileobj=stored)) if is_packed else stored
        while True:
            number += 1
            try:
                line = file.readline(MAX_ROW_BYTES + 1)
            except (OSError, EOFError, zlib.error) as error:
                raise ManifestError(f"{name} is not a readable gzip file: {error}") from None
            if not line:
                return
            num_bytes += len(line)
            num_blank = num_blank + 1 if line.isspace() else 0
            if num_blank > _MAX_LINES:
                raise ManifestError(f"{name}, line {number}: over {_MAX_LINES:,} blank lines")
            if len(line) > MAX_ROW_BYTES:
                raise too_large(name, f"line {number}")
            if is_packed and num_bytes > max_bytes:
                raise ManifestError(
                    f"{name} is over {_MAX_RATIO} times as large unpacked, which no manifest is; "
                    "unpack it, and give the plain file"
                )
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise ManifestError(
                    f"{name}, line {number}: not UTF-8 (byte 0x{line[error.start]:02x}); save it "
                    "as UTF-8"
                ) from None


def _is_number(cell: str) -> bool:
    return len(cell) < _MAX_NUMBER and _NUMBER.match(cell) is not None


def _is_true(cell: str) -> bool:
    return cell.lower() == "true"
