"""Keep media uris away from private addresses: cluster services, cloud metadata, loopback.

The check is made where a socket is opened, so that it holds for redirects and for names that
resolve to private addresses, and nothing can change between the check and the connection.
"""

import ipaddress
import socket
from typing import Any


class PrivateAddressError(OSError):
    """A media uri led to an address that is not public."""


_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_LOCAL_NAT64 = ipaddress.IPv6Network("64:ff9b:1::/48")


def is_public(address: str) -> bool:
    """Whether an IP address is a public one.

    An IPv6 address that a gateway translates to IPv4 (mapped, 6to4, NAT64: RFC 4291, 3056, 6052)
    is public if the IPv4 address is too; the addresses of a local gateway (RFC 8215) are private.
    """
    found = ipaddress.ip_address(address)
    if isinstance(found, ipaddress.IPv6Address):
        nat64 = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF) if found in _NAT64 else None
        inner = found.ipv4_mapped or found.sixtofour or nat64
        if found in _LOCAL_NAT64 or (inner is not None and not inner.is_global):
            return False
    return found.is_global


def public_socket(addr_info: Any) -> socket.socket:
    """Make a socket for one resolved address; a ``socket_factory`` of aiohttp.

    Raises:
        PrivateAddressError: the address is not a public one.
    """
    family, kind, protocol, _, address = addr_info
    if not is_public(address[0]):
        raise PrivateAddressError(f"{address[0]} is a private address")
    return socket.socket(family, kind, protocol)
