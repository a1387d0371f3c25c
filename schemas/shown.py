"""What may be shown or written of a text: addresses without secrets, and printable characters.

Every query and every user part of an address counts as a secret, whatever its names: signatures
have too many. A query stays only where it is part of a name: in a bucket or on a disk.
"""

import hashlib
import logging
import re

KEY_PROTOCOLS = (
    *("file", "local", "data", "memory"),
    *("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "hf", "oci", "oss"),
)
"""Protocols whose uris name an object by its key, and no host."""

HIDDEN = "?..."
"""What stands for a query or a fragment."""

_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(/*)(.*)", re.DOTALL)
_CONTAINER = re.compile(r"[a-z0-9$-]{1,63}@")  # abfs://container@account.host/, which is no user
_SIGNATURE = re.compile(r"[?&](sig|x-(amz|goog|oss)-[\w-]+)=", re.IGNORECASE)
_PORT = re.compile(r"(\[[^\]]*\]|[^:\[\]]*)(:\d*)?\Z")

# The lookbehind and the limit keep the search linear.
_IN_TEXT = re.compile(
    r"(?<![A-Za-z0-9+.-])(?:[A-Za-z][A-Za-z0-9+.-]{0,30}://|https?:/*(?=[^/\s]))[^\s\"<>]*"
    r"|(?<![A-Za-z0-9+.-])data:[a-z]+/[^\s,\"'<>]{0,200},[^\s\"'<>]*",
    re.IGNORECASE,
)
_AFTER = "'\")]},;:."  # what may follow an address in a text

_KEPT = "\u200c\u200d"  # the joiners that some scripts and emoji need


def redact_uri(uri: str) -> str:
    """Return a uri for messages and output rows: short, and without secrets.

    A data: uri becomes its type and hash. An address of a host loses its user part, and its query
    and fragment become ``?...``. Of a key in a bucket only a signed query is hidden; the path of a
    local file stays, without the secrets of an address in it.
    """
    if uri[:5].lower() == "data:":
        head, _, content = uri.partition(",")
        return f"{head[:60]},sha256={hashlib.sha256(content.encode()).hexdigest()[:16]}"
    found = _URI.match(uri)
    protocol = found[1].lower() if found else "file"
    if found is None or (not found[2] and protocol not in ("http", "https")):
        return _IN_TEXT.sub(_redacted, uri)  # a path, such as one that a space before a url made
    scheme, slashes, rest = found.groups()
    if protocol in ("file", "local", "memory"):
        return uri
    if protocol in KEY_PROTOCOLS:
        if not _CONTAINER.match(rest):
            rest = re.sub(r"\A[^/?#]*@", "", rest)
        if signed := _SIGNATURE.search(rest):
            rest = rest[: rest.index("?", 0, signed.end())] + HIDDEN
        return f"{scheme}:{slashes}{rest}"
    host, mark, more = re.findall(r"\A([^/?#\\]*)([/?#\\]?)(.*)", rest, re.DOTALL)[0]
    if "@" in host:
        host = host.rpartition("@")[2]
    elif "@" in more and (mark in "?#\\" or not _PORT.match(host)):  # a password may have / ? #
        host, mark, more = re.findall(r"\A([^/?#]*)([/?#]?)(.*)", more.rpartition("@")[2], re.S)[0]
    if mark and mark in "?#":
        return f"{scheme}:{slashes}{host}{HIDDEN}"
    path = re.split(r"[?#]", more, maxsplit=1)
    return f"{scheme}:{slashes}{host}{mark}{path[0]}{HIDDEN if len(path) > 1 else ''}"


def redact_text(text: str, uri: str = "") -> str:
    """Return a message of a library, or a traceback, without the secrets of addresses.

    uri: one that the text may have in parts, such as its query alone.
    """
    if uri:
        text = text.replace(uri, redact_uri(uri))
        for secret in _secrets(uri):
            text = text.replace(secret, "...")
    return _IN_TEXT.sub(_redacted, text)


def _redacted(found: re.Match[str]) -> str:
    uri = found[0].rstrip(_AFTER)
    if uri.endswith("?") and found[0].startswith("...", len(uri)):
        uri += "..."  # it is redacted already
    return redact_uri(uri) + found[0][len(uri) :]


def _secrets(uri: str) -> list[str]:
    """What ``redact_uri`` hides of a uri, in parts that are long enough to be one."""
    if uri[:5].lower() == "data:":
        return []
    shown = redact_uri(uri)
    parts = {*re.split(r"[?#]", uri, maxsplit=1)[1:], *re.split(r"[/?#&=@:]+", uri)}
    return sorted((p for p in parts if len(p) >= 6 and p not in shown), key=len, reverse=True)


def printable(text: str, *, keep: str = "\n") -> str:
    """Return ``text`` with control and invisible formatting characters written as escapes.

    keep: characters that stay; without the line break, the result is one line.
    """
    if text.isprintable():
        return text
    return "".join(
        char
        if char.isprintable() or char in _KEPT or char in keep
        else char.encode("unicode_escape").decode()
        for char in text
    )


def one_line(text: str) -> str:
    """Return ``text`` as ``printable`` does, with line breaks as escapes too: for one field."""
    return printable(text, keep="")


class ShownFormatter(logging.Formatter):
    """Formats log records for a terminal or a file: no secrets, no escapes, no forged lines.

    Lines of a message or traceback after the first are indented, so that none looks like a record.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the text of a record."""
        text = printable(redact_text(super().format(record)), keep="\n\t")
        return text.replace("\n", "\n  ")


def log_shown() -> None:
    """Set up the log of a command or a worker, unless the process has one."""
    handler = logging.StreamHandler()
    handler.setFormatter(ShownFormatter("%(levelname)s: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
