"""What the endpoints read off a request besides its body."""

from collections.abc import Collection, Iterable, Sequence
from urllib.parse import parse_qsl

from aiohttp import web

from relay.api.address import address_text, caller_ip
from relay.api.auth import Caller
from relay.api.services import Services
from relay.domain.errors import Invalid, NotFound, OverLimit, RelayError, TooLarge, quoted
from relay.domain.message import Message, MessageId
from relay.domain.publish import Draft, message_of
from relay.domain.url_group import UrlGroup, fan_out
from relay.wire.target import Kind, Target, refuse_address
from relay.wire.texts import is_storable, storable


def headers_of(request: web.Request) -> Sequence[tuple[str, str]]:
    return tuple(request.headers.items())


def query_of(raw_query: str) -> Sequence[tuple[str, str]]:
    """The decoded parameters of a query; bytes that are not UTF-8 become a character that matches nothing.

    Raises `Invalid` for what no value can be.
    """
    given = parse_qsl(raw_query, keep_blank_values=True)
    for name, value in given:
        storable(value, name if is_storable(name) else quoted(name))
    return given


def caller_address(services: Services, peer_ip: str | None, headers: Iterable[tuple[str, str]]) -> str | None:
    if not services.trusted_proxies:
        return address_text(peer_ip or "")
    forwarded_for = [value for name, value in headers if name.lower() == "x-forwarded-for"]
    return caller_ip(peer_ip, forwarded_for, services.trusted_proxies)


async def destination_of(services: Services, caller: Caller, target: Target) -> str | UrlGroup:
    """The URL, or the URL group as it is now; raises what `unknown_destination` says when there is none."""
    if target.kind is Kind.URL:
        refuse_address(target.destination, "destination", services.refusal)
        return target.destination
    group = await services.storage.url_group(caller.tenant, target.destination)
    if group is None:
        raise unknown_destination(target.destination)
    return group


def unknown_destination(name: str) -> RelayError:
    """What is wrong with a name that no URL group has. With a dot in it, it is a URL that lacks its beginning."""
    problem = f"{quoted(name)} has no http:// or https://, and a URL group of that name was"
    if "." in name:
        return Invalid("destination", f"{problem} not found")
    return NotFound(f"destination: {problem}")


class QueueRoom:
    """Which queues messages may go to: those there are, and as many new ones as the account may still have."""

    def __init__(self, known: Collection[str], *, room: int, limit: int) -> None:
        self._known = set(known)
        self._room = room
        self._limit = limit

    def require(self, name: str) -> None:
        """Raises `OverLimit` for a queue that would be one too many."""
        if name in self._known:
            return
        if self._room <= 0:
            raise OverLimit("queues", f"there are {self._limit} already, which is the maximum")
        self._known.add(name)
        self._room -= 1


async def queue_room(services: Services, caller: Caller, names: Collection[str]) -> QueueRoom:
    """The room for messages to these queues. They are made when the messages are accepted, so what is accepted at
    the same instant may be more than the limit by that much."""
    limit = services.limits.max_queues
    if len(names) <= 1:
        known = [name for name in names if await services.storage.queue(caller.tenant, name) is not None]
        if len(known) == len(names):
            return QueueRoom(known, room=0, limit=limit)
    queues = [queue.name or "" for queue in await services.storage.queues(caller.tenant)]
    return QueueRoom(queues, room=limit - len(queues), limit=limit)


def messages_of(
    services: Services, caller: Caller, draft: Draft, to: str | UrlGroup, now: int
) -> tuple[Message, ...]:
    """What a draft becomes: one message, or one for each endpoint of the group. Raises `TooLarge`."""
    drafts: Sequence[Draft] = (draft,)
    if isinstance(to, UrlGroup):
        drafts = fan_out(draft, to)
        if len(drafts) * len(draft.request.body) > caller.limits.max_batch_bytes:
            raise TooLarge(
                f"the message body, once for each endpoint of {to.name},", caller.limits.max_batch_bytes
            )
    return tuple(
        [
            message_of(one, tenant=caller.tenant, id=MessageId(services.ids.next(now)), now=now)
            for one in drafts
        ]
    )
