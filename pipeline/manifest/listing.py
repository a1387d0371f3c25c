"""List the images and videos below a folder or a prefix, known by their extension."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any

from pipeline.storage.errors import redact_uri
from pipeline.storage.storage import Storage
from schemas.errors import ManifestError
from schemas.tables.manifest import MediaItem, default_media_id, guess_media_type


@dataclass(frozen=True, kw_only=True)
class FoundMedia:
    """A media object in a listing."""

    uri: str
    media_type: str
    size_bytes: int
    content_version: str | None
    modified: datetime | None = None


def list_media(prefix: str, glob: str, storage: Storage) -> list[FoundMedia]:
    """List images and videos below a folder or an s3:// prefix, sorted by uri.

    glob: relative to ``prefix``; ``**`` crosses folders. Hidden files and folders are left out.

    Raises:
        ManifestError: there are no media; says what is there instead.
        StorageError: the storage refused or failed.
    """
    pages = media_pages(prefix, glob, storage)
    return sorted((media for page in pages for media in page), key=lambda media: media.uri)


def media_pages(prefix: str, glob: str, storage: Storage) -> Iterator[list[FoundMedia]]:
    """List as ``list_media`` does, page by page: memory does not grow with the archive.

    Raises:
        ManifestError: there are no media; raised after the last page.
        StorageError: the storage refused or failed.
    """
    is_empty, others = True, Counter[str]()
    for files in visible_pages(prefix, glob, storage, hidden=(".",)):
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
        raise ManifestError(_no_media_message(redact_uri(prefix), glob, others))


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


def visible_pages(
    uri: str, glob: str, storage: Storage, *, hidden: tuple[str, ...]
) -> Iterator[list[dict[str, Any]]]:
    """List files page by page, without those whose name or folder below ``uri`` is hidden.

    hidden: a name is hidden if it starts with one of these.
    """
    root = storage.filesystem(uri)[1].rstrip("/") + "/"

    def is_hidden(file: dict[str, Any]) -> bool:
        path = re.sub(r"^\w+://", "", file["uri"]).removeprefix(root)
        return any(part.startswith(hidden) for part in path.split("/"))

    for page in storage.list_pages(uri, glob):
        yield [file for file in page if not is_hidden(file)]


def _no_media_message(prefix: str, glob: str, others: Counter[str]) -> str:
    if not others and "://" not in prefix and not os.path.isdir(prefix):
        if not os.path.isfile(prefix):
            return f"{prefix} does not exist"
        return f"{prefix} is a file; to read it as a manifest, use input.manifest"
    if not others:
        hint = "; {a,b} is not supported, give one pattern" if "{" in glob else ""
        if "/" not in glob and "**" not in glob:
            hint += f"; {glob} matches directly below it only, **/{glob} in all folders"
        return f"no files below {prefix} match {glob}; check the path and the glob{hint}"
    seen = ", ".join(f"{count} x {extension}" for extension, count in others.most_common(5))
    return (
        f"no images or videos among the {others.total()} files below {prefix} that match {glob} "
        f"(seen: {seen}). Media are known by extensions such as .jpg, .png, .mp4, .mov, .mkv; "
        "list files with other extensions in a manifest, with media_type"
    )
