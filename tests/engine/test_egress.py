"""Which addresses may be called: public ones, and what the operator allows on top."""

import socket
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.engine.egress import Egress, Network, Refused, refusal

REFUSED = [
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "10.255.255.255",
    "100.64.0.1",
    "100.127.255.255",
    "100.100.100.200",
    "127.0.0.1",
    "127.255.255.254",
    "168.63.129.16",
    "169.254.0.1",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.19.255.255",
    "198.51.100.7",
    "203.0.113.9",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::7f00:1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:a9fe:a9fe",
    "64:ff9b::127.0.0.1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::1",
    "100::1",
    "2001::1",
    "2001:1ff:ffff::1",
    "2001:db8::1",
    "2002:7f00:1::1",
    "2002:808:808::1",
    "3fff::1",
    "3fff:fff:ffff::1",
    "4000::1",
    "5f00::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
]
PUBLIC = [
    "1.1.1.1",
    "8.8.8.8",
    "9.255.255.255",
    "11.0.0.0",
    "100.63.255.255",
    "100.128.0.0",
    "126.255.255.255",
    "128.0.0.0",
    "168.63.129.15",
    "168.63.129.17",
    "172.15.255.255",
    "172.32.0.0",
    "192.0.1.0",
    "192.167.255.255",
    "192.169.0.0",
    "198.17.255.255",
    "198.20.0.0",
    "223.255.255.255",
    "::ffff:8.8.8.8",
    "64:ff9b::8.8.8.8",
    "2001:200::1",
    "2001:4860:4860::8888",
    "2003::1",
    "2606:4700:4700::1111",
    "2a00:1450::1",
    "3ffe:ffff::1",
]


@pytest.mark.parametrize("address", REFUSED)
def test_an_address_that_is_not_public_is_refused_with_a_remedy(address: str) -> None:
    assert refusal(address) == (
        f"{address} is not a public address; add it to RELAY_ALLOW_NETWORKS to allow it"
    )


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_may_be_called(address: str) -> None:
    assert refusal(address) is None


@pytest.mark.parametrize("address", ["", "localhost", "127.1", "0x7f000001", "2130706433", "127.0.0.1:80"])
def test_what_is_no_address_is_refused(address: str) -> None:
    assert refusal(address) == f"{address} is not an IP address"


@pytest.mark.parametrize(
    ("network", "inside", "outside"),
    [
        ("127.0.0.0/8", "127.0.0.1", "10.0.0.1"),
        ("10.1.0.0/16", "10.1.2.3", "10.2.0.1"),
        ("10.1.0.0/16", "::ffff:10.1.2.3", "::ffff:10.2.0.1"),
        ("10.1.0.0/16", "64:ff9b::10.1.2.3", "64:ff9b::10.2.0.1"),
        ("::ffff:0:0/96", "::ffff:10.1.2.3", "10.1.2.3"),
        ("::1/128", "::1", "127.0.0.1"),
        ("fd00::/8", "fd12::1", "fc00::1"),
        ("fe80::/10", "fe80::1%eth0", "fec0::1"),
        ("0.0.0.0/0", "169.254.169.254", "::1"),
    ],
)
def test_an_allowed_network_lets_through_what_is_inside_it_and_nothing_else(
    network: str, inside: str, outside: str
) -> None:
    allowed = [ip_network(network)]
    assert refusal(inside, allowed) is None
    assert refusal(outside, allowed) is not None


@pytest.mark.parametrize("network", ["10.0.0.0/8", "fd00::/8"])
def test_an_allowed_network_leaves_public_addresses_as_they_were(network: str) -> None:
    for address in PUBLIC:
        assert refusal(address, [ip_network(network)]) is None


@given(st.integers(0, 2**32 - 1))
def test_no_way_to_write_an_ipv4_address_changes_what_it_is(number: int) -> None:
    address = ip_address(number)
    public = refusal(str(address)) is None
    assert (refusal(f"::ffff:{address}") is None) == public
    assert (refusal(f"64:ff9b::{address}") is None) == public
    # Stricter than the standard library, never laxer.
    assert address.is_global or not public


@given(st.integers(0, 2**128 - 1))
def test_no_ipv6_address_is_public_that_the_standard_library_calls_private(number: int) -> None:
    address = ip_address(number)
    if refusal(str(address)) is None:
        assert address.is_global
        assert not address.is_multicast


def test_a_socket_is_made_only_for_an_address_that_may_be_called() -> None:
    allowed: tuple[Network, ...] = (ip_network("127.0.0.0/8"),)
    [info] = socket.getaddrinfo("127.0.0.1", 80, type=socket.SOCK_STREAM)
    with Egress(allowed).socket(info) as made:
        assert made.family == socket.AF_INET
        assert made.type == socket.SOCK_STREAM
    with pytest.raises(Refused, match=r"127\.0\.0\.1 is not a public address"):
        Egress().socket(info)
