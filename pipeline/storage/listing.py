"""List stored files, with the uri, size, version and modification time of each."""

import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from fsspec.utils import glob_translate

from pipeline.storage.protocols import is_local, uri_of_path
from schemas.errors import StorageError
from schemas.shown import redact_uri

_MODIFIED_KEYS = ("LastModified", "last_modified", "updated", "mtime", "Last-Modified")


class PassedOver(StrEnum):
    """Why a listing passes over something on a local disk; the value is its text in messages."""

    DANGLING_LINK = "links to files that do not exist"
    FOLDER_LINK = "links to folders, which are not followed"
    SPECIAL_FILE = "pipes, sockets and devices"
    DENIED_FOLDER = "folders that may not be read"


PassOver = Callable[[str, PassedOver], None]
"""Called with the path below the listed folder of what is passed over, and the reason."""


def list_pages(
    uri: str, fs: Any, path: str, pattern: str, pass_over: PassOver | None = None
) -> Iterator[list[dict[str, Any]]]:
    """Yield pages of the files below ``path`` on ``fs`` that match ``pattern``.

    pass_over: reports what is no file. Without it, a folder that may not be read is an error.

    Raises:
        StorageError: the storage has no such bucket or prefix.
        Exception: whatever the storage's library raises.
    """
    matches = re.compile(glob_translate(pattern)).match
    if is_local(fs):
        root = listed_root(uri, fs, path)
        is_deep = "/" in pattern or "**" in pattern

        def report(name: str, reason: PassedOver) -> None:
            is_file = reason in (PassedOver.DANGLING_LINK, PassedOver.SPECIAL_FILE)
            if pass_over and (matches(name) if is_file else is_deep):
                pass_over(name, reason)

        for names in _walk(root, report, is_strict=pass_over is None):
            yield list(_local_files(root, sorted(name for name in names if matches(name))))
        return
    root = listed_root(uri, fs, path)

    def found_files(page: Iterable[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
        named = ((name.removeprefix(root), name, info) for name, info in page)
        return [
            _remote_file(fs, name, info) | {"name": below}
            for below, name, info in named
            if matches(below.lstrip("/"))  # a pattern has no empty parts
        ]

    fs.invalidate_cache()
    # The whole tree in pages of 1,000 keys: with a depth, s3fs lists folder by folder and skips
    # folders without permission.
    try:
        if hasattr(fs, "call_s3"):
            for page in _s3_pages(fs, root):
                yield found_files(page)
            return
        found = fs.find(path, detail=True)
    except FileNotFoundError as error:
        if "bucket" in str(error):
            raise
        raise StorageError(f"{redact_uri(uri)}: {error}; is the endpoint the right one?") from None
    yield found_files(
        (name, info)
        for name, info in sorted(found.items())
        if info.get("type") == "file" and name.startswith(root)
    )


def listed_root(uri: str, fs: Any, path: str) -> str:
    """Return the beginning of the names that a listing of ``uri``, ``path`` on ``fs``, has."""
    if is_local(fs):
        return os.path.normpath(path).rstrip("/") + "/"
    # A key is an opaque text: "a//b", "/a" and "a/../b" are three keys, and nothing is cut off.
    return path + uri[len(uri.rstrip("/")) :].removeprefix("/") + "/"


def _walk(root: str, report: PassOver, *, is_strict: bool) -> Iterator[list[str]]:
    """Yield the regular files of each folder, as paths below ``root``.

    is_strict: an unreadable folder is an error, as the root always is.
    """

    def refuse(error: OSError) -> None:
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            return
        if is_strict or error.filename == root:
            raise error
        report(str(error.filename).removeprefix(root), PassedOver.DENIED_FOLDER)

    for folder, subfolders, names in os.walk(root, onerror=refuse):
        below = os.path.join(folder, "").removeprefix(root)
        for name in subfolders:
            if os.path.islink(os.path.join(folder, name)):
                report(below + name, PassedOver.FOLDER_LINK)
        files = []
        for name in names:
            path = os.path.join(folder, name)
            try:
                if stat.S_ISREG(os.stat(path).st_mode):
                    files.append(below + name)
                else:
                    report(below + name, PassedOver.SPECIAL_FILE)
            except OSError as error:
                if os.path.islink(path):
                    report(below + name, PassedOver.DANGLING_LINK)
                elif not isinstance(error, FileNotFoundError | NotADirectoryError):
                    error.filename = folder  # which may be listed, but not entered
                    refuse(error)
                    break
        yield files


def is_missing(path: str) -> bool:
    """Whether there is no such file; False if it cannot be known, as in a denied folder."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def _s3_pages(fs: Any, root: str) -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """Yield pages of the objects below ``root``, as path and info; s3fs would hold them all."""
    bucket, _, prefix = root.partition("/")
    token: dict[str, str] = {}
    while True:
        page = fs.call_s3("list_objects_v2", fs.req_kw, Bucket=bucket, Prefix=prefix, **token)
        objects = page.get("Contents", [])
        yield [(f"{bucket}/{o['Key']}", o) for o in objects if not o["Key"].endswith("/")]
        if not page.get("IsTruncated"):
            return
        token = {"ContinuationToken": page["NextContinuationToken"]}


def _local_files(root: str, names: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Yield the facts of each file; files deleted since they were listed are left out."""
    for name in names:
        with suppress(FileNotFoundError):
            yield _local_file(root, name)


def _local_file(root: str, name: str) -> dict[str, Any]:
    """Return the facts of a local file.

    These are its name below ``root``, uri, size in bytes, version and time of modification.
    """
    facts = os.stat(root + name)
    return {
        "name": name,
        "uri": uri_of_path(root + name),
        "size": facts.st_size,
        "version": local_version(facts),
        "modified": datetime.fromtimestamp(facts.st_mtime, UTC),
    }


def _remote_file(fs: Any, name: str, info: dict[str, Any]) -> dict[str, Any]:
    """Return the same facts of a remote object, from fsspec's info, without the name."""
    size = info.get("size", info.get("Size"))
    return {
        "uri": fs.unstrip_protocol(name),
        "size": size,
        "version": version(info, size),
        "modified": _modified(info),
    }


def _modified(info: dict[str, Any]) -> datetime | None:
    """Return when an object was last written; each storage library has its own key for it."""
    found = next((info[key] for key in _MODIFIED_KEYS if info.get(key)), None)
    if isinstance(found, str):
        with suppress(ValueError):
            found = datetime.fromisoformat(found)
    if not isinstance(found, datetime):
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def local_version(stat: os.stat_result) -> str:
    """Return a version that changes when the file is written again."""
    return f"{stat.st_size}-{stat.st_mtime_ns}"


def version(info: dict[str, Any], size: int | None) -> str | None:
    """Return the etag, else size and modification time; None if the storage has neither."""
    etag = info.get("ETag") or info.get("etag")
    if etag:
        return str(etag).strip('"')
    modified = info.get("LastModified") or info.get("mtime") or info.get("Last-Modified")
    return f"{size}-{modified}" if modified else (f"{size}" if size is not None else None)
