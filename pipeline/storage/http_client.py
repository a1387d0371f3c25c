"""The HTTP session that fsspec reads with: addresses are sent as they are written.

A signed address is signed letter by letter. aiohttp normalises ``%2F``, ``%40``, ``%7e`` and
``a/../b``, and a server then refuses the signature. Redirects are sent as written too.
"""

import re
from typing import Any
from urllib.parse import quote

from pipeline.storage.public_hosts import public_socket

_SENDABLE = "%:/?#[]@!$&'()*+,;=-._~"
"""Characters that a url may have: RFC 3986."""


async def public_client(**kwargs: Any) -> Any:
    """Make an HTTP session for fsspec that connects to public addresses only."""
    import aiohttp

    return _session(kwargs, connector=aiohttp.TCPConnector(socket_factory=public_socket))


async def any_client(**kwargs: Any) -> Any:
    """Make an HTTP session for fsspec that connects to any address."""
    return _session(kwargs)


def sent_url(url: str) -> Any:
    """Return a url for aiohttp that is sent as it is written.

    Only what no url may have is encoded: spaces, control characters, letters outside of ASCII, and
    a ``%`` that encodes nothing; a host name outside of ASCII by IDNA. A fragment is not sent.

    Raises:
        ValueError: the url is malformed.
    """
    import yarl

    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]*://[^/?#]*)([^#]*)", url, re.DOTALL)
    if found is None:
        raise ValueError(f"not an absolute url: {url}")
    host = str(yarl.URL(found[1])).rstrip("/")
    target = re.sub(r"%(?![0-9A-Fa-f]{2})", "%25", found[2])
    return yarl.URL(host + quote(target, safe=_SENDABLE), encoded=True)


def _session(kwargs: dict[str, Any], **more: Any) -> Any:
    import aiohttp

    class Request(aiohttp.ClientRequest):
        """A request whose url, also of a redirect, is sent as it is written."""

        def __init__(self, method: str, url: Any, **kwargs: Any) -> None:
            super().__init__(method, sent_url(str(url)), **kwargs)

    # A server may stall, and a transfer may be long.
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=30)
    defaults: dict[str, Any] = {
        "timeout": timeout,
        "request_class": Request,
        "requote_redirect_url": False,
    }
    return aiohttp.ClientSession(**(defaults | kwargs), **more)
