"""Uris: which file system a uri belongs to, which a manifest may use, and names of local files.

Linux keeps names as bytes; Python holds those that are not UTF-8 as lone surrogates, which fit into
no table and no JSON. The uri of such a file is the percent-encoded ``file://`` uri of RFC 8089:
``file:///clips/Z%FCrich.mp4``.
"""

import os
import re
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote_to_bytes

from fsspec.registry import known_implementations

from schemas.shown import KEY_PROTOCOLS

MEDIA_PROTOCOLS = frozenset({*KEY_PROTOCOLS, "http", "https"})
"""Protocols that a manifest may use: no host, a host from the job, or a host that is checked."""


def protocol_of(uri: str) -> str:
    """Return the protocol of a uri, in lower case; ``file`` for a path, ``s3`` for s3a."""
    if uri.startswith("data:"):
        return "data"
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", uri)
    protocol = found[1].lower() if found else "file"
    return "s3" if protocol == "s3a" else protocol


def is_https(uri: str) -> bool:
    """Whether the uri is read over HTTP, where fsspec has no retries."""
    return protocol_of(uri) in ("http", "https")


def implementation(protocol: str) -> str:
    """Return the name of fsspec's class for a protocol; its aliases have the same class."""
    found: str = known_implementations.get(protocol, {}).get("class", protocol)
    return found


def is_local(fs: Any) -> bool:
    """Whether an fsspec file system is the local disk."""
    protocol = fs.protocol if isinstance(fs.protocol, str) else fs.protocol[0]
    return protocol in ("file", "local")


def uri_of_path(path: str) -> str:
    """Return the uri of an absolute path: the path itself, if it is UTF-8."""
    return path if is_utf8(path) else PurePosixPath(path).as_uri()


def path_of_uri(uri: str, path: str) -> str:
    """Return the path of a local file.

    path: of the uri as it is written; kept, unless the uri is one that ``uri_of_path`` makes.
    """
    if not uri.startswith("file://") or "%" not in path:
        return path
    decoded = os.fsdecode(unquote_to_bytes(path))
    return path if is_utf8(decoded) or not os.path.lexists(decoded) else decoded


def is_utf8(path: str) -> bool:
    """Whether a path is text that tables and JSON can hold."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True
