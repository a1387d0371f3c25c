"""The HTTP sessions that fsspec reads with: addresses are sent as they are written.

A signed address is signed letter by letter. aiohttp normalises ``%2F``, ``%40``, ``%7e`` and
``a/../b``, and a server then refuses the signature. Redirects are sent as written too.
"""

import functools
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from pipeline.storage.public_hosts import public_socket

Origin = tuple[str, str | None, int | None]
"""Protocol, host and port."""

Headers = Mapping[Origin, Mapping[str, str]]
"""Headers by the origin that gets them."""

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


@functools.cache
def s3_session() -> type[Any]:
    """Return the class of the sessions for S3, which follow no redirect.

    aiohttp would, with the session token and the keys of encryption among the headers. Other S3
    clients do not.
    """
    from aiobotocore.httpsession import AIOHTTPSession  # type: ignore[import-untyped]

    class Session(AIOHTTPSession):  # type: ignore[misc]
        async def _get_session(self, proxy_url: str | None) -> Any:
            return _Redirectless(await super()._get_session(proxy_url))

    return Session


class _Redirectless:
    def __init__(self, session: Any) -> None:
        self._session = session

    def request(self, *args: Any, **kwargs: Any) -> Any:
        return self._session.request(*args, **kwargs, allow_redirects=False)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


def origin(url: Any) -> Origin:
    """Return the origin of a url."""
    import yarl

    parts = yarl.URL(url)
    return parts.scheme, parts.host, parts.port


def _session(kwargs: dict[str, Any], **more: Any) -> Any:
    import aiohttp
    from multidict import CIMultiDict

    by_origin: Headers = kwargs.pop("headers_by_origin", {})

    class Request(aiohttp.ClientRequest):
        """One request, also of a redirect: the url as it is written, and its host's headers."""

        def __init__(self, method: str, url: Any, **kwargs: Any) -> None:
            sent = sent_url(str(url))
            if own := by_origin.get(origin(sent)):
                headers = kwargs.get("headers") or {}
                kwargs["headers"] = CIMultiDict([*headers.items(), *own.items()])
            super().__init__(method, sent, **kwargs)

    # A server may stall, and a transfer may be long.
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=30)
    defaults: dict[str, Any] = {
        "timeout": timeout,
        "request_class": Request,
        "requote_redirect_url": False,
    }
    return aiohttp.ClientSession(**(defaults | kwargs), **more)
