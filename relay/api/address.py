"""Where a request came from."""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address


@lru_cache(maxsize=4096)
def address_text(peer: str) -> str | None:
    """A peer's address as it is shown, an IPv4 one never in its IPv6 clothes; None for what is none."""
    address = _address_of(peer)
    return None if address is None else str(address)


def caller_ip(
    peer: str | None, forwarded_for: Iterable[str], trusted: Sequence[IPv4Network | IPv6Network]
) -> str | None:
    """The address of the caller: the peer's, or what trusted proxies say in X-Forwarded-For.

    Every proxy appends the address it saw, so the list is read from its end and the first address that is not
    a trusted proxy's is the caller's; what stands before it anyone may have written. None when the peer has no
    address (a unix socket).
    """
    address = _address_of(peer or "")
    if address is None:
        return None
    if trusted and _is_in(address, trusted):
        hops = [hop for value in forwarded_for for hop in value.split(",")]
        for hop in reversed(hops):
            seen = _address_of(hop.strip())
            if seen is None:
                break
            address = seen
            if not _is_in(seen, trusted):
                break
    return str(address)


def _is_in(address: IPv4Address | IPv6Address, networks: Sequence[IPv4Network | IPv6Network]) -> bool:
    return any(address in network for network in networks)


def _address_of(text: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address
