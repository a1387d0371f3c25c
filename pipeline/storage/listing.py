"""List stored files, with the uri, size, version and modification time of each."""

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from fsspec.utils import glob_translate

from pipeline.storage.errors import redact_uri
from pipeline.storage.protocols import is_local
from schemas.errors import StorageError

_MODIFIED_KEYS = ("LastModified", "last_modified", "updated", "mtime", "Last-Modified")


def list_pages(uri: str, fs: Any, path: str, pattern: str) -> Iterator[list[dict[str, Any]]]:
    """Yield pages of the files below ``path`` on ``fs`` that match ``pattern``.

    Raises:
        StorageError: the storage has no such bucket or prefix.
        Exception: whatever the storage's library raises.
    """
    root = (os.path.normpath(path) if is_local(fs) else path).rstrip("/") + "/"
    matches = re.compile(glob_translate(pattern)).match
    if is_local(fs):
        for names in _walk(root):
            found = sorted(name for name in names if matches(name.removeprefix(root)))
            yield list(_local_files(found))
        return
    fs.invalidate_cache()
    # The whole tree in pages of 1,000 keys: with a depth, s3fs lists folder by folder and skips
    # folders without permission.
    try:
        if hasattr(fs, "call_s3"):
            for page in _s3_pages(fs, root):
                yield [
                    _remote_file(fs, name, info)
                    for name, info in page
                    if matches(name.removeprefix(root))
                ]
            return
        found = fs.find(path, detail=True)
    except FileNotFoundError as error:
        if "bucket" in str(error):
            raise
        raise StorageError(f"{redact_uri(uri)}: {error}; is the endpoint the right one?") from None
    yield [
        _remote_file(fs, name, info)
        for name, info in sorted(found.items())
        if info.get("type") == "file" and name.startswith(root) and matches(name.removeprefix(root))
    ]


def _walk(root: str) -> Iterator[list[str]]:
    """Yield the regular files of each folder; an unreadable folder is an error."""

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            raise error

    for folder, _, names in os.walk(root, onerror=refuse):
        paths = (os.path.join(folder, name) for name in names)
        yield [path for path in paths if os.path.isfile(path)]


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


def _local_files(paths: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Yield the facts of each file; files deleted since they were listed are left out."""
    for path in paths:
        with suppress(FileNotFoundError):
            yield local_file(path)


def local_file(path: str) -> dict[str, Any]:
    """Return the facts of a local file: uri, size in bytes, version, time of modification."""
    stat = os.stat(path)
    return {
        # A name that is not UTF-8 does not fit into a table; reading this file will be an error.
        "uri": os.fsencode(path).decode("utf-8", "replace"),
        "size": stat.st_size,
        "version": local_version(stat),
        "modified": datetime.fromtimestamp(stat.st_mtime, UTC),
    }


def _remote_file(fs: Any, name: str, info: dict[str, Any]) -> dict[str, Any]:
    """Return the same facts of a remote object, from fsspec's info."""
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
