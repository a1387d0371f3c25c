"""Open uris of all kinds in one way: local paths, s3://, https://, data:, and others of fsspec.

Manifest, media and output are read and written here. S3 has its library's retries and backoff
(botocore), https:// those of ``http_retry``. Media are untrusted: https:// uris may not reach
private addresses unless the job allows it (``public_hosts``).
"""

import os
import tempfile
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
from fsspec.registry import known_implementations

from pipeline.storage.errors import storage_errors, unit_error
from pipeline.storage.http_client import any_client, public_client, s3_session
from pipeline.storage.http_retry import retried
from pipeline.storage.listing import PassOver, list_pages
from pipeline.storage.media_file import MediaFile, open_file
from pipeline.storage.options import check_options, headers_by_origin, options_for
from pipeline.storage.protocols import (
    MEDIA_PROTOCOLS,
    is_https,
    is_local,
    path_of_uri,
    protocol_of,
)
from schemas.errors import ErrorType, StorageError, UnitError
from schemas.shown import HIDDEN, redact_uri


class Storage:
    """Opens uris with the job's storage options. Small and picklable: every actor gets a copy.

    options: by protocol, under any of its names (``s3`` and ``s3a``, ``gs`` and ``gcs``), or by
        host, ``https://archive.example.org``: see ``options``.

    This is not a dataclass: Ray logs the fields of dataclasses among a stage's arguments, and the
    options have the keys to buckets.

    Raises:
        StorageError: options for an unknown protocol, or for every host.
    """

    def __init__(
        self,
        options: Mapping[str, Mapping[str, Any]] | None = None,
        allow_private_hosts: bool = False,
    ) -> None:
        self.options = options or {}
        self.allow_private_hosts = allow_private_hosts
        check_options(self.options)

    def filesystem(self, uri: str) -> tuple[Any, str]:
        """Return fsspec's file system for ``uri``, and the path on it.

        Raises:
            StorageError: the protocol is unknown or its package is missing.
        """
        protocol = protocol_of(uri)
        options = options_for(uri, self.options)
        if is_https(uri) and "get_client" not in options:
            client = any_client if self.allow_private_hosts else public_client
            settings = options.get("client_kwargs") or {}
            settings = settings | {"headers_by_origin": headers_by_origin(self.options)}
            options |= {"get_client": client, "encoded": True, "client_kwargs": settings}
        if protocol == "s3":
            settings = {"http_session_cls": s3_session()} | (options.get("config_kwargs") or {})
            options |= {"config_kwargs": settings}
        try:
            # Not url_to_fs: it splits file names at "::" and lets a uri chain file systems
            # (simplecache::http://...), which evades the check of private addresses.
            cls = fsspec.get_filesystem_class(protocol)
            fs = cls(**(cls._get_kwargs_from_urls(uri) | options))
            path = cls._strip_protocol(uri)
            return fs, path_of_uri(uri, path) if is_local(fs) else path
        except ImportError as error:
            missing = (
                f"the package {error.name} (pip install {error.name})" if error.name else error
            )
            raise StorageError(f"{redact_uri(uri)}: {protocol}:// needs {missing}") from None
        except ValueError as error:
            raise StorageError(f"cannot open {redact_uri(uri)}: {error}") from None

    def modules(self, uris: Collection[str]) -> set[str]:
        """Return the names of the modules that fsspec imports to open ``uris``."""
        implementations = [known_implementations.get(protocol_of(uri)) for uri in uris]
        return {found["class"].rpartition(".")[0] for found in implementations if found}

    @contextmanager
    def open_media(self, uri: str, *, header_only: bool = False) -> Iterator[MediaFile]:
        """Open a media object for reading.

        header_only: read small blocks, for a probe that needs a few of them; else read large
            blocks, the next one ahead in the background.

        Raises:
            UnitError: missing, denied, too large, or the storage failed after its retries.
        """
        try:
            protocol = protocol_of(uri)
            if is_https(uri) and uri.endswith(HIDDEN):
                raise UnitError(
                    ErrorType.MEDIA_DENIED,
                    f"{redact_uri(uri)} was written without its query, which may be secret: "
                    "it can be read from the manifest only",
                )
            if protocol not in MEDIA_PROTOCOLS and not self.allow_private_hosts:
                raise UnitError(
                    ErrorType.MEDIA_DENIED,
                    f"{redact_uri(uri)}: {protocol}:// may reach private hosts; "
                    "set input.allow_private_hosts to allow it",
                )
            opened = open_file(uri, *self.filesystem(uri), header_only=header_only)
        except UnitError:
            raise
        except Exception as error:  # the boundary: each storage library has its own exceptions
            raise unit_error(uri, error) from error
        try:
            yield opened
        finally:
            opened.file.close()

    def read_bytes(self, uri: str) -> bytes:
        """Read a whole object into memory.

        Raises:
            FileNotFoundError: there is none.
            StorageError: the storage refused or failed.
        """
        with storage_errors(uri):
            fs, path = self.filesystem(uri)
            content: bytes = retried(lambda: fs.cat_file(path), is_https=is_https(uri))
            return content

    @contextmanager
    def local_copy(self, uri: str) -> Iterator[Path]:
        """Give an object as a local file, to read it in pieces: itself, or a copy for the time.

        Raises:
            FileNotFoundError: there is none.
            StorageError: the storage refused or failed.
        """
        with tempfile.TemporaryDirectory(prefix="reelscribe-") as folder:
            with storage_errors(uri):
                fs, path = self.filesystem(uri)
                copy = os.path.join(folder, "copy")
                if is_local(fs):
                    copy = path
                    open(copy, "rb").close()  # raises if it cannot be read
                else:
                    retried(lambda: fs.get_file(path, copy), is_https=is_https(uri))
            yield Path(copy)

    @contextmanager
    def open_ranges(self, uri: str) -> Iterator[BinaryIO]:
        """Open an object to read ranges of it, with one request for each.

        Raises:
            FileNotFoundError: there is none.
            StorageError: the storage refused or failed.
        """
        with storage_errors(uri):
            fs, path = self.filesystem(uri)
            with fs.open(path, "rb", **({} if is_local(fs) else {"cache_type": "none"})) as file:
                yield file

    def write_bytes(self, uri: str, content: bytes) -> None:
        """Write an object atomically: readers never see a part of it.

        Raises:
            StorageError: the storage refused or failed.
        """
        with storage_errors(uri):
            fs, path = self.filesystem(uri)
            if not is_local(fs):
                fs.pipe_file(path, content)  # one PUT (or a completed multipart upload): atomic
                return
            try:
                os.makedirs(os.path.dirname(path), exist_ok=True)
            except OSError as error:
                raise StorageError(f"{uri}: cannot create the folder: {error.strerror}") from None
            # Not the process id: writers in several containers have the same ones.
            pending = os.path.join(
                os.path.dirname(path), f".{os.path.basename(path)}.pending-{uuid.uuid4().hex}"
            )
            try:
                # A file or link that is there already is neither written nor followed.
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
                with open(os.open(pending, flags, 0o666), "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(pending, path)
            except BaseException:
                with suppress(FileNotFoundError):
                    os.unlink(pending)
                raise

    def remove(self, uri: str) -> None:
        """Remove an object; it is no error if there is none.

        Raises:
            StorageError: the storage refused or failed.
        """
        with suppress(FileNotFoundError), storage_errors(uri):
            fs, path = self.filesystem(uri)
            fs.rm_file(path)

    def list_files(self, uri: str, pattern: str = "*") -> list[dict[str, Any]]:
        """List the files below ``uri`` that match ``pattern``, sorted by uri.

        pattern: relative to ``uri``; ``*`` and ``?`` stay within a folder, ``**`` crosses folders.

        Each file is a dict with ``uri``, ``name`` (its path below the folder), ``size`` in bytes,
        ``version`` and ``modified``. A folder that does not exist has no files. Links to files are
        listed; links to folders are not followed.

        Raises:
            StorageError: the bucket is missing, or the storage refused or failed.
        """
        pages = self.list_pages(uri, pattern)
        return sorted((file for page in pages for file in page), key=lambda file: file["uri"])

    def list_pages(
        self, uri: str, pattern: str = "*", pass_over: PassOver | None = None
    ) -> Iterator[list[dict[str, Any]]]:
        """Yield the files of ``list_files`` page by page, so that memory stays bounded.

        pass_over: called for links to nothing and to folders, for what is no regular file, and for
            folders that may not be read, which are an error without it.

        Other storages than S3 and local disks yield one page. Only S3's pages are in order.

        Raises:
            StorageError: the bucket is missing, or the storage refused or failed.
        """
        with storage_errors(uri):
            yield from list_pages(uri, *self.filesystem(uri), pattern, pass_over)


def join(uri: str, *parts: str) -> str:
    """Append path parts to a uri."""
    return "/".join([uri.rstrip("/"), *parts])
