"""The protocols of uris: which file system a uri belongs to, and which a manifest may use."""

import re
from typing import Any

from fsspec.registry import known_implementations

_LOCAL = ("file", "local", "data", "memory")
_CLOUD = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "hf", "oci", "oss")

MEDIA_PROTOCOLS = frozenset({*_LOCAL, *_CLOUD, "http", "https"})
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
