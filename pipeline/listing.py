"""The facts of stored files: what lies where, how large, in which version."""

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

_MODIFIED_KEYS = ("LastModified", "last_modified", "updated", "mtime", "Last-Modified")


def walk(root: str) -> Iterator[list[str]]:
    """Yield the regular files of each folder; a folder that cannot be read is an error."""

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            raise error

    for folder, _, names in os.walk(root, onerror=refuse):
        paths = (os.path.join(folder, name) for name in names)
        yield [path for path in paths if os.path.isfile(path)]


def s3_pages(fs: Any, root: str) -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """Yield the objects below ``root`` page by page, as path and facts; s3fs would hold all."""
    bucket, _, prefix = root.partition("/")
    token: dict[str, str] = {}
    while True:
        page = fs.call_s3("list_objects_v2", fs.req_kw, Bucket=bucket, Prefix=prefix, **token)
        objects = page.get("Contents", [])
        yield [(f"{bucket}/{o['Key']}", o) for o in objects if not o["Key"].endswith("/")]
        if not page.get("IsTruncated"):
            return
        token = {"ContinuationToken": page["NextContinuationToken"]}


def local_files(paths: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The facts of each file; one that is gone since it was listed is left out."""
    for path in paths:
        with suppress(FileNotFoundError):
            yield local_file(path)


def local_file(path: str) -> dict[str, Any]:
    """The facts of a file on a local disk: uri, size in bytes, version, when modified."""
    stat = os.stat(path)
    return {
        # A name that is not UTF-8 fits into no table: that file will be an error.
        "uri": os.fsencode(path).decode("utf-8", "replace"),
        "size": stat.st_size,
        "version": local_version(stat),
        "modified": datetime.fromtimestamp(stat.st_mtime, UTC),
    }


def found_file(fs: Any, name: str, info: dict[str, Any]) -> dict[str, Any]:
    """The facts of an object, from what fsspec tells of it; as ``local_file``."""
    size = info.get("size", info.get("Size"))
    return {
        "uri": fs.unstrip_protocol(name),
        "size": size,
        "version": version(info, size),
        "modified": _modified(info),
    }


def _modified(info: dict[str, Any]) -> datetime | None:
    """When an object was last written, as the storages' libraries name it."""
    found = next((info[key] for key in _MODIFIED_KEYS if info.get(key)), None)
    if isinstance(found, str):
        with suppress(ValueError):
            found = datetime.fromisoformat(found)
    if not isinstance(found, datetime):
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def local_version(stat: os.stat_result) -> str:
    """What changes when a local file is written again."""
    return f"{stat.st_size}-{stat.st_mtime_ns}"


def version(info: dict[str, Any], size: int | None) -> str | None:
    """The etag, else size and time of modification; None where the storage tells neither."""
    etag = info.get("ETag") or info.get("etag")
    if etag:
        return str(etag).strip('"')
    modified = info.get("LastModified") or info.get("mtime") or info.get("Last-Modified")
    return f"{size}-{modified}" if modified else (f"{size}" if size is not None else None)
