"""``reelscribe sql``: query the output in SQL with DuckDB, on any storage."""

import difflib
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from jobs.results.query_rows import FORMATS, QueryRows
from pipeline.output.file_names import table_files
from pipeline.output.views import read_views
from pipeline.storage.storage import Storage, join
from schemas.errors import UserError
from schemas.tables.annotation import ANNOTATIONS

_VIEWS = ("annotations", "items", "latest", "listing")
_NAMES = re.compile(r'"([^"]+)"')
_MISSING = re.compile(r'(?:column|named|key|table|alias) "([^"]+)"|with name (\S+) does not exist')
_IS_MISSING = re.compile(r"not found|does not exist|does not have|Could not find")
_HINTS = ("Candidate", "Did you mean", "\t")


def run(
    output: str, query: str, storage: Storage, console: Console, *, form: str, to: str | None
) -> None:
    """Print the rows of a query, or write them to a file.

    query: of the views ``latest`` (one row for each unit), ``annotations`` (all rows of all runs)
        and ``items`` (one row for each whole video).
    form: how to print them, one of ``FORMATS``.
    to: a local .csv, .json or .parquet file.

    Raises:
        UserError: there is no table, DuckDB refuses the query, or the file cannot be written.
    """
    suffix = Path(to).suffix.lower().lstrip(".") if to is not None else ""
    if to is not None and suffix not in ("csv", "json", "parquet"):
        raise UserError(f"--to takes a .csv, .json or .parquet file, got {to}")
    if not table_files(join(output, ANNOTATIONS), storage):
        raise UserError(f"{output} has no annotations: give the `output` of a job")

    def answer(db: Any) -> None:
        with _explained(db, query):
            found = db.sql(query)
            if found is None:
                return
            if to is None:
                _print(found, form, console)
            elif suffix == "parquet":
                found.write_parquet(to)
            else:
                with open(to, "w", encoding="utf-8", newline="") as file:
                    FORMATS[suffix](QueryRows(found), Console(file=file))

    try:
        read_views(output, storage, answer)
    except OSError as error:
        if to is None:
            raise
        raise UserError(f"--to {to} cannot be written: {error.strerror}") from None


def _print(found: Any, form: str, console: Console) -> None:
    """Print rows; none before all are read, since the query is repeated if a file vanishes."""
    if form == "table":
        FORMATS[form](QueryRows(found), console)
        return
    with tempfile.TemporaryFile("w+", encoding="utf-8", newline="") as file:
        held = Console(file=file, force_terminal=console.is_terminal)
        FORMATS[form](QueryRows(found), held)
        file.seek(0)
        shutil.copyfileobj(file, console.file)


@contextmanager
def _explained(db: Any, query: str) -> Iterator[None]:
    """Turn an error of DuckDB into a UserError with a hint that fits these views."""
    import duckdb

    try:
        yield
    except duckdb.Error as error:
        raise UserError(f"the query failed: {_explain(str(error), query, db)}") from None
    except OSError as error:
        if error.errno is not None:  # of the file that is written
            raise
        raise UserError(f"the query failed: {error}") from None  # of DuckDB, through Arrow


def _explain(text: str, query: str, db: Any) -> str:
    """Return DuckDB's message with a hint in place of DuckDB's own.

    DuckDB suggests names of any likeness, and lists every type that an operator takes.
    """
    lines = [line for line in text.splitlines() if line and not line.startswith(_HINTS)]
    missing = _MISSING.search(text) if _IS_MISSING.search(text) else None
    if missing is None:
        return "\n".join(lines)
    name = missing[1] or missing[2]
    hinted = [line for line in text.splitlines() if line.startswith(_HINTS[:2])]
    known = {*_VIEWS}
    if "Table with name" not in text:
        known |= {*_columns(db), *_NAMES.findall(" ".join(hinted))}
    if near := difflib.get_close_matches(name.lower(), sorted(known), n=3, cutoff=0.7):
        hint = [f"did you mean {' or '.join(near)}?"]
    elif f'"{name}"' in query:
        hint = [f"names are in double quotes, text is in single quotes: '{name}'"]
    elif "Function" in lines[0]:
        hint = []
    else:
        hint = ["the views are annotations, items and latest; `DESCRIBE latest` lists columns"]
    return "\n".join([*lines, *hint])


def _columns(db: Any) -> set[str]:
    """Return the names of the columns of all views."""
    return {column for view in _VIEWS for column, *_ in db.execute(f"DESCRIBE {view}").fetchall()}
