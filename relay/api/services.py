"""Everything the endpoints need of the rest of the relay."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from typing import Protocol

from relay.api.auth import Authenticator
from relay.api.bodies import Bodies
from relay.api.refusals import Refusals
from relay.clock import Clock
from relay.domain.errors import Unavailable
from relay.domain.message import Message, TenantId
from relay.domain.tenant import Limits
from relay.ids import Ids
from relay.log import Log
from relay.wire.target import Refusal
from storage.protocol import Archive, Catalog, Gates, Inbox, Receipt, Schedules, UrlGroups


class Publisher(Protocol):
    """The door to the road of a message."""

    async def publish(self, messages: Sequence[Message]) -> Sequence[Receipt]:
        """Durable when it returns, all or none; `Unavailable` when nothing was accepted. Receipts in order."""
        ...


class Store(Inbox, Schedules, UrlGroups, Gates, Catalog, Archive, Protocol):
    """The roles of storage that answer requests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """`alive` lists who does not answer of the processes that are this relay, `ready` what keeps it from working,
    both as sentences; `metrics` is the Prometheus text; `limits` are the relay's own, and those of a caller may
    differ; `generate_key` makes a fresh signing key; `keys_changed` is told whose keys were rotated, and
    `schedules_changed` that a tick may be earlier than the scheduler believes. `trusted_proxies` are the peers
    whose X-Forwarded-For is believed; `refusal` says why an IP address may not be called, None when it may; `walk`
    bounds the rows of history that one search of them looks at. Once `stopping`, nothing is written any more, and
    every answer is the last of its connection."""

    storage: Store
    publisher: Publisher
    authenticator: Authenticator
    bodies: Bodies
    clock: Clock
    ids: Ids
    limits: Limits
    log: Log
    refusals: Refusals
    alive: Callable[[], Awaitable[Sequence[str]]]
    ready: Callable[[], Awaitable[Sequence[str]]]
    metrics: Callable[[], Awaitable[bytes]]
    generate_key: Callable[[], str]
    keys_changed: Callable[[TenantId], None] = lambda tenant: None
    schedules_changed: Callable[[], None] = lambda: None
    stopping: Callable[[], bool] = lambda: False
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...] = ()
    walk: int = 50_000
    refusal: Refusal = lambda address: None

    def refuse_when_stopping(self) -> None:
        """Raises `Unavailable`: another relay, or this one when it is back, will take what is to be written."""
        if self.stopping():
            raise Unavailable("the relay is stopping")
