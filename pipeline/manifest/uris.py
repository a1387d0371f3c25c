"""Resolve the uris in a user's file, which may be relative to the file's folder."""

import os
import posixpath
import re

from pipeline.storage.protocols import is_https, uri_of_path
from pipeline.storage.storage import Storage

_PROTOCOL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|data:")


def _protocol_prefix(uri: str) -> str:
    """Return the protocol of a uri with its separator, ``s3://`` or ``data:``; empty for a path."""
    found = _PROTOCOL.match(uri)
    return found[0] if found else ""


def resolve_uri(uri: str, base: str) -> str:
    """Make a relative uri absolute: it starts at the folder ``base``. ``~/`` is the home folder.

    Only the parts ``.`` and ``..`` of the relative uri are resolved. In a bucket all else is part
    of the key, which is an opaque text: two slashes stay two.
    """
    if _protocol_prefix(uri):
        return uri
    if uri.startswith("/"):
        return uri_of_path(uri)
    if uri.startswith("~/"):
        return uri_of_path(os.path.expanduser(uri))
    protocol = _protocol_prefix(base)
    if not protocol:
        return uri_of_path(posixpath.normpath(posixpath.join(base, uri)))
    parts = base.removeprefix(protocol).split("/")
    for part in uri.split("/"):
        if part != "..":
            parts += [part] if part != "." else []
        elif len(parts) > 1:  # the bucket or host stays
            parts.pop()
    return protocol + "/".join(parts)


def without_slash(folder: str) -> str:
    """Return a folder's uri as ``resolve_uri`` takes it: without one slash at its end."""
    return folder.removesuffix("/") or folder


def base_uri(uri: str, storage: Storage) -> str:
    """Make the uri of a file or folder absolute, for ``resolve_uri``; local files become paths."""
    if _protocol_prefix(uri) not in ("", "file://", "local://"):
        return without_slash(uri)
    return str(storage.filesystem(uri)[1])


def parent_folder(uri: str) -> str:
    """The folder of a file, where its relative uris start."""
    protocol = _protocol_prefix(uri)
    if is_https(uri):
        uri = re.split(r"[?#]", uri)[0]
    return protocol + uri.removeprefix(protocol).rpartition("/")[0]
