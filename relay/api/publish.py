"""Publishing: one message, now or in its turn in a queue, or a batch of them."""

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, NamedTuple

import msgspec
import orjson
from aiohttp import web
from msgspec.structs import replace

from relay.api.answer import Answer, json_answer
from relay.api.auth import Caller
from relay.api.incoming import (
    QueueRoom,
    caller_address,
    destination_of,
    headers_of,
    messages_of,
    queue_room,
    unknown_destination,
)
from relay.api.schedules import put as put_schedule
from relay.api.services import Services
from relay.domain.errors import Invalid, OverLimit, RelayError, TooLarge
from relay.domain.message import Message
from relay.domain.url_group import UrlGroup
from relay.wire.headers import parse_draft
from relay.wire.json import Json, receipt_json
from relay.wire.target import (
    Kind,
    Target,
    parse_destination,
    queue_name,
    refuse_address,
    split_queue,
    split_target,
)
from storage.protocol import Receipt

#: What stands before the destination in the raw request target.
PREFIX = "/v2/publish/"
#: What stands before the name of the queue.
ENQUEUE_PREFIX = "/v2/enqueue/"
_CRON = "upstash-cron"

#: Items of one batch: as many as are read in a fraction of a second.
MAX_BATCH_ITEMS = 10_000
#: Items read before others get a turn on the event loop.
_STRETCH = 50


