"""Open uris: local paths, s3://, https://, data: and whatever fsspec knows, all in one way.

Manifest, media and output go through here. Retries and backoff are those of the storage library
(botocore for S3), for https:// those of ``retries.py``. Media are untrusted: https:// uris may not
reach private addresses unless the job file allows it, redirects and name tricks included, since the
check sits where sockets are made.
"""

import hashlib
import io
import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import fsspec
from fsspec.registry import known_implementations
from fsspec.utils import glob_translate

from pipeline.listing import found_file, local_files, local_version, s3_pages, version, walk
from pipeline.public_hosts import any_client, public_client
from pipeline.ranged_file import RangedFile
from pipeline.retries import read_range, retried
from pipeline.storage_errors import shown, storage_errors, unit_error
from schemas.errors import ErrorType, StorageError, UnitError

MAX_WHOLE_BYTES = 1 << 30
"""Largest object that is read as a whole (images, servers without range requests)."""

# What a manifest may name: the host is the job's choice (endpoint_url), is checked, or is none.
_LOCAL_PROTOCOLS = ("file", "local", "data", "memory")
_CLOUD_PROTOCOLS = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "hf", "oci", "oss")
_MEDIA_PROTOCOLS = frozenset({*_LOCAL_PROTOCOLS, *_CLOUD_PROTOCOLS, "http", "https"})
_HEADER_BLOCK_BYTES = 1 << 16
_STREAM_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class MediaFile:
    """An opened media object.

    file: seekable, binary; reads ranges where the storage can.
    content_version: etag, else size and mtime; None where the storage tells neither.
    local_path: the path, if it is a plain local file.
    """

    file: BinaryIO
    size_bytes: int
    content_version: str | None
    local_path: str | None = None

    @property
    def bytes_read(self) -> int | None:
        """Bytes fetched from the storage so far; None for local files."""
        if isinstance(self.file, RangedFile):
            return self.file.bytes_read
        return self.size_bytes if isinstance(self.file, io.BytesIO) else None


