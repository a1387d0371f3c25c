"""Resolve the uris in a user's file, which may be relative to the file's folder."""

import os
import posixpath
import re

from pipeline.storage.storage import Storage

_PROTOCOL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|data:")


def _protocol_prefix(uri: str) -> str:
    """Return the protocol of a uri with its separator, ``s3://`` or ``data:``; empty for a path."""
    found = _PROTOCOL.match(uri)
    return found[0] if found else ""


def resolve_uri(uri: str, base: str) -> str:
    """Make a relative uri absolute: it starts at the folder ``base``. ``~/`` is the home folder."""
    if _protocol_prefix(uri) or uri.startswith("/"):
        return uri
    if uri.startswith("~/"):
        return os.path.expanduser(uri)
    protocol = _protocol_prefix(base)
    path = posixpath.join(base.removeprefix(protocol), uri)
    return protocol + posixpath.normpath(path)


def base_uri(uri: str, storage: Storage) -> str:
    """Make the uri of a file or folder absolute, for ``resolve_uri``; local files become paths."""
    if _protocol_prefix(uri) not in ("", "file://", "local://"):
        return uri.rstrip("/")
    return str(storage.filesystem(uri)[1])


def parent_folder(uri: str) -> str:
    """The folder of a file, where its relative uris start."""
    protocol = _protocol_prefix(uri)
    if protocol in ("http://", "https://"):
        uri = re.split(r"[?#]", uri)[0]
    return protocol + uri.removeprefix(protocol).rpartition("/")[0]
