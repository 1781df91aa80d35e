"""What the endpoints read off a request besides its body."""

from collections.abc import Iterable, Sequence
from urllib.parse import parse_qsl

from aiohttp import web

from relay.api.address import address_text, caller_ip
from relay.api.services import Services
from relay.domain.errors import Invalid
from relay.wire.target import Kind, Target


def headers_of(request: web.Request) -> Sequence[tuple[str, str]]:
    return tuple(request.headers.items())


def query_of(raw_query: str) -> Sequence[tuple[str, str]]:
    """The decoded parameters of a query; bytes that are not UTF-8 become a character that matches nothing."""
    return parse_qsl(raw_query, keep_blank_values=True)


def caller_address(services: Services, peer_ip: str | None, headers: Iterable[tuple[str, str]]) -> str | None:
    if not services.trusted_proxies:
        return address_text(peer_ip or "")
    forwarded_for = [value for name, value in headers if name.lower() == "x-forwarded-for"]
    return caller_ip(peer_ip, forwarded_for, services.trusted_proxies)


def single_destination(target: Target) -> str:
    """The URL; raises `Invalid` for what this version cannot resolve."""
    if target.kind is not Kind.URL:
        raise Invalid(
            "destination",
            f"{target.destination} has no http:// or https://, and URL groups are not offered by this version",
        )
    return target.destination
