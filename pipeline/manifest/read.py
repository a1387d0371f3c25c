"""Read the user's manifest, and check every row before any work starts.

A manifest is Parquet, JSON lines or CSV, or a folder of Parquet files. The same rows give the same
items in every format. Its columns are those of ``MANIFEST``; any other column passes through to the
output as ``attributes``.
"""

import dataclasses
import difflib
import hashlib
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from pipeline.manifest.distinct import Distinct, Source, Span, source_of, span_of
from pipeline.manifest.formats.parquet import parquet_rows
from pipeline.manifest.formats.readers import joined_rows, reader_for
from pipeline.manifest.formats.rows import Problems, Rows
from pipeline.manifest.items import conversation_item, media_item
from pipeline.manifest.listing import is_hidden
from pipeline.manifest.uris import base_uri, parent_folder
from pipeline.manifest.values import RowError
from pipeline.storage.protocols import is_https
from pipeline.storage.storage import Storage
from schemas.errors import ManifestError
from schemas.shown import redact_uri
from schemas.tables.manifest import MANIFEST, MediaItem, guess_media_type

logger = logging.getLogger(__name__)

FORMATS = ".parquet, .jsonl, .csv (.jsonl.gz, .csv.gz), or a folder of .parquet files"

_ALIASES = {
    "start": "start_seconds",
    "start_time": "start_seconds",
    "begin_seconds": "start_seconds",
    "end": "end_seconds",
    "end_time": "end_seconds",
    "fps": "sample_fps",
}
"""Common wrong names of columns, which difflib does not find."""

_MAX_SHARED = 64
"""Attributes that are kept, to be shared by the rows that have the same."""

_LIKE_URI = re.compile(r"ur[il]|path|file|src|source|location|key|media|image|video", re.IGNORECASE)


def read_manifest(uri: str, storage: Storage) -> list[MediaItem]:
    """Read and check a manifest as ``manifest_items`` does, as a whole.

    Raises:
        ManifestError: the manifest is missing, broken or empty, or has wrong rows; says which.
        StorageError: the storage refused or failed.
    """
    return list(manifest_items(uri, storage))


def manifest_items(uri: str, storage: Storage) -> Iterator[MediaItem]:
    """Read and check a manifest. One image or video in its place is a manifest of one row.

    Relative uris start at the manifest's folder. A column whose name is nearly that of a
    known one is logged as a warning.

    Memory does not grow with the manifest, but for 24 bytes a row. Wrong rows are left out, and an
    error follows after the last row: the items are good only then.

    Raises:
        ManifestError: the manifest is missing, broken or empty, or has wrong rows; says which.
        StorageError: the storage refused or failed.
    """
    name = redact_uri(uri)
    with _open_rows(uri, storage) as (rows, base):
        further = _check_columns(rows.columns, name)
        problems, distinct, num_good = Problems(name), Distinct(), 0
        texts: dict[str, str] = {}
        for place, row in rows.read():
            try:
                item = _item(row, further, base)
            except RowError as error:
                problems.add(place, str(error))
                continue
            distinct.add(item)
            num_good += 1
            yield _sharing(item, texts)
        if repeated := distinct.repeated():
            problems, num_good = _compare(rows, repeated, (name, further, base))
        problems.check(num_good)
        if not num_good:
            raise ManifestError(f"{name} has no rows; write one for each media item")


def _item(row: dict[str, Any], further: list[str], base: str) -> MediaItem:
    make_item = conversation_item if row.get("messages") else media_item
    return make_item(row, further, base)


def _sharing(item: MediaItem, texts: dict[str, str]) -> MediaItem:
    """The item with the attributes of an earlier one, if they are the same."""
    if item.attributes is None:
        return item
    shared = texts.setdefault(item.attributes, item.attributes)
    if len(texts) > _MAX_SHARED:
        texts.clear()
    return item if shared is item.attributes else dataclasses.replace(item, attributes=shared)


def _compare(
    rows: Rows, repeated: set[int], context: tuple[str, list[str], str]
) -> tuple[Problems, int]:
    """Read again, and compare the rows whose ids are among the repeated ones.

    Returns all problems, and the number of the other rows.
    """
    name, further, base = context
    problems, num_good = Problems(name), 0
    sources: dict[str, Source] = {}
    spans: dict[Span, str] = {}
    for place, row in rows.read():
        try:
            item = _item(row, further, base)
            if Distinct.has(repeated, item):
                source, span = source_of(item), span_of(item)
                if sources.setdefault(item.media_id, source) != source:
                    other = redact_uri(sources[item.media_id][0]) or "other messages"
                    raise RowError(
                        f"media_id {item.media_id!r} is also that of {other}; "
                        "give each uri and each conversation its own media_id"
                    )
                first = spans.setdefault(span, place)
                if first != place:
                    what = "messages" if item.messages else f"time span of {redact_uri(item.uri)}"
                    raise RowError(f"the same {what} as {first}; remove one")
        except RowError as error:
            problems.add(place, str(error))
        else:
            num_good += 1
    return problems, num_good


