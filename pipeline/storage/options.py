"""The job's storage options: which of them a uri gets.

A uri such as ``s3://bucket/key`` names no host: its options, by protocol, say which host gets the
keys. A uri such as ``https://host/a.mp4`` names one, and a manifest may name any. So what may be
secret is given for one host, ``https://host``, and sent to no other, also not after a redirect.
"""

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import fsspec

from pipeline.storage.http_client import Headers, origin
from pipeline.storage.protocols import implementation, is_https, protocol_of
from schemas.errors import StorageError
from schemas.shown import KEY_PROTOCOLS

Options = Mapping[str, Mapping[str, Any]]

_SENT = frozenset({"headers", "auth", "cookies", "params", "data", "json"})
"""Options of https that every host would get."""

_WITHOUT_HOST = (*KEY_PROTOCOLS, "dbfs", "gdrive", "box", "dropbox")
"""Protocols whose uris name no host that could be another's."""


def check_options(options: Options) -> None:
    """Check that no option may reach a host that it is not for.

    Raises:
        StorageError: an unknown protocol, or options of a protocol that are to be given by host.
    """
    for name, given in options.items():
        protocol, is_host, _ = name.partition("://")
        if protocol.lower() not in fsspec.available_protocols():
            raise StorageError(
                f"storage_options: unknown protocol {protocol}; known ones are s3, gs, abfs, and "
                "https://HOST"
            )
        if is_host:
            _check_host(name, given)
        elif is_https(f"{protocol}://"):
            more = given.get("client_kwargs") or {}
            if not isinstance(more, Mapping):
                raise StorageError(f"storage_options.{protocol}: client_kwargs must be a mapping")
            if sent := _SENT & {*given, *more}:
                raise StorageError(
                    f"storage_options.{protocol}: {min(sent)} would be sent to every host that the "
                    f"manifest names; give it for one: "
                    f'{{"{protocol}://archive.example.org": {{headers: {{X-Api-Key: ...}}}}}}'
                )
        elif protocol not in _WITHOUT_HOST and given and not {"host", "instance"} & {*given}:
            raise StorageError(
                f"storage_options.{protocol} would be used for every host that the manifest names; "
                f'give them for one: {{"{protocol}://HOST": ...}}'
            )


def options_for(uri: str, options: Options) -> dict[str, Any]:
    """Return the options of fsspec's file system for a uri.

    Those of https hosts are not among them, see ``headers_by_origin``.
    """
    protocol, found = protocol_of(uri), dict[str, Any]()
    for name, given in options.items():
        is_host = "://" in name
        if implementation(protocol_of(name) if is_host else name) != implementation(protocol):
            continue
        if not is_host or (not is_https(uri) and _host(name) == _host(uri)):
            found |= given
    return found


def headers_by_origin(options: Options) -> Headers:
    """Return the headers of each https host that has some."""
    hosts = (name for name in options if "://" in name and is_https(name))
    return {origin(name): dict(options[name]["headers"]) for name in hosts}


def _check_host(name: str, given: Mapping[str, Any]) -> None:
    protocol = protocol_of(name)
    if protocol in KEY_PROTOCOLS:
        raise StorageError(
            f"storage_options: the uris of {protocol}:// name no host; give its options as "
            f"`{protocol}: ...`, with endpoint_url for another host"
        )
    try:
        parts = urlsplit(name)
        is_plain = bool(parts.hostname) and name.rstrip("/").endswith(f"//{parts.netloc}")
        is_plain = is_plain and "@" not in parts.netloc and (parts.port or 1) > 0
    except ValueError:
        is_plain = False
    if not is_plain:
        raise StorageError(
            f"storage_options: a host is written as {protocol}://archive.example.org or "
            f"{protocol}://archive.example.org:8443, without a path, user or query"
        )
    if is_https(name):
        headers = given.get("headers")
        if set(given) != {"headers"} or not isinstance(headers, Mapping):
            raise StorageError(
                f"storage_options.{name}: give headers, such as {{headers: {{X-Api-Key: ...}}}}, "
                f"and other options as `{protocol}: ...`"
            )
        if not all(isinstance(text, str) for pair in headers.items() for text in pair):
            raise StorageError(f"storage_options.{name}: headers must be texts; quote numbers")


def _host(uri: str) -> tuple[str | None, int | None]:
    """The host and port of a uri; of a malformed one none, to which no options belong."""
    try:
        parts = urlsplit(uri)
        return parts.hostname, parts.port
    except ValueError:
        return None, None
