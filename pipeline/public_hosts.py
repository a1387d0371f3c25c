"""Keep media uris away from private addresses: cluster services, cloud metadata, loopback.

The check sits where sockets are made, so redirects and names that resolve to such addresses meet it
too, and there is no moment between the check and the connection.
"""

import ipaddress
import socket
from typing import Any


class PrivateAddressError(OSError):
    """A media uri led to an address that is not public."""


_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_LOCAL_NAT64 = ipaddress.IPv6Network("64:ff9b:1::/48")


def is_public(address: str) -> bool:
    """Tell whether an IP address can be reached from the internet at large.

    Of IPv6 addresses that gateways translate to IPv4 (mapped, 6to4, NAT64: RFC 4291, 3056, 6052),
    what is inside counts too; those of a gateway of one's own (RFC 8215) are private.
    """
    found = ipaddress.ip_address(address)
    if isinstance(found, ipaddress.IPv6Address):
        nat64 = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF) if found in _NAT64 else None
        inner = found.ipv4_mapped or found.sixtofour or nat64
        if found in _LOCAL_NAT64 or (inner is not None and not inner.is_global):
            return False
    return found.is_global


def public_socket(addr_info: Any) -> socket.socket:
    """Make a socket for one resolved address, as aiohttp asks for it.

    Raises:
        PrivateAddressError: the address is not a public one.
    """
    family, kind, protocol, _, address = addr_info
    if not is_public(address[0]):
        raise PrivateAddressError(f"{address[0]} is a private address")
    return socket.socket(family, kind, protocol)


async def public_client(**kwargs: Any) -> Any:
    """Make fsspec's HTTP session; it connects to public addresses only."""
    import aiohttp

    connector = aiohttp.TCPConnector(socket_factory=public_socket)
    return aiohttp.ClientSession(connector=connector, **_with_timeouts(kwargs))


async def any_client(**kwargs: Any) -> Any:
    """Make fsspec's HTTP session; it connects anywhere."""
    import aiohttp

    return aiohttp.ClientSession(**_with_timeouts(kwargs))


def _with_timeouts(kwargs: dict[str, Any]) -> dict[str, Any]:
    """A server that stalls is noticed, however large the file is that it sends."""
    import aiohttp

    return {"timeout": aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=30)} | kwargs
