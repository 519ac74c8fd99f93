"""Which addresses are public, by a table of our own.

The table has the ranges of IANA's registries of special-purpose addresses: those of RFC 6890, and later ones of RFC
7343 (2001:20::/28), RFC 8215 (64:ff9b:1::/48), RFC 9602 (5f00::/16) and RFC 9637 (3fff::/20). It has all ranges of the
module `ipaddress` of Python 3.13, and does not depend on the Python that runs. No provider is in any of these ranges,
so all of them are refused, even the few that are globally reachable (AS112, AMT, the anycast addresses of
192.0.0.0/24).
"""

from __future__ import annotations

import ipaddress
from typing import Final

_SPECIAL_IPV4: Final = tuple(
    map(
        ipaddress.IPv4Network,
        (
            "0.0.0.0/8",  # this network
            "10.0.0.0/8",  # private use
            "100.64.0.0/10",  # shared by the customers of a carrier
            "127.0.0.0/8",  # loopback
            "169.254.0.0/16",  # link-local
            "172.16.0.0/12",  # private use
            "192.0.0.0/24",  # protocol assignments
            "192.0.2.0/24",  # documentation
            "192.31.196.0/24",  # AS112
            "192.52.193.0/24",  # AMT
            "192.88.99.0/24",  # relays of 6to4, deprecated
            "192.168.0.0/16",  # private use
            "192.175.48.0/24",  # AS112
            "198.18.0.0/15",  # benchmarks
            "198.51.100.0/24",  # documentation
            "203.0.113.0/24",  # documentation
            "224.0.0.0/4",  # multicast
            "240.0.0.0/4",  # reserved, and broadcast
        ),
    )
)
_GLOBAL_UNICAST: Final = ipaddress.IPv6Network("2000::/3")  # all that IANA assigns to hosts on the internet
_SPECIAL_IPV6: Final = tuple(
    map(
        ipaddress.IPv6Network,
        (
            "2001::/23",  # protocol assignments, Teredo and ORCHID among them
            "2001:db8::/32",  # documentation
            "2002::/16",  # 6to4
            "2620:4f:8000::/48",  # AS112
            "3fff::/20",  # documentation
        ),
    )
)
# Addresses whose last 32 bits are the IPv4 address that is reached: IPv4-mapped, and NAT64 (RFC 6052).
_STANDS_FOR_IPV4: Final = (ipaddress.IPv6Network("::ffff:0:0/96"), ipaddress.IPv6Network("64:ff9b::/96"))


def is_public(address: str) -> bool:
    """Tell whether an address is a unicast address of the public internet."""
    parsed = ipaddress.ip_address(address)
    if isinstance(parsed, ipaddress.IPv6Address):
        if not any(parsed in network for network in _STANDS_FOR_IPV4):
            return parsed in _GLOBAL_UNICAST and not any(parsed in network for network in _SPECIAL_IPV6)
        parsed = ipaddress.IPv4Address(parsed.packed[-4:])
    return not any(parsed in network for network in _SPECIAL_IPV4)
