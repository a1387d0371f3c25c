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
from collections.abc import Iterable

from pipeline.manifest.formats import Problems, Rows, joined_rows, parquet_rows, reader_for
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

_LIKE_URI = re.compile(r"ur[il]|path|file|src|source|location|key|media|image|video", re.IGNORECASE)


def read_manifest(uri: str, storage: Storage) -> list[MediaItem]:
    """Read and check a manifest. One image or video in its place is a manifest of one row.

    Relative uris start at the manifest's folder. A column whose name is nearly that of a
    known one is logged as a warning.

    Raises:
        ManifestError: the manifest is missing, broken or empty, or has wrong rows; says which.
        StorageError: the storage refused or failed.
    """
    rows, base = _read_rows(uri, storage)
    name = redact_uri(uri)
    further = _check_columns(rows.columns, name)
    if not rows.values:
        raise ManifestError(f"{name} has no rows; write one for each media item")
    items: list[MediaItem] = []
    problems = Problems(name)
    sources: dict[str, tuple[str, tuple[str, ...], str | None]] = {}
    spans: dict[tuple[str, float | None, float | None], str] = {}
    for place, row in zip(rows.places, rows.values, strict=True):
        try:
            make_item = conversation_item if row.get("messages") else media_item
            item = make_item(row, further, base)
            source = (item.uri, item.frames, item.messages)
            if sources.setdefault(item.media_id, source) != source:
                other = redact_uri(sources[item.media_id][0]) or "other messages"
                raise RowError(
                    f"media_id {item.media_id!r} is also that of {other}; "
                    "give each uri and each conversation its own media_id"
                )
            span = (item.media_id, item.start_seconds, item.end_seconds)
            first = spans.setdefault(span, place)
            if first != place:
                what = "messages" if item.messages else f"time span of {redact_uri(item.uri)}"
                raise RowError(f"the same {what} as {first}; remove one")
        except RowError as error:
            problems.add(place, str(error))
        else:
            items.append(item)
    problems.check(len(items))
    return items


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


def _read_rows(uri: str, storage: Storage) -> tuple[Rows, str]:
    """Return the rows, and the folder where relative uris start."""
    if guess_media_type(uri) is not None and not os.path.isdir(uri):
        base = base_uri(uri, storage)
        return Rows(columns=["uri"], values=[{"uri": base}], places=["the file"]), base
    name = redact_uri(uri)
    is_web = is_https(uri)
    read = reader_for(re.split(r"[?#]", uri)[0] if is_web else uri)
    # Spark writes a folder of files that is itself named manifest.parquet.
    if read in (None, parquet_rows) and not is_web:
        listed = storage.list_files(uri, "**/*.parquet")
        files = [file["uri"] for file in listed if not is_hidden(file["name"], (".", "_"))]
        if files:
            parts = [parquet_rows(storage.read_bytes(file), redact_uri(file)) for file in files]
            return joined_rows(files, parts), base_uri(uri, storage)
    if read is None:
        raise ManifestError(
            f"{name} is not a manifest: no Parquet files are below it, and it has none of the "
            f"extensions {FORMATS}. To annotate a folder of media, use input.scan"
        )
    try:
        content = storage.read_bytes(uri)
    except FileNotFoundError:
        raise ManifestError(f"there is no manifest {name}") from None
    return read(content, name), parent_folder(base_uri(uri, storage))


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
