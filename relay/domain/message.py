"""What is to be sent, and on what terms: written once when a publish is accepted, never changed after."""

from collections.abc import Callable, Iterable
from hashlib import sha256
from typing import NewType

from msgspec import Struct

TenantId = NewType("TenantId", int)
MessageId = NewType("MessageId", int)

#: A fresh number for something that happens at the given instant (Unix ms): unique, and no smaller than any number
#: of an earlier instant.
NextId = Callable[[int], int]

#: Header fields in the order they were given; a repeated field is one combined value, as the sender wrote it.
Headers = tuple[tuple[str, str], ...]

METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE"})


class Request(Struct, frozen=True, kw_only=True):
    """One HTTP request to a destination. `timeout_ms` caps one attempt; None means the tenant's maximum."""

    url: str
    method: str = "POST"
    headers: Headers = ()
    body: bytes = b""
    timeout_ms: int | None = None


class RetryPolicy(Struct, frozen=True, kw_only=True):
    """Attempts = 1 + `max_retries`. `delay` is the expression as published; None means the default curve."""

    max_retries: int = 3
    delay: str | None = None


class FlowControl(Struct, frozen=True, kw_only=True):
    """The limits a message brings for its flow-control key; a limit that was not given is None."""

    key: str
    parallelism: int | None = None
    rate: int | None = None
    period_ms: int = 1000


class Redaction(Struct, frozen=True, kw_only=True):
    """What the API must not show. `header_names` are lower case; `headers` hides all of them."""

    body: bool = False
    headers: bool = False
    header_names: tuple[str, ...] = ()


class Callback(Struct, frozen=True, kw_only=True):
    """A message about a message: where the outcome is reported, and on what terms that report is sent.

    `max_retries` None: the source message's. `failure_callback` is the failure callback of the callback itself.
    """

    url: str
    method: str = "POST"
    headers: Headers = ()
    timeout_ms: int | None = None
    max_retries: int | None = None
    retry_delay: str | None = None
    flow: FlowControl | None = None
    callback: "Callback | None" = None
    failure_callback: "Callback | None" = None


class Origin(Struct, frozen=True, kw_only=True):
    """Which door a message came through; every part is shown to clients only when it is set."""

    caller_ip: str | None = None
    url_group: str | None = None
    endpoint: str | None = None
    schedule_id: str | None = None
    queue: str | None = None
    #: The message this one is a callback of.
    source: MessageId | None = None


class Message(Struct, frozen=True, kw_only=True):
    """One request to one destination, with everything that decides how it is sent.

    `not_before` is the earliest instant of the first attempt; it equals `created_at` when nothing was delayed.
    `dedup_key` is scoped to the tenant: while an earlier message with the same key is inside its window,
    publishing this one answers with that message instead.
    """

    id: MessageId
    tenant: TenantId
    created_at: int
    not_before: int
    request: Request
    retry: RetryPolicy
    origin: Origin = Origin()
    labels: tuple[str, ...] = ()
    flow: FlowControl | None = None
    callback: Callback | None = None
    failure_callback: Callback | None = None
    redaction: Redaction | None = None
    dedup_key: bytes | None = None
    #: The message this is a callback of, if that has a lane of a queue: which is not free before this is finished.
    lane_of: MessageId | None = None


def explicit_dedup_key(deduplication_id: str, endpoint_url: str | None = None) -> bytes:
    """The key of a message that named its own deduplication id.

    The id alone decides, whatever the destination; with a URL group, `endpoint_url` makes it one decision for
    each endpoint.
    """
    return _digest(b"id", (deduplication_id.encode(errors="surrogateescape"), (endpoint_url or "").encode()))


def content_dedup_key(request: Request) -> bytes:
    """The key of a content-deduplicated message: destination, body, content type and forwarded headers.

    Rule: the deduplication guide of the QStash documentation. The method is part of the request but not of
    the rule, so it does not count.
    """
    fields = sorted((name.lower(), value) for name, value in request.headers)
    parts = [request.url.encode(), request.body]
    parts += [part.encode(errors="surrogateescape") for field in fields for part in field]
    return _digest(b"content", parts)


def _digest(kind: bytes, parts: Iterable[bytes]) -> bytes:
    digest = sha256(kind)
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.digest()[:16]
