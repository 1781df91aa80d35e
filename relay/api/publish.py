"""Publishing: one message, now or in its turn in a queue, or a batch of them."""

import asyncio
from collections.abc import Iterable, Sequence
from typing import Annotated

import msgspec
from aiohttp import web
from msgspec.structs import replace

from relay.api.answer import Answer, answer_of, json_answer
from relay.api.auth import Caller
from relay.api.incoming import caller_address, headers_of, single_destination
from relay.api.schedules import put as put_schedule
from relay.api.services import Services
from relay.domain.errors import Invalid, RelayError
from relay.domain.message import Message, MessageId
from relay.domain.publish import message_of
from relay.wire.headers import parse_draft
from relay.wire.json import receipt_json
from relay.wire.target import parse_destination, queue_name, split_queue, split_target

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
    body = await services.bodies.read(request, services.limits.max_message_bytes, "the message body")
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
    """Publish the message that a request describes; with Upstash-Cron, create a schedule instead.

    `prefix` stands before the destination in the target; `queue` is where the message waits its turn.
    Needs no more of the request than these values, so that it can be called before there is a router. The caller
    may write, as `Caller.require_write` says. Raises `RelayError`.
    """
    headers = tuple(headers)
    target = split_target(raw_target, prefix)
    caller_ip = caller_address(services, peer_ip, headers)
    if any(name.lower() == _CRON for name, _ in (*headers, *target.config)):
        return await put_schedule(services, caller, target, headers, body, caller_ip, queue=queue)
    now = services.clock.now()
    draft = parse_draft(
        headers,
        url=single_destination(target),
        body=body,
        caller_ip=caller_ip,
        now=now,
        limits=services.limits,
        config=target.config,
        authorization_is_ours=caller.authorization_is_ours,
    )
    if queue is not None:
        draft = replace(draft, queue=queue)
    message = message_of(draft, tenant=caller.tenant, id=MessageId(services.ids.next(now)), now=now)
    (receipt,) = await services.publisher.publish((message,))
    return json_answer(
        receipt_json(receipt, message.request.url), status=202 if receipt.deduplicated else 200
    )


async def enqueue(services: Services, caller: Caller, request: web.Request) -> Answer:
    body = await services.bodies.read(request, services.limits.max_message_bytes, "the message body")
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
    body = await services.bodies.read(request, services.limits.max_batch_bytes, "the batch")
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
    now = services.clock.now()
    outcomes: list[Message | RelayError] = []
    for index, item in enumerate(items, start=1):
        try:
            outcomes.append(_message_of(services, caller, item, caller_ip, now))
        except RelayError as error:
            outcomes.append(error)
        if index % _STRETCH == 0:
            await asyncio.sleep(0)
    messages = [outcome for outcome in outcomes if isinstance(outcome, Message)]
    if outcomes and not messages:
        return answer_of(next(outcome for outcome in outcomes if isinstance(outcome, RelayError)))
    receipts = iter(await services.publisher.publish(messages) if messages else ())
    return json_answer(
        [
            {"error": str(outcome)}
            if isinstance(outcome, RelayError)
            else receipt_json(next(receipts), outcome.request.url)
            for outcome in outcomes
        ]
    )


def _items_of(body: bytes) -> Sequence[BatchItem]:
    try:
        return _BATCH.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as problem:
        raise Invalid("body", f"is not a batch: {problem}") from None


def _message_of(
    services: Services, caller: Caller, item: BatchItem, caller_ip: str | None, now: int
) -> Message:
    queue = None if item.queue is None else queue_name(item.queue, "queue")
    draft = parse_draft(
        (item.headers or {}).items(),
        url=single_destination(parse_destination(item.destination)),
        body=(item.body or "").encode(),
        caller_ip=caller_ip,
        now=now,
        limits=services.limits,
    )
    if queue is not None:
        draft = replace(draft, queue=queue)
    return message_of(draft, tenant=caller.tenant, id=MessageId(services.ids.next(now)), now=now)
