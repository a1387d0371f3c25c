"""Keep media uris away from private addresses: cluster services, cloud metadata, loopback.

The check is made where a socket is opened, so that it holds for redirects and for names that
resolve to private addresses, and nothing can change between the check and the connection.
"""

import ipaddress
import socket
from typing import Any


class PrivateAddressError(OSError):
    """A media uri led to an address that is not public."""


_PRIVATE_V4 = tuple(
    ipaddress.IPv4Network(network)
    for network in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16"),
        *("172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.168.0.0/16"),
        *("198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24"),
        "192.88.99.0/24",  # relays of 6to4
        "168.63.129.16/32",  # a service that Azure shows to its virtual machines
        "224.0.0.0/3",  # multicast and reserved
    )
)
_PUBLIC_V6 = ipaddress.IPv6Network("2000::/3")  # all that is assigned to hosts of the internet
_PRIVATE_V6 = tuple(
    ipaddress.IPv6Network(network)
    for network in (
        "2001::/23",  # of protocols, such as Teredo, ORCHID and benchmarks
        "2002::/16",  # 6to4, which leads to an IPv4 address
        *("2001:db8::/32", "3fff::/20"),  # documentation
    )
)
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet.

    Python's ``is_global`` also says so of multicast, of tunnels to private addresses (6to4, NAT64),
    of site-local addresses and of a cloud's services. An IPv6 address that only carries an IPv4
    address (mapped, NAT64: RFC 4291, 6052) is public if that one is.

    Source: IANA's registries of special-purpose addresses.
    """
    found = ipaddress.ip_address(address)
    if isinstance(found, ipaddress.IPv6Address):
        plain = ipaddress.IPv6Address(int(found))  # without the name of an interface
        if plain.ipv4_mapped is None and plain not in _NAT64:
            return plain in _PUBLIC_V6 and not any(plain in network for network in _PRIVATE_V6)
        found = ipaddress.IPv4Address(int(plain) & 0xFFFFFFFF)
    return not any(found in network for network in _PRIVATE_V4)


def public_socket(addr_info: Any) -> socket.socket:
    """Make a socket for one resolved address; a ``socket_factory`` of aiohttp.

    Raises:
        PrivateAddressError: the address is not a public one.
    """
    family, kind, protocol, _, address = addr_info
    if not is_public(address[0]):
        raise PrivateAddressError(f"{address[0]} is a private address")
    return socket.socket(family, kind, protocol)
