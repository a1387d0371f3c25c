"""List the images and videos below a folder or a prefix, known by their extension."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import PurePosixPath
from urllib.parse import unquote_to_bytes

from fsspec.utils import glob_translate

from pipeline.storage.listing import PassedOver, is_missing, listed_root
from pipeline.storage.protocols import is_local, is_utf8, uri_of_path
from pipeline.storage.storage import Storage
from schemas.errors import ManifestError
from schemas.shown import redact_uri
from schemas.tables.manifest import MediaItem, default_media_id, guess_media_type

HIDDEN = "hidden files (a dot in front of their name or folder)"
NO_MEDIA = "files of another kind"
_FOLDERS = (PassedOver.FOLDER_LINK, PassedOver.DENIED_FOLDER)
_MAX_SHOWN_EXTENSIONS = 12


@dataclass(frozen=True, kw_only=True)
class FoundMedia:
    """A media object in a listing."""

    uri: str
    media_type: str
    size_bytes: int
    content_version: str | None
    modified: datetime | None = None


class LeftOut:
    """Counts what a listing leaves out, by reason and extension, so that a command can print it."""

    def __init__(self) -> None:
        self._extensions: dict[str, Counter[str]] = {}
        self._example: dict[str, str] = {}

    def add(self, name: str, reason: str) -> None:
        """Count a file or folder; ``name`` is its path below the listed folder."""
        name = os.fsencode(name).decode("utf-8", "backslashreplace")  # for prints and run.json
        found = self._extensions.setdefault(reason, Counter())
        found[_extension(name)] += 1
        self._example.setdefault(reason, name)

    def lines(self) -> list[str]:
        """Describe each reason in a line: number, extensions, and a name for an example."""
        return [self._line(reason) for reason in sorted(self._extensions)]

    def _line(self, reason: str) -> str:
        found = self._extensions[reason]
        shown = found.most_common(_MAX_SHOWN_EXTENSIONS)
        texts = [f"{count:,} x {extension}" for extension, count in shown]
        if rest := found.total() - sum(count for _, count in shown):
            texts.append(f"{rest:,} x other extensions")
        by_extension = "" if reason in _FOLDERS else f" ({', '.join(texts)})"
        return f"{reason}: {found.total():,}{by_extension}, such as {self._example[reason]}"


def list_media(
    prefix: str, glob: str, storage: Storage, left_out: LeftOut | None = None
) -> list[FoundMedia]:
    """List images and videos below a folder or an s3:// prefix, sorted by uri.

    glob: relative to ``prefix``; ``**`` crosses folders. Hidden files and folders are left out.
    left_out: counts what is left out.

    Raises:
        ManifestError: there are no media; says what is there instead.
        StorageError: the storage refused or failed.
    """
    pages = media_pages(prefix, glob, storage, left_out)
    return sorted((media for page in pages for media in page), key=lambda media: media.uri)


def media_pages(
    prefix: str, glob: str, storage: Storage, left_out: LeftOut | None = None
) -> Iterator[list[FoundMedia]]:
    """List as ``list_media`` does, page by page: memory does not grow with the archive.

    Raises:
        ManifestError: there are no media; raised after the last page.
        StorageError: the storage refused or failed.
    """
    left_out = LeftOut() if left_out is None else left_out
    is_empty = True
    for files in storage.list_pages(prefix, glob, left_out.add):
        found = []
        for file in files:
            media_type = guess_media_type(file["uri"])
            if is_hidden(file["name"], (".",)):
                left_out.add(file["name"], HIDDEN)
            elif media_type is None:
                left_out.add(file["name"], NO_MEDIA)
            else:
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
        raise ManifestError(_no_media_message(redact_uri(prefix), glob, left_out.lines()))


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


def is_hidden(name: str, marks: tuple[str, ...]) -> bool:
    """Whether a name, or a folder in it, starts with one of ``marks``.

    name: a path below the listed folder. Parts that are only dots are no names: S3 keys have them.
    """
    return any(part.startswith(marks) and part.strip(".") for part in name.split("/"))


def scope(
    prefix: str, glob: str, storage: Storage
) -> tuple[tuple[str, ...], Callable[[str, str], bool]]:
    """What ``media_pages`` would list: the beginnings of the uris, and a test of a missing name.

    The test gets the media_id and uri of a name that was not listed. A name of a manifest that has
    its own media_id is outside; so is a local file that is there, or that cannot be looked at:
    behind a link to a folder, on a disk that is not mounted, in a folder that may not be entered.
    """
    fs, root = storage.filesystem(prefix)
    root = listed_root(prefix, fs, root)
    matches = re.compile(glob_translate(glob)).match
    begin = root if is_local(fs) else fs.unstrip_protocol(root)
    begins: tuple[str, ...] = (begin,) if is_utf8(begin) else ()
    if is_local(fs):
        begins += (f"{PurePosixPath(root).as_uri().rstrip('/')}/",)

    def is_in_scope(media_id: str, uri: str) -> bool:
        name, path = uri.removeprefix(begin), uri
        if is_local(fs) and uri.startswith("file://"):
            path = os.fsdecode(unquote_to_bytes(uri.removeprefix("file://")))
            name = path.removeprefix(root)
        is_media = guess_media_type(uri) is not None and not is_hidden(name, (".",))
        is_named = media_id == default_media_id([uri])
        if not (is_media and is_named and matches(name.lstrip("/"))):
            return False
        return not is_local(fs) or (uri_of_path(path) == uri and is_missing(path))

    return begins, is_in_scope


def _extension(name: str) -> str:
    return PurePosixPath(name).suffix.lower() or "no extension"


def _no_media_message(prefix: str, glob: str, left_out: list[str]) -> str:
    if left_out:
        return (
            f"no images or videos below {prefix} match {glob}. Left out: {'; '.join(left_out)}. "
            "Media are known by extensions such as .jpg, .png, .mp4, .mov, .mkv; list files with "
            "other extensions in a manifest, with media_type"
        )
    if "://" not in prefix and not os.path.isdir(prefix):
        if not os.path.isfile(prefix):
            return f"{prefix} does not exist"
        return f"{prefix} is a file; to read it as a manifest or as media, use input.manifest"
    hint = "; {a,b} is not supported, give one pattern" if "{" in glob else ""
    if "/" not in glob and "**" not in glob:
        hint += f"; {glob} matches directly below it only, **/{glob} in all folders"
    return f"no files below {prefix} match {glob}; check the path and the glob{hint}"
