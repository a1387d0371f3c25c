"""Open one media object: a local file, the bytes of a data: uri, or ranges of a remote object."""

import hashlib
import io
import os
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from pipeline.storage.errors import unit_error
from pipeline.storage.http_retry import read_range, retried
from pipeline.storage.listing import local_version, version
from pipeline.storage.protocols import is_https, is_local
from pipeline.storage.ranged_file import RangedFile
from schemas.errors import ErrorType, UnitError
from schemas.shown import redact_uri

MAX_WHOLE_BYTES = 1 << 30
"""Largest object that is read as a whole (images, servers without range requests)."""

_HEADER_BLOCK_BYTES = 1 << 16
_STREAM_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class MediaFile:
    """An opened media object.

    file: seekable, binary; reads ranges if the storage supports them.
    content_version: etag, else size and mtime; None if the storage has neither.
    """

    file: BinaryIO
    size_bytes: int
    content_version: str | None

    @property
    def bytes_read(self) -> int | None:
        """Bytes read from the storage so far; None for local files."""
        if isinstance(self.file, RangedFile):
            return self.file.bytes_read
        return self.size_bytes if isinstance(self.file, io.BytesIO) else None


def open_file(uri: str, fs: Any, path: str, *, header_only: bool) -> MediaFile:
    """Open the object ``path`` on fsspec's file system ``fs``.

    header_only: read in small blocks, and keep a few of them.

    Raises:
        UnitError: it is missing or too large.
        Exception: whatever the storage's library raises.
    """
    if is_local(fs):
        return _open_local(uri, path)
    if uri.startswith("data:"):
        content = fs.cat_file(path)
        return _in_memory(content, hashlib.sha256(content).hexdigest()[:32])
    over_http = is_https(uri)
    info = retried(lambda: fs.info(path), is_https=over_http)
    if info["type"] == "directory":
        raise UnitError(ErrorType.MEDIA_MISSING, f"{redact_uri(uri)} is a folder, not a file")

    def read_whole() -> bytes:
        return retried(lambda: _read_stream(uri, fs, path), is_https=over_http)

    size = info.get("size")
    if size is None or info.get("partial") is False:  # a server without range requests
        content = read_whole()
        return _in_memory(content, version(info, len(content)))
    remote = fs.open(path, "rb", size=size, cache_type="none") if size else None

    def fetch_range(start: int, end: int) -> bytes:
        assert remote is not None  # an empty file has no ranges to read
        fetch = remote._fetch_range
        return retried(lambda: read_range(fetch, start, end), is_https=over_http)

    file = RangedFile(
        size=size,
        fetch_range=fetch_range,
        read_whole=read_whole,
        name_error=lambda error: unit_error(uri, error),
        block_bytes=_HEADER_BLOCK_BYTES if header_only else _STREAM_BLOCK_BYTES,
        cache="blockcache" if header_only else "background",
    )
    return MediaFile(
        file=cast(BinaryIO, file), size_bytes=size, content_version=version(info, size)
    )


def _open_local(uri: str, path: str) -> MediaFile:
    if not os.path.isfile(path):
        problem = "is not a regular file" if os.path.exists(path) else "does not exist"
        raise UnitError(ErrorType.MEDIA_MISSING, f"{redact_uri(uri)} {problem}")
    stat = os.stat(path)
    return MediaFile(
        file=open(path, "rb"),
        size_bytes=stat.st_size,
        content_version=local_version(stat),
    )


def _in_memory(content: bytes, content_version: str | None) -> MediaFile:
    return MediaFile(
        file=io.BytesIO(content), size_bytes=len(content), content_version=content_version
    )


def _read_stream(uri: str, fs: Any, path: str) -> bytes:
    """Read a whole object of up to ``MAX_WHOLE_BYTES``."""
    content, file = bytearray(), fs.open(path, "rb", block_size=0)
    try:
        while chunk := file.read(_STREAM_BLOCK_BYTES):
            content += chunk
            if len(content) > MAX_WHOLE_BYTES:
                raise UnitError(
                    ErrorType.MEDIA_TOO_LARGE,
                    f"{redact_uri(uri)} is over {MAX_WHOLE_BYTES:,} bytes, on a server without "
                    "range requests; store it where byte ranges can be read",
                )
    finally:
        file.close()
    return bytes(content)
