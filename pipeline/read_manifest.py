"""Read the user's table of media items, or list a folder, and check all before any work starts.

A manifest is Parquet, JSON lines or CSV, or a folder of Parquet files. The same rows give the same
items in every format. Its columns are those of ``schemas.manifest.MANIFEST``; any other column
passes through to the output as ``attributes``.
"""

import dataclasses
import difflib
import hashlib
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any

from pipeline.conversation_item import conversation_item
from pipeline.manifest_item import PROTOCOL, RowError, media_item
from pipeline.manifest_rows import Problems, Rows, parquet_rows, reader_for
from pipeline.storage import Storage, shown
from schemas.errors import ManifestError
from schemas.manifest import MANIFEST, MediaItem, default_media_id, guess_media_type

logger = logging.getLogger(__name__)

FORMATS = ".parquet, .jsonl, .csv (.jsonl.gz, .csv.gz), or a folder of .parquet files"

# Other people's names for our columns, too far from ours for difflib.
_OTHER_NAMES = {
    "start": "start_seconds",
    "start_time": "start_seconds",
    "begin_seconds": "start_seconds",
    "end": "end_seconds",
    "end_time": "end_seconds",
    "fps": "sample_fps",
}
_LIKE_URI = re.compile(r"ur[il]|path|file|src|source|location|key|media|image|video", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class FoundMedia:
    """A media object in a listing."""

    uri: str
    media_type: str
    size_bytes: int
    content_version: str | None
    modified: datetime | None = None


def read_manifest(uri: str, storage: Storage) -> list[MediaItem]:
    """Read and check a manifest.

    Relative uris start at the manifest's folder. Columns with nearly the name of a known one are
    warned about, since they pass through as attributes.

    Raises:
        ManifestError: the manifest is missing, broken, empty, or has wrong rows; says which.
        StorageError: the bucket or the credentials do not work.
    """
    rows, base = _read(uri, storage)
    name = shown(uri)
    further = _check_columns(rows.columns, name)
    if not rows.values:
        raise ManifestError(f"{name} has no rows; write one for each media item")
    items: list[MediaItem] = []
    problems = Problems(name)
    sources: dict[str, tuple[str, tuple[str, ...], str | None]] = {}
    stretches: dict[tuple[str, float | None, float | None], str] = {}
    for place, row in zip(rows.places, rows.values, strict=True):
        try:
            make = conversation_item if row.get("messages") else media_item
            item = make(row, further, base)
            source = (item.uri, item.frames, item.messages)
            if sources.setdefault(item.media_id, source) != source:
                other = shown(sources[item.media_id][0]) or "other messages"
                raise RowError(
                    f"media_id {item.media_id!r} is that of {other} too; "
                    "give each uri and each conversation a media_id of its own"
                )
            stretch = (item.media_id, item.start_seconds, item.end_seconds)
            first = stretches.setdefault(stretch, place)
            if first != place:
                what = "messages" if item.messages else f"stretch of {shown(item.uri)}"
                raise RowError(f"the same {what} as {first}; remove one")
        except RowError as error:
            problems.add(place, str(error))
        else:
            items.append(item)
    problems.check(len(items))
    return items


def list_media(prefix: str, glob: str, storage: Storage) -> list[FoundMedia]:
    """List images and videos, known by their extension, below a folder or an s3:// prefix, sorted.

    glob: relative to ``prefix``; ``**`` crosses folders. Hidden files and folders are left out.

    Raises:
        ManifestError: there are no media; says what was seen instead.
        StorageError: the bucket or the credentials do not work.
    """
    pages = media_pages(prefix, glob, storage)
    return sorted((media for page in pages for media in page), key=lambda media: media.uri)


def media_pages(prefix: str, glob: str, storage: Storage) -> Iterator[list[FoundMedia]]:
    """List as ``list_media`` does, piece by piece: memory does not grow with the archive.

    Raises:
        ManifestError, StorageError: as ``list_media``; that there are no media is said at the end.
    """
    is_empty, others = True, Counter[str]()
    for files in _visible_pages(prefix, glob, storage, hidden=(".",)):
        found = []
        for file in files:
            media_type = guess_media_type(file["uri"])
            if media_type is None:
                others[PurePosixPath(file["uri"]).suffix.lower() or "no extension"] += 1
                continue
            found.append(
                FoundMedia(
                    uri=file["uri"],
                    media_type=media_type,
                    size_bytes=file["size"] or 0,
                    content_version=file["version"],
                    modified=file["modified"],
                )
            )
        is_empty = is_empty and not found
        yield found
    if is_empty:
        raise ManifestError(_nothing(shown(prefix), glob, others))


def scan(prefix: str, glob: str, storage: Storage) -> list[MediaItem]:
    """List media as manifest items: ``list_media`` without the sizes.

    Raises:
        ManifestError, StorageError: as ``list_media``.
    """
    return as_items(list_media(prefix, glob, storage))


def as_items(found: Iterable[FoundMedia]) -> list[MediaItem]:
    """Make manifest items of a listing."""
    return [
        MediaItem(
            media_id=default_media_id([media.uri]),
            uri=media.uri,
            media_type=media.media_type,
            content_version=media.content_version,
        )
        for media in found
    ]


def manifest_digest(items: Iterable[MediaItem]) -> str:
    """Hash what a manifest says, whatever its file format, row order and column order."""
    digest = ManifestDigest()
    for item in items:
        digest.add(item)
    return digest.hexdigest()


class ManifestDigest:
    """The hash of a manifest, item by item, in any order: the sum of the items' hashes."""

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
        """The hash of the items so far, 64 hexadecimal digits."""
        return f"{self._sum % (1 << 256):064x}"


def _read(uri: str, storage: Storage) -> tuple[Rows, str]:
    """Return the rows, and the folder at which relative uris start."""
    name = shown(uri)
    is_web = uri.startswith(("http://", "https://"))
    read = reader_for(re.split(r"[?#]", uri)[0] if is_web else uri)
    # Spark names a folder of parts manifest.parquet, too.
    if read in (None, parquet_rows) and not is_web:
        parts = _list_visible(uri, "**/*.parquet", storage, hidden=(".", "_"))
        if parts:
            return _read_parts([part["uri"] for part in parts], storage), _absolute(uri, storage)
    if read is None:
        raise ManifestError(
            f"{name} is not a manifest: no Parquet files are below it, and it has none of the "
            f"extensions: {FORMATS}. To annotate a folder of media, use input.scan"
        )
    try:
        content = storage.read_bytes(uri)
    except FileNotFoundError:
        raise ManifestError(f"there is no manifest {name}") from None
    return read(content, name), _folder(_absolute(uri, storage))


def _list_visible(
    uri: str, glob: str, storage: Storage, *, hidden: tuple[str, ...]
) -> list[dict[str, Any]]:
    """List files, without those below ``uri`` whose name, or whose folder's, begins as hidden."""
    pages = _visible_pages(uri, glob, storage, hidden=hidden)
    return sorted((file for page in pages for file in page), key=lambda file: file["uri"])


def _visible_pages(
    uri: str, glob: str, storage: Storage, *, hidden: tuple[str, ...]
) -> Iterator[list[dict[str, Any]]]:
    root = storage.filesystem(uri)[1].rstrip("/") + "/"
    for page in storage.list_pages(uri, glob):
        yield [
            file
            for file in page
            if not any(
                part.startswith(hidden)
                for part in re.sub(r"^\w+://", "", file["uri"]).removeprefix(root).split("/")
            )
        ]


def _read_parts(uris: list[str], storage: Storage) -> Rows:
    parts = [(uri.rsplit("/", 1)[-1], parquet_rows(storage.read_bytes(uri), uri)) for uri in uris]
    return Rows(
        columns=list(dict.fromkeys(column for _, part in parts for column in part.columns)),
        values=[row for _, part in parts for row in part.values],
        places=[f"{name} {place}" for name, part in parts for place in part.places],
    )


def _check_columns(columns: list[str], name: str) -> list[str]:
    """Return the further columns, which become attributes.

    Raises:
        ManifestError: there is no ``uri`` column, nor what may stand in its place.
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
        meant = _OTHER_NAMES.get(plain) or (near[0] if near else None)
        if meant and meant not in columns:
            logger.warning(
                "%s: column %r is none of ours and passes through as an attribute; %r was meant?",
                name,
                column,
                meant,
            )
    return further


def _absolute(uri: str, storage: Storage) -> str:
    if PROTOCOL.match(uri) and not uri.startswith(("file:", "local:")):
        return uri.rstrip("/")
    return str(storage.filesystem(uri)[1])


def _folder(uri: str) -> str:
    if uri.startswith(("http://", "https://")):
        uri = re.split(r"[?#]", uri)[0]
    return uri.rpartition("/")[0]


def _nothing(prefix: str, glob: str, others: Counter[str]) -> str:
    if not others and "://" not in prefix and not os.path.isdir(prefix):
        if not os.path.isfile(prefix):
            return f"{prefix} does not exist"
        return f"{prefix} is a file, but no folder of media; a manifest is {FORMATS}"
    if not others:
        hint = "; {a,b} is not supported, give one pattern" if "{" in glob else ""
        if "/" not in glob and "**" not in glob:
            hint += f"; {glob} matches directly below it only, **/{glob} in all folders"
        return f"no files below {prefix} match {glob}; check the path and the glob{hint}"
    seen = ", ".join(f"{count} x {extension}" for extension, count in others.most_common(5))
    return (
        f"no images or videos among the {others.total()} files below {prefix} that match {glob} "
        f"(seen: {seen}). Media are known by extensions such as .jpg, .png, .mp4, .mov, .mkv; "
        "name others in a manifest, with media_type"
    )
