"""Which addresses the relay may call.

Whoever can publish chooses where requests go, and the relay stands inside a network they may not reach. So every
address is judged at the moment a socket for it is made: after DNS, after rebinding, and for literals, which never
see a resolver. (That these are judged when they are published, too, is a courtesy to the publisher.) A proxy would
make this blind, so the relay uses none.

The lists are our own. `ipaddress.is_global` calls multicast, NAT64, 6to4 and cloud metadata addresses global, and
changes between patch releases of Python.
"""

import socket
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

Network = IPv4Network | IPv6Network

#: IANA's special-purpose registry without what is globally reachable; 168.63.129.16 is Azure's host agent.
_REFUSED_V4 = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "168.63.129.16/32",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/3",
    )
)
#: All that has been given out to the public so far, without the parts that tunnel elsewhere or are for examples.
_PUBLIC_V6 = IPv6Network("2000::/3")
_REFUSED_V6 = tuple(
    IPv6Network(network) for network in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")
)
#: IPv6 addresses that are an IPv4 address in their last four bytes: mapped, and translated by NAT64.
_HOLDS_V4 = (IPv6Network("::ffff:0:0/96"), IPv6Network("64:ff9b::/96"))


class Refused(OSError):  # noqa: N818 - what was decided, not what went wrong
    """The address may not be called; the text is the sentence for the log."""


class Egress:
    """Public addresses, and those inside `allow_networks`."""

    def __init__(self, allow_networks: Iterable[Network] = ()) -> None:
        #: Why an address may not be called, None when it may.
        self.refusal: Callable[[str], str | None] = lru_cache(maxsize=1024)(
            partial(refusal, allowed=tuple(allow_networks))
        )

    def socket(
        self, info: tuple[int | socket.AddressFamily, int | socket.SocketKind, int, str, tuple[object, ...]]
    ) -> socket.socket:
        """A socket for one entry of `getaddrinfo`; raises `Refused` for an address that may not be called."""
        family, kind, protocol, _, address = info
        reason = self.refusal(str(address[0]))
        if reason is not None:
            raise Refused(reason)
        return socket.socket(family, kind, protocol)


def refusal(address: str, allowed: Iterable[Network] = ()) -> str | None:
    """Why `address` may not be called, as a sentence; None when it may.

    An IPv4 address inside an IPv6 one is judged as the IPv4 address it leads to. `allowed` may name either.
    """
    try:
        literal = ip_address(address)
    except ValueError:
        return f"{address} is not an IP address"
    target = _target(literal)
    if _is_public(target) or any(literal in network or target in network for network in allowed):
        return None
    return f"{address} is not a public address; add it to RELAY_ALLOW_NETWORKS to allow it"


def _target(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    if isinstance(address, IPv6Address) and any(address in network for network in _HOLDS_V4):
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address


def _is_public(address: IPv4Address | IPv6Address) -> bool:
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _REFUSED_V4)
    return address in _PUBLIC_V6 and not any(address in network for network in _REFUSED_V6)