def manifest_digest(items: Iterable[MediaItem]) -> str:
    """Hash the items of a manifest, independent of file format, row order and column order."""
    digest = ManifestDigest()
    for item in items:
        digest.add(item)
    return digest.hexdigest()


class ManifestDigest:
    """The hash of items that are added one by one, in any order: the sum of their hashes."""

    def __init__(self) -> None:
        self._sum = 0

    def add(self, item: MediaItem) -> None:
        """Add an item."""
        row = json.dumps(
            [
                item.media_id,
                item.uri,
                item.frames,
                item.sample_fps,
                item.media_type,
                item.start_seconds,
                item.end_seconds,
                item.tasks,
                json.loads(item.attributes) if item.attributes else None,
                item.content_version,
                dataclasses.astuple(item.intrinsics) if item.intrinsics else None,
                item.messages,
            ],
            sort_keys=True,
        )
        self._sum += int.from_bytes(hashlib.sha256(row.encode()).digest())

    def hexdigest(self) -> str:
        """Return the hash of the items so far, 64 hexadecimal digits."""
        return f"{self._sum % (1 << 256):064x}"


@contextmanager
def _open_rows(uri: str, storage: Storage) -> Iterator[tuple[Rows, str]]:
    """Give the rows, and the folder where relative uris start."""
    if guess_media_type(uri) is not None and not os.path.isdir(uri):
        base = base_uri(uri, storage)
        yield Rows(columns=["uri"], read=lambda: iter([("the file", {"uri": base})])), base
        return
    name = redact_uri(uri)
    is_web = is_https(uri)
    read = reader_for(re.split(r"[?#]", uri)[0] if is_web else uri)
    # Spark writes a folder of files that is itself named manifest.parquet.
    if read in (None, parquet_rows) and not is_web:
        listed = storage.list_files(uri, "**/*.parquet")
        files = [file["uri"] for file in listed if not is_hidden(file["name"], (".", "_"))]
        if files:
            with ExitStack() as stack:
                copies = [stack.enter_context(storage.local_copy(file)) for file in files]
                parts = [
                    parquet_rows(copy, redact_uri(file))
                    for copy, file in zip(copies, files, strict=True)
                ]
                yield joined_rows(files, parts, name), base_uri(uri, storage)
            return
    if read is None:
        raise ManifestError(
            f"{name} is not a manifest: no Parquet files are below it, and it has none of the "
            f"extensions {FORMATS}. To annotate a folder of media, use input.scan"
        )
    with ExitStack() as stack:
        try:
            copy = stack.enter_context(storage.local_copy(uri))
        except FileNotFoundError:
            raise ManifestError(f"there is no manifest {name}") from None
        yield read(copy, name), parent_folder(base_uri(uri, storage))


def _check_columns(columns: list[str], name: str) -> list[str]:
    """Return the further columns, which become attributes.

    Raises:
        ManifestError: there is no column ``uri``, ``frames`` or ``messages``.
    """
    if not {"uri", "frames", "messages"} & set(columns):
        found = f"its columns are {', '.join(map(repr, columns))}" if columns else "it is empty"
        like = [repr(column) for column in columns if _LIKE_URI.search(column)]
        hint = f"; rename {' or '.join(like[:3])} to uri" if like else ""
        if len(columns) == 1 and re.search(r"[;\t|]", columns[0]):
            hint = "; separate the cells by commas"
        raise ManifestError(f"{name} has no `uri` column: {found}{hint}")
    further = [column for column in columns if column not in MANIFEST.names]
    for column in further:
        plain = re.sub(r"[\W_]+", "_", column.strip().lower())
        near = difflib.get_close_matches(plain, MANIFEST.names, n=1, cutoff=0.8)
        meant = _ALIASES.get(plain) or (near[0] if near else None)
        if meant and meant not in columns:
            logger.warning(
                "%s: column %r is not a manifest column and becomes an attribute; rename it if you "
                "mean %r",
                name,
                column,
                meant,
            )
    return further
