"""A claim as the bytes of the HTTP request that delivers it.

Rules of the QStash documentation: the method, the URL and the body go out as they were published, with the headers
that were forwarded and a few of the relay's own, which win over forwarded ones of the same name. Never sent on is
what belongs to one connection or frames one request: a stale Content-Length would cut the next body.

What cannot be written as a request is an `Outgoing` that says why, so that it becomes a failed attempt with a
sentence in the log and ends in the dead-letter queue.
"""

import base64
import re
from collections.abc import Callable
from functools import lru_cache
from operator import attrgetter
from urllib.parse import unquote_to_bytes

from msgspec import Struct

from relay.domain.delivery import Claim
from relay.domain.errors import Invalid, quoted
from relay.domain.message import METHODS, Headers
from relay.ids import text_of
from relay.wire.headers import NEVER_FORWARDED
from relay.wire.settings import FIELD_NAME
from relay.wire.target import parse_url


class Peer(Struct, frozen=True):
    """Whom a connection is made to. `host` is an ASCII name or an address without brackets."""

    host: str
    port: int
    tls: bool

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Route(Struct, frozen=True):
    """What a URL comes to: `lines` is the rest of the request line, and the Host header.

    `authorization` is the header that carries the credentials of a URL that has some, as browsers and curl do.
    """

    peer: Peer
    lines: str
    authorization: str | None = None


class Outgoing(Struct, frozen=True, kw_only=True):
    """Ready to send to `peer`: `head`, then `body`, which is empty when it already follows in `head`.

    With `problem` there is nothing to send, and this is why.
    """

    peer: Peer
    head: bytes
    body: bytes = b""
    problem: str | None = None


class Unsendable(ValueError):  # noqa: N818 - a finding, like `Invalid`
    """Why something cannot be sent, as a sentence for the log."""


_NOWHERE = Peer("", 0, False)

#: A smaller body is cheaper to copy behind its head than to write on its own.
_COPY_UP_TO_BYTES = 32 << 10

_ALWAYS_OURS = frozenset({"upstash-signature", "upstash-message-id", "upstash-retried", "upstash-region"})
#: Ours when the message came through that door; otherwise a forwarded one passes.
_OURS_WHEN_SET: dict[str, Callable[[object], str | None]] = {
    "upstash-topic-name": attrgetter("url_group"),
    "upstash-schedule-id": attrgetter("schedule_id"),
    "upstash-caller-ip": attrgetter("caller_ip"),
}
_OURS_WHEN_SIGNED = frozenset({"webhook-id", "webhook-timestamp", "webhook-signature"})
_SIZED_WHEN_EMPTY = frozenset({"POST", "PUT", "PATCH"})

#: A URL as `parse_url` leaves it. The path is everything behind the authority, "" and "?query" included.
_URL = re.compile(r"(https?)://(?:([^/?#]*)@)?(\[[^\]]*\]|[^:/?#]*)(?::([0-9]+))?(.*)")


def outgoing(claim: Claim, signatures: Headers, *, region: str) -> Outgoing:
    """The request of one attempt. `signatures` are the headers that sign it, made for this attempt.

    Forwarded headers of Standard Webhooks pass on where they are not ours: then they are somebody else's signature.
    """
    try:
        return _build(claim, signatures, region)
    except Unsendable as problem:
        return Outgoing(peer=_NOWHERE, head=b"", problem=str(problem))


@lru_cache(maxsize=1024)
def _route(url: str) -> Route:
    """Where a request to `url` goes; raises `Unsendable` for what cannot be called."""
    try:
        parts = _URL.fullmatch(parse_url(url, "url"))
    except Invalid as problem:
        raise Unsendable(str(problem)) from None
    assert parts is not None
    scheme, credentials, host, port_text, path = parts.groups()
    host = host.lower()
    default_port = 443 if scheme == "https" else 80
    port = int(port_text or default_port)
    if not path.startswith("/"):
        path = "/" + path
    authorization = None
    if credentials is not None:
        authorization = f"Authorization: Basic {base64.b64encode(unquote_to_bytes(credentials)).decode()}"
    return Route(
        peer=Peer(host.strip("[]"), port, scheme == "https"),
        lines=f" {path} HTTP/1.1\r\nHost: {host}" + ("" if port == default_port else f":{port}"),
        authorization=authorization,
    )


def _build(claim: Claim, signatures: Headers, region: str) -> Outgoing:
    message = claim.message
    request = message.request
    method = request.method
    if method not in METHODS:
        raise Unsendable(f"the method is none of {', '.join(sorted(METHODS))}: {quoted(method)}")
    route = _route(request.url)
    lines = [method + route.lines]
    origin = message.origin
    user_agent = "User-Agent: Upstash-QStash"
    authorization = route.authorization
    for name, value in request.headers:
        field = _forwarded(name)
        if not field:
            continue
        if field == "user-agent":
            user_agent = f"{name}: {value}"
            continue
        if field in _OURS_WHEN_SIGNED and any(field == ours for ours, _ in signatures):
            continue
        if field == "authorization":
            authorization = None
        elif field in _OURS_WHEN_SET and _OURS_WHEN_SET[field](origin) is not None:
            continue
        lines.append(f"{name}: {value}")
    lines.append(user_agent)
    if authorization is not None:
        lines.append(authorization)
    for name, value in signatures:
        lines.append(f"{name}: {value}")
    lines.append(f"Upstash-Message-Id: {text_of('msg_', message.id)}")
    lines.append(f"Upstash-Retried: {claim.retried}")
    if origin.url_group is not None:
        lines.append(f"Upstash-Topic-Name: {origin.url_group}")
    if origin.schedule_id is not None:
        lines.append(f"Upstash-Schedule-Id: {origin.schedule_id}")
    if origin.caller_ip is not None:
        lines.append(f"Upstash-Caller-Ip: {origin.caller_ip}")
    lines.append(f"upstash-region: {region}")
    body = request.body
    if body or method in _SIZED_WHEN_EMPTY:
        lines.append(f"Content-Length: {len(body)}")
    lines.append("\r\n")
    text = "\r\n".join(lines)
    # Publishing refuses such values; should one come through another door, it still cannot become a header.
    # Line ends we wrote: one between lines, one more in the first (after the request line) and in the last.
    if text.count("\r") != len(lines) + 1 or text.count("\n") != len(lines) + 1 or "\0" in text:
        raise Unsendable("a header holds a line break or a NUL character, which HTTP has no way to send")
    head = _bytes_of(text)
    if len(body) > _COPY_UP_TO_BYTES:
        return Outgoing(peer=route.peer, head=head, body=body)
    return Outgoing(peer=route.peer, head=head + body)


@lru_cache(maxsize=1024)
def _forwarded(name: str) -> str:
    """The field's name in lower case, or "" for one that is not sent on; raises `Unsendable` for no name at all."""
    if FIELD_NAME.fullmatch(name) is None:
        raise Unsendable(f"{quoted(name)} is not a header name")
    field = name.lower()
    return "" if field in NEVER_FORWARDED or field in _ALWAYS_OURS else field


def _bytes_of(text: str) -> bytes:
    """The bytes that publishers sent: read as UTF-8, with a lone surrogate for each byte that is not."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise Unsendable("a header holds half a character, which has no bytes") from None
