"""The formats of a manifest by the extension of its file."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from pipeline.manifest.formats.parquet import parquet_rows
from pipeline.manifest.formats.rows import Row, Rows, check_names
from pipeline.manifest.formats.text import csv_rows, jsonl_rows

Reader = Callable[[Path, str], Rows]

READERS: dict[str, Reader] = {
    ".parquet": parquet_rows,
    ".jsonl": jsonl_rows,
    ".ndjson": jsonl_rows,
    ".csv": csv_rows,
    ".jsonl.gz": partial(jsonl_rows, is_packed=True),
    ".ndjson.gz": partial(jsonl_rows, is_packed=True),
    ".csv.gz": partial(csv_rows, is_packed=True),
}


def reader_for(uri: str) -> Reader | None:
    """Return the reader for a uri by its extension; None for other extensions."""
    path = uri.lower()
    return next((read for ending, read in READERS.items() if path.endswith(ending)), None)


def joined_rows(files: Sequence[str], parts: Sequence[Rows], name: str) -> Rows:
    """Join the rows of several files; a row's place begins with the name of its file.

    Raises:
        ManifestError: there are too many columns.
    """
    columns = list(dict.fromkeys(column for part in parts for column in part.columns))
    check_names(columns, name)

    def read() -> Iterator[tuple[str, Row]]:
        for file, part in zip(files, parts, strict=True):
            begin = file.rpartition("/")[2]
            yield from ((f"{begin} {place}", row) for place, row in part.read())

    return Rows(columns=columns, read=read)