class BatchItem(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    destination: str
    headers: dict[str, str] | None = None
    body: str | None = None
    queue: str | None = None


_BATCH: msgspec.json.Decoder[list[BatchItem]] = msgspec.json.Decoder(
    Annotated[list[BatchItem], msgspec.Meta(max_length=MAX_BATCH_ITEMS)]
)


async def create(services: Services, caller: Caller, request: web.Request) -> Answer:
    body = await services.bodies.read(request, caller.limits.max_message_bytes, "the message body")
    return await publish(services, caller, request.raw_path, headers_of(request), body, request.remote)


async def publish(
    services: Services,
    caller: Caller,
    raw_target: str,
    headers: Iterable[tuple[str, str]],
    body: bytes,
    peer_ip: str | None,
    *,
    prefix: str = PREFIX,
    queue: str | None = None,
) -> Answer:
    """Publish what a request describes, to one URL or to a URL group; with Upstash-Cron, create a schedule instead.

    `prefix` stands before the destination in the target; `queue` is where the message waits its turn.
    Needs no more of the request than these values, so that it can be called before there is a router. The caller
    may write, as `Caller.require_write` says. Raises `RelayError`.
    """
    headers = tuple(headers)
    target = split_target(raw_target, prefix)
    caller_ip = caller_address(services, peer_ip, headers)
    if any(name.lower() == _CRON for name, _ in (*headers, *target.config)):
        return await put_schedule(services, caller, target, headers, body, caller_ip, queue=queue)
    to = await destination_of(services, caller, target)
    now = services.clock.now()
    draft = parse_draft(
        headers,
        to=to,
        body=body,
        caller_ip=caller_ip,
        now=now,
        limits=caller.limits,
        refusal=services.refusal,
        config=target.config,
        authorization_is_ours=caller.authorization_is_ours,
    )
    if queue is not None:
        (await queue_room(services, caller, {queue})).require(queue)
        draft = replace(draft, queue=queue)
    messages = messages_of(services, caller, draft, to, now)
    receipts = await services.publisher.publish(messages)
    published = _published_json(messages, iter(receipts))
    return json_answer(
        published[0] if isinstance(to, str) else published,
        status=202 if all(receipt.deduplicated for receipt in receipts) else 200,
    )


async def enqueue(services: Services, caller: Caller, request: web.Request) -> Answer:
    body = await services.bodies.read(request, caller.limits.max_message_bytes, "the message body")
    queue, prefix = split_queue(request.raw_path, ENQUEUE_PREFIX)
    return await publish(
        services,
        caller,
        request.raw_path,
        headers_of(request),
        body,
        request.remote,
        prefix=prefix,
        queue=queue,
    )


async def create_batch(services: Services, caller: Caller, request: web.Request) -> Answer:
    body = await services.bodies.read(request, caller.limits.max_batch_bytes, "the batch")
    return await publish_batch(services, caller, headers_of(request), body, request.remote)


async def publish_batch(
    services: Services,
    caller: Caller,
    headers: Iterable[tuple[str, str]],
    body: bytes,
    peer_ip: str | None,
) -> Answer:
    """Publish what can be accepted, in one step, with an error in the place of each other item.

    When nothing can be, the answer is that of the first item's error.
    """
    items = _items_of(body)
    caller_ip = caller_address(services, peer_ip, headers)
    targets = await _targets_of(items)
    groups = await _groups_of(services, caller, targets)
    queues = {
        item.queue
        for item, target in zip(items, targets, strict=True)
        if item.queue is not None and isinstance(target, Target)
    }
    rooms = await queue_room(services, caller, queues)
    now = services.clock.now()
    outcomes: list[_Accepted | RelayError] = []
    room = _Room(max_messages=MAX_BATCH_ITEMS, max_bytes=caller.limits.max_batch_bytes)
    for index, (item, target) in enumerate(zip(items, targets, strict=True), start=1):
        try:
            accepted = _accepted(services, caller, item, target, groups, rooms, caller_ip, now)
            room.take(accepted.messages)
            outcomes.append(accepted)
        except RelayError as error:
            outcomes.append(error)
        if index % _STRETCH == 0:
            await asyncio.sleep(0)
    messages = [
        message for outcome in outcomes if not isinstance(outcome, RelayError) for message in outcome.messages
    ]
    if outcomes and not messages:
        raise next(outcome for outcome in outcomes if isinstance(outcome, RelayError))
    receipts = iter(await services.publisher.publish(messages) if messages else ())
    return json_answer([_outcome_json(outcome, receipts) for outcome in outcomes])


class _Accepted(NamedTuple):
    """What an item becomes; `several` when it went to a URL group, however many endpoints that has."""

    messages: Sequence[Message]
    several: bool


class _Room:
    """What is left of the bounds of a batch: through URL groups, a short one may ask for very much."""

    def __init__(self, *, max_messages: int, max_bytes: int) -> None:
        self._max_messages = self._messages = max_messages
        self._max_bytes = self._bytes = max_bytes

    def take(self, messages: Sequence[Message]) -> None:
        """Raises `OverLimit` or `TooLarge` for what no longer fits; then nothing is taken."""
        size = sum([len(message.request.body) for message in messages])
        if len(messages) > self._messages:
            raise OverLimit(
                "destination", f"is one too many: a batch has at most {self._max_messages} messages"
            )
        if size > self._bytes:
            raise TooLarge("the batch, each body once for each endpoint of a URL group,", self._max_bytes)
        self._messages -= len(messages)
        self._bytes -= size


def _items_of(body: bytes) -> Sequence[BatchItem]:
    try:
        return _BATCH.decode(body)
    except msgspec.ValidationError as problem:
        raise Invalid("body", f"is not a batch: {problem}") from None
    except UnicodeDecodeError:
        raise Invalid("body", "is not a batch: it is not UTF-8") from None
    except msgspec.DecodeError as problem:
        raise Invalid("body", f"is not a batch: {_flaw(body) or problem}") from None


def _flaw(body: bytes) -> str | None:
    """What is wrong with JSON, and where: msgspec takes half a surrogate pair for an early end."""
    try:
        orjson.loads(body)
    except orjson.JSONDecodeError as problem:
        return str(problem)
    return None


async def _targets_of(items: Sequence[BatchItem]) -> Sequence[Target | RelayError]:
    targets: list[Target | RelayError] = []
    for index, item in enumerate(items, start=1):
        try:
            if item.queue is not None:
                queue_name(item.queue, "queue")
            targets.append(parse_destination(item.destination))
        except RelayError as error:
            targets.append(error)
        if index % _STRETCH == 0:
            await asyncio.sleep(0)
    return targets


async def _groups_of(
    services: Services, caller: Caller, targets: Iterable[Target | RelayError]
) -> Mapping[str, UrlGroup]:
    """Those of the URL groups that exist, by name."""
    names = {
        target.destination
        for target in targets
        if isinstance(target, Target) and target.kind is Kind.URL_GROUP
    }
    if not names:
        return {}
    return {group.name: group for group in await services.storage.url_groups(caller.tenant, names)}


def _accepted(
    services: Services,
    caller: Caller,
    item: BatchItem,
    target: Target | RelayError,
    groups: Mapping[str, UrlGroup],
    rooms: QueueRoom,
    caller_ip: str | None,
    now: int,
) -> _Accepted:
    if isinstance(target, RelayError):
        raise target
    to: str | UrlGroup = target.destination
    if target.kind is Kind.URL_GROUP:
        if target.destination not in groups:
            raise unknown_destination(target.destination)
        to = groups[target.destination]
    else:
        refuse_address(target.destination, "destination", services.refusal)
    draft = parse_draft(
        (item.headers or {}).items(),
        to=to,
        body=(item.body or "").encode(),
        caller_ip=caller_ip,
        now=now,
        limits=caller.limits,
        refusal=services.refusal,
    )
    if item.queue is not None:
        rooms.require(item.queue)
        draft = replace(draft, queue=item.queue)
    return _Accepted(messages_of(services, caller, draft, to, now), several=not isinstance(to, str))


def _outcome_json(outcome: _Accepted | RelayError, receipts: Iterator[Receipt]) -> Json | list[Json]:
    if isinstance(outcome, RelayError):
        return {"error": str(outcome)}
    published = _published_json(outcome.messages, receipts)
    return published if outcome.several else published[0]


def _published_json(messages: Sequence[Message], receipts: Iterator[Receipt]) -> list[Json]:
    """The answers to these messages, which are next among the receipts."""
    return [receipt_json(next(receipts), message.request.url) for message in messages]
