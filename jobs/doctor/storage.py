"""Check the job's input and output with the credentials that are here; leave nothing behind."""

import itertools
import os
import uuid
from collections.abc import Iterator
from contextlib import suppress

from jobs.console.output_path import absolute_uri
from jobs.doctor.finding import LATE, Finding, State, checked, finding
from pipeline.manifest.listing import as_items, media_pages
from pipeline.manifest.read import manifest_items
from pipeline.storage.errors import storage_errors
from pipeline.storage.http_retry import causes, status
from pipeline.storage.protocols import is_local
from pipeline.storage.storage import Storage, join
from schemas.errors import StorageError
from schemas.job.job import Input
from schemas.shown import redact_uri
from schemas.tables.manifest import MediaItem

REMOVE_SECONDS = 10.0
_READ_BYTES = 1 << 16

_REFUSED = {"PreconditionFailed", "ConditionalRequestConflict", "412", "409"}
_UNKNOWN = {"NotImplemented", "501"}
"""Codes of a conditional write: refused, since the object is there, or not known at all."""


def input_findings(spec: Input, storage: Storage) -> tuple[list[Finding], str | None]:
    """List the job's media, and read the beginning of the first one.

    Returns the findings, and the uri that was read, to try it on other machines too.
    """
    source = str(spec.manifest or spec.scan)
    uris: list[str] = []

    def find() -> str:
        item = _first_item(spec, storage)
        uris.extend([item.uri] if item.uri else item.frames[:1])
        return f"{redact_uri(source)} has media"

    def read() -> str:
        with storage.open_media(uris[0], header_only=True) as media:
            num_bytes = len(media.file.read(_READ_BYTES))
            return f"{redact_uri(uris[0])}: {num_bytes:,} of {media.size_bytes:,} bytes"

    found = [checked("input", "list", find)]
    if uris:
        found.append(checked("input", "read", read))
    return found, uris[0] if uris else None


def _first_item(spec: Input, storage: Storage) -> MediaItem:
    if spec.manifest is not None:
        return next(manifest_items(spec.manifest, storage))
    assert spec.scan is not None
    pages = media_pages(spec.scan, spec.glob, storage)
    return next(itertools.chain.from_iterable(map(as_items, pages)))


def output_findings(output: str, storage: Storage) -> list[Finding]:
    """Do what a run does to its output: list, write, read back, replace, remove.

    The object has a name of its own, and is removed, as are folders that were made for it.
    """
    folder = absolute_uri(output)
    made = _missing_folders(folder, storage)
    uri = join(folder, f".doctor-{uuid.uuid4().hex}")
    try:
        return list(_output(folder, uri, storage))
    finally:
        for each in made:
            with suppress(OSError, ValueError):  # it is not empty: a run began meanwhile
                os.rmdir(each)


def _output(folder: str, uri: str, storage: Storage) -> Iterator[Finding]:
    def listed() -> str:
        next(storage.list_pages(folder), None)
        return redact_uri(folder)

    def written() -> str:
        storage.write_bytes(uri, b"1")
        return "an object was written"

    def replaced() -> str:
        """A lease is an object that is replaced, and read to see whether another one did."""
        for content in (b"2", b"3"):
            storage.write_bytes(uri, content)
            if (seen := storage.read_bytes(uri)) != content:
                raise StorageError(
                    f"{content!r} was written, and {seen!r} read afterwards: leases need a storage "
                    "that reads what was written last; turn caches of reads off"
                )
        return "read back as written, twice: what leases need"

    def exclusive() -> str:
        if _is_exclusive(uri, storage):
            return "a second one was refused"
        return "the storage has none; nothing here needs one, since a lease is watched, not locked"

    def removed() -> str:
        storage.remove(uri)
        return "the object was removed"

    yield checked("output", "list", listed)
    write = checked("output", "write", written)
    yield write
    if write.state == State.OK:
        yield checked("output", "replace", replaced)
        yield checked("output", "conditional write", exclusive)
    elif LATE not in write.text:
        return
    # After a write that is late too: it may arrive.
    remove = checked("output", "remove", removed, seconds=REMOVE_SECONDS)
    if remove.state != State.OK:
        left = f"{remove.text}; {redact_uri(uri)} may be left: remove it"
        yield finding("output", "remove", remove.state, left)
    elif write.state == State.OK:
        yield remove


def _is_exclusive(uri: str, storage: Storage) -> bool:
    """Whether the storage refuses to make an object that is there.

    Raises:
        StorageError: it failed for another reason.
    """
    fs, path = storage.filesystem(uri)
    with storage_errors(uri):
        try:
            fs.pipe_file(path, b"4", mode="create")
        except Exception as error:  # each storage library has its own exceptions
            codes = set().union(*map(_codes, causes(error)))
            if isinstance(error, FileExistsError) or _REFUSED & codes:
                return True
            if _UNKNOWN & codes:
                return False
            raise
    return False


def _codes(cause: BaseException) -> set[str]:
    """Status and error codes of a storage library's exception, as texts."""
    response = getattr(cause, "response", None)
    error = response.get("Error", {}) if isinstance(response, dict) else {}
    found = (error.get("Code"), getattr(cause, "code", None), status(cause))
    return {str(code) for code in found if code is not None}


def _missing_folders(output: str, storage: Storage) -> list[str]:
    """Folders of a local output that do not exist yet, the innermost first."""
    try:
        fs, path = storage.filesystem(output)
    except Exception:  # the boundary: the checks name what a storage's library raises
        return []
    missing = []
    while is_local(fs) and not os.path.lexists(path):
        missing.append(path)
        path = os.path.dirname(path)
    return missing
