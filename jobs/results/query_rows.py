"""Print the rows of a query: a table or records for people, CSV and JSON for programs."""

import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import pyarrow as pa
from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jobs.console.json_values import json_text, json_values
from schemas.shown import one_line, printable

_FORMULA = re.compile(r"[=+\-@\t\r\n＝＋－＠](?!\d*(?:\.\d+)?\Z)")
"""Begins of formulas in Excel, LibreOffice and Google Sheets; a number is none."""
_SHOWN_ROWS = 100
_SHOWN_CHARS = 400
_MIN_WIDTH = 16
"""Columns of a table are this wide, or as wide as what they hold."""


class QueryRows:
    """The rows of a query, read once. Maps are dicts; columns of one name get numbers."""

    def __init__(self, relation: Any) -> None:
        """``relation``: DuckDB's, or anything else that streams Arrow."""
        # Through Arrow, because DuckDB's conversion of times with a zone needs pytz.
        self._reader = pa.RecordBatchReader.from_stream(relation)
        self.names: list[str] = []
        for name in self._reader.schema.names:
            count = sum(other == name for other in self._reader.schema.names[: len(self.names)])
            self.names.append(f"{name}_{count}" if count else name)

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        """Yield rows, in the order of ``names``."""
        for batch in self._reader:
            columns = [column.to_pylist(maps_as_pydicts="lossy") for column in batch.columns]
            yield from zip(*columns, strict=True)


def print_csv(rows: QueryRows, console: Console) -> None:
    """Print a header and all rows; lists and structs are JSON text, null is empty.

    A text that a spreadsheet would take for a formula gets an apostrophe in front: answers,
    addresses and attributes are other people's.
    """
    clean = _cleaner(console)
    console.file.write(_csv_line(map(clean, rows.names)))
    for row in rows:
        console.file.write(_csv_line(clean(_cell(value)) for value in row))


def _csv_line(cells: Iterable[str]) -> str:
    """Return a line; a cell with any end of a line in it is quoted, or it would begin a row."""
    line = io.StringIO(newline="")
    csv.writer(line, lineterminator="\r\n").writerow(cells)
    return line.getvalue().removesuffix("\r\n") + "\n"


def print_json(rows: QueryRows, console: Console) -> None:
    """Print all rows as one JSON list of objects, each on a line of its own."""
    clean = _cleaner(console)
    separator = "[\n"
    for row in rows:
        named = dict(zip(rows.names, row, strict=True))
        console.file.write(separator + clean(json_text(named)))
        separator = ",\n"
    console.file.write("\n]\n" if separator != "[\n" else "[]\n")


def print_table(rows: QueryRows, console: Console) -> None:
    """Print the first rows as a table; below each other if they are too wide for the console.

    Long texts are cut.
    """
    names = [one_line(name) for name in rows.names]
    found = [
        [_cut(one_line(_text(value))) for value in row] for row in islice(rows, _SHOWN_ROWS + 1)
    ]
    shown = found[:_SHOWN_ROWS]
    if not shown:
        console.print("no rows")
        return
    widths = [
        max(cell_len(name), min(max(cell_len(cells[k]) for cells in shown), _MIN_WIDTH))
        for k, name in enumerate(names)
    ]
    if sum(widths) + 3 * len(widths) + 1 > console.width:  # with the space between columns
        _print_records(names, shown, console)
    else:
        grid = Table(box=box.SIMPLE_HEAD)
        for name, width in zip(names, widths, strict=True):
            grid.add_column(Text(name), overflow="fold", min_width=width)
        for cells in shown:
            grid.add_row(*map(Text, cells))
        console.print(grid)
    if len(found) > _SHOWN_ROWS:
        console.print(f"the first {_SHOWN_ROWS} rows; --format csv and --to FILE give all")


def _print_records(names: list[str], rows: list[list[str]], console: Console) -> None:
    for number, cells in enumerate(rows, 1):
        console.print(Text(f"row {number}", style="bold"))
        for name, cell in zip(names, cells, strict=True):
            if cell:
                line = Text.assemble((f"  {name}", "dim"), f"  {cell}")
                console.print(line, overflow="fold")
    console.print("too wide for a table; empty columns are left out", style="dim")


FORMATS: dict[str, Callable[[QueryRows, Console], None]] = {
    "table": print_table,
    "csv": print_csv,
    "json": print_json,
}


def _cleaner(console: Console) -> Callable[[str], str]:
    """Texts for programs stay as they are; a terminal gets no escape sequences."""
    return printable if console.is_terminal else lambda text: text


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARS else f"{text[: _SHOWN_CHARS - 3]}..."


def _cell(value: Any) -> str:
    text = _text(value)
    return f"'{text}" if isinstance(value, str) and _FORMULA.match(text) else text


def _text(value: Any) -> str:
    """Return a value as text: empty for null, JSON for lists and structs."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    found = json_values(value)
    return json_text(found) if isinstance(found, dict | list) else str(found)