class Storage:
    """Opens uris with the job's storage options. Small and picklable: it travels to every actor.

    options: by protocol; under any of its names (``s3`` and ``s3a``, ``gs`` and ``gcs``).

    No dataclass: Ray writes out the fields of those among a stage's arguments, and the options
    have the keys to buckets.

    Raises:
        StorageError: options for what is no protocol.
    """

    def __init__(
        self,
        options: Mapping[str, Mapping[str, Any]] | None = None,
        allow_private_hosts: bool = False,
    ) -> None:
        self.options = options or {}
        self.allow_private_hosts = allow_private_hosts
        for name in self.options:
            if name not in fsspec.available_protocols():
                raise StorageError(
                    f"storage_options: {name} is no protocol; s3, gs, abfs and https are some"
                )

    def filesystem(self, uri: str) -> tuple[Any, str]:
        """Return fsspec's file system for ``uri``, and the path on it.

        Raises:
            StorageError: the protocol is unknown or its package is missing.
        """
        protocol = _protocol(uri)
        options: dict[str, Any] = {}
        for name, given in self.options.items():
            if _implementation(name) == _implementation(protocol):
                options |= given
        if protocol in ("http", "https"):
            options.setdefault(
                "get_client", any_client if self.allow_private_hosts else public_client
            )
        try:
            # Not url_to_fs: it would split a file name at "::", and let a uri chain file systems
            # (simplecache::http://...) around the check of private addresses.
            cls = fsspec.get_filesystem_class(protocol)
            return cls(**(cls._get_kwargs_from_urls(uri) | options)), cls._strip_protocol(uri)
        except ImportError as error:
            missing = (
                f"the package {error.name} (pip install {error.name})" if error.name else error
            )
            raise StorageError(f"{shown(uri)}: {protocol}:// needs {missing}") from None
        except ValueError as error:
            raise StorageError(f"cannot open {shown(uri)}: {error}") from None

    def modules(self, uris: Collection[str]) -> set[str]:
        """Names of the modules that opening ``uris`` imports."""
        implementations = [known_implementations.get(_protocol(uri)) for uri in uris]
        return {found["class"].rpartition(".")[0] for found in implementations if found}

    @contextmanager
    def open_media(self, uri: str, *, header_only: bool = False) -> Iterator[MediaFile]:
        """Open a media object for reading.

        header_only: small blocks, for a probe that reads a few of them; else large blocks that are
        read ahead in the background, each byte once.

        Raises:
            UnitError: missing, denied, too large, or the storage failed after its retries.
        """
        try:
            opened = self._open_media(uri, header_only)
        except UnitError:
            raise
        except Exception as error:  # the boundary: each storage library has its own exceptions
            raise unit_error(uri, error) from error
        try:
            yield opened
        finally:
            opened.file.close()

    def _open_media(self, uri: str, header_only: bool) -> MediaFile:
        protocol = _protocol(uri)
        if protocol not in _MEDIA_PROTOCOLS and not self.allow_private_hosts:
            raise UnitError(
                ErrorType.MEDIA_DENIED,
                f"{shown(uri)}: {protocol}:// may reach private hosts; "
                "set input.allow_private_hosts to allow it",
            )
        fs, path = self.filesystem(uri)
        if _is_local(fs):
            if not os.path.isfile(path):
                problem = "is not a regular file" if os.path.exists(path) else "does not exist"
                raise UnitError(ErrorType.MEDIA_MISSING, f"{shown(uri)} {problem}")
            stat = os.stat(path)
            return MediaFile(
                file=open(path, "rb"),
                size_bytes=stat.st_size,
                content_version=local_version(stat),
                local_path=path,
            )
        if uri.startswith("data:"):
            content = fs.cat_file(path)
            digest = hashlib.sha256(content).hexdigest()[:32]
            return MediaFile(
                file=io.BytesIO(content), size_bytes=len(content), content_version=digest
            )
        is_https = protocol in ("http", "https")
        info = retried(lambda: fs.info(path), is_https=is_https)
        if info["type"] == "directory":
            raise UnitError(ErrorType.MEDIA_MISSING, f"{shown(uri)} is a folder, not a file")
        size = info.get("size")
        if size is None or info.get("partial") is False:  # a server without range requests
            content = retried(lambda: _read_stream(uri, fs, path), is_https=is_https)
            return MediaFile(
                file=io.BytesIO(content),
                size_bytes=len(content),
                content_version=version(info, len(content)),
            )
        remote = fs.open(path, "rb", size=size, cache_type="none") if size else None

        def fetch_range(start: int, end: int) -> bytes:
            assert remote is not None  # of an empty file no range is asked
            fetch = remote._fetch_range
            return retried(lambda: read_range(fetch, start, end), is_https=is_https)

        file = RangedFile(
            size=size,
            fetch_range=fetch_range,
            read_whole=lambda: retried(lambda: _read_stream(uri, fs, path), is_https=is_https),
            name_error=lambda error: unit_error(uri, error),
            block_bytes=_HEADER_BLOCK_BYTES if header_only else _STREAM_BLOCK_BYTES,
            cache="blockcache" if header_only else "background",
        )
        return MediaFile(
            file=cast(BinaryIO, file), size_bytes=size, content_version=version(info, size)
        )

    def read_bytes(self, uri: str) -> bytes:
        """Read a small object whole.

        Raises:
            FileNotFoundError: there is none.
            StorageError: the storage refused or failed.
        """
        with storage_errors(uri):
            fs, path = self.filesystem(uri)
            is_https = _protocol(uri) in ("http", "https")
            content: bytes = retried(lambda: fs.cat_file(path), is_https=is_https)
            return content

    @contextmanager
    def open_ranges(self, uri: str) -> Iterator[BinaryIO]:
        """Open an object to read ranges of it, each with a request of its own.

        Raises:
            FileNotFoundError: there is none.
            StorageError: the storage refused or failed.
        """
        with storage_errors(uri):
            fs, path = self.filesystem(uri)
            with fs.open(path, "rb", **({} if _is_local(fs) else {"cache_type": "none"})) as file:
                yield file

    def write_bytes(self, uri: str, content: bytes) -> None:
        """Write an object whole or not at all: readers never see half of it.

        Raises:
            StorageError: the storage refused or failed.
        """
        with storage_errors(uri):
            fs, path = self.filesystem(uri)
            if not _is_local(fs):
                fs.pipe_file(path, content)  # one PUT (or a completed multipart upload): atomic
                return
            try:
                os.makedirs(os.path.dirname(path), exist_ok=True)
            except OSError as error:
                raise StorageError(f"{uri}: the folder cannot be made: {error.strerror}") from None
            pending = os.path.join(
                os.path.dirname(path), f".{os.path.basename(path)}.pending-{os.getpid()}"
            )
            try:
                with open(pending, "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(pending, path)
            except BaseException:
                with suppress(FileNotFoundError):
                    os.unlink(pending)
                raise

    def remove(self, uri: str) -> None:
        """Remove an object; one that is gone already is fine.

        Raises:
            StorageError: the storage refused or failed.
        """
        with suppress(FileNotFoundError), storage_errors(uri):
            fs, path = self.filesystem(uri)
            fs.rm_file(path)

    def list_files(self, uri: str, pattern: str = "*") -> list[dict[str, Any]]:
        """List the files below ``uri`` that match ``pattern``, sorted: uri, size, version.

        pattern: below ``uri``; ``*`` and ``?`` stay within a folder, ``**`` crosses folders.

        A folder that does not exist is an empty one. Links to files count as files; links to
        folders are not followed.

        Raises:
            StorageError: the bucket is missing, or the storage refused or failed.
        """
        pages = self.list_pages(uri, pattern)
        return sorted((file for page in pages for file in page), key=lambda file: file["uri"])

    def list_pages(self, uri: str, pattern: str = "*") -> Iterator[list[dict[str, Any]]]:
        """List as ``list_files`` does, piece by piece: memory does not grow with the storage.

        So on S3 and local disks; other storages give one piece. Only S3's pieces are in order.

        Raises:
            StorageError: the bucket is missing, or the storage refused or failed.
        """
        with storage_errors(uri):
            fs, path = self.filesystem(uri)
            root = (os.path.normpath(path) if _is_local(fs) else path).rstrip("/") + "/"
            wanted = re.compile(glob_translate(pattern)).match
            if _is_local(fs):
                for names in walk(root):
                    found = sorted(name for name in names if wanted(name.removeprefix(root)))
                    yield list(local_files(found))
                return
            fs.invalidate_cache()
            # The whole tree in pages of 1,000 keys: with a depth, s3fs walks folder by folder and
            # leaves out those that it may not list.
            try:
                if hasattr(fs, "call_s3"):
                    for page in s3_pages(fs, root):
                        yield [
                            found_file(fs, name, info)
                            for name, info in page
                            if wanted(name.removeprefix(root))
                        ]
                    return
                found = fs.find(path, detail=True)
            except FileNotFoundError as error:
                if "bucket" in str(error):
                    raise
                raise StorageError(
                    f"{shown(uri)}: {error}; is the endpoint the right one?"
                ) from None
            yield [
                found_file(fs, name, info)
                for name, info in sorted(found.items())
                if info.get("type") == "file"
                and name.startswith(root)
                and wanted(name.removeprefix(root))
            ]


def join(uri: str, *parts: str) -> str:
    """Append path parts to a uri."""
    return "/".join([uri.rstrip("/"), *parts])


def _protocol(uri: str) -> str:
    if uri.startswith("data:"):
        return "data"
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", uri)
    protocol = found[1].lower() if found else "file"
    return "s3" if protocol == "s3a" else protocol


def _implementation(protocol: str) -> str:
    """The class behind a protocol: one for all its names."""
    found: str = known_implementations.get(protocol, {}).get("class", protocol)
    return found


def _is_local(fs: Any) -> bool:
    protocol = fs.protocol if isinstance(fs.protocol, str) else fs.protocol[0]
    return protocol in ("file", "local")


def _read_stream(uri: str, fs: Any, path: str) -> bytes:
    """Read all of an object, up to ``MAX_WHOLE_BYTES``."""
    content, file = bytearray(), fs.open(path, "rb", block_size=0)
    try:
        while chunk := file.read(_STREAM_BLOCK_BYTES):
            content += chunk
            if len(content) > MAX_WHOLE_BYTES:
                raise UnitError(
                    ErrorType.MEDIA_TOO_LARGE,
                    f"{shown(uri)} is over {MAX_WHOLE_BYTES} bytes on a server without ranges",
                )
    finally:
        file.close()
    return bytes(content)
