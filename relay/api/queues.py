"""Queues: create or configure, look, pause, resume, delete."""

from typing import Annotated

import msgspec
from aiohttp import web

from relay.api.answer import DONE, Answer, json_answer
from relay.api.auth import Caller
from relay.api.services import Services
from relay.domain.errors import Invalid, NotFound, OverLimit, quoted
from relay.domain.gates import Configure, GateKind
from relay.wire.json import queue_json
from relay.wire.target import queue_name


class QueueRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is left out stays as it is."""

    name: str = msgspec.field(name="queueName")
    parallelism: Annotated[int, msgspec.Meta(ge=1)] | None = None
    paused: bool | None = None


_REQUEST: msgspec.json.Decoder[QueueRequest] = msgspec.json.Decoder(QueueRequest)


async def put(services: Services, caller: Caller, request: web.Request) -> Answer:
    body = await services.bodies.read(
        request, services.limits.max_message_bytes, "the description of a queue"
    )
    try:
        wanted = _REQUEST.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as problem:
        raise Invalid("body", f"does not describe a queue: {problem}") from None
    most = services.limits.max_queue_parallelism
    if wanted.parallelism is not None and wanted.parallelism > most:
        raise OverLimit("parallelism", f"{wanted.parallelism} is above the maximum of {most}")
    await _configure(
        services,
        caller,
        queue_name(wanted.name),
        Configure(parallelism=wanted.parallelism, paused=wanted.paused),
    )
    return DONE


async def index(services: Services, caller: Caller, request: web.Request) -> Answer:
    return json_answer([queue_json(queue) for queue in await services.storage.queues(caller.tenant)])


async def show(services: Services, caller: Caller, request: web.Request) -> Answer:
    name = queue_name(request.match_info["queue"])
    queue = await services.storage.queue(caller.tenant, name)
    if queue is None:
        raise NotFound(f"queue {quoted(name)}")
    return json_answer(queue_json(queue))


async def delete(services: Services, caller: Caller, request: web.Request) -> Answer:
    """What waits in the queue is cancelled. Deleting what does not exist is done."""
    name = queue_name(request.match_info["queue"])
    await services.storage.delete_queue(caller.tenant, name, now=services.clock.now())
    return DONE


async def pause(services: Services, caller: Caller, request: web.Request) -> Answer:
    """A queue that does not exist yet is made, so that its first messages are held."""
    await _configure(services, caller, queue_name(request.match_info["queue"]), Configure(paused=True))
    return DONE


async def resume(services: Services, caller: Caller, request: web.Request) -> Answer:
    await services.storage.change_gate(
        caller.tenant,
        GateKind.QUEUE,
        queue_name(request.match_info["queue"]),
        Configure(paused=False),
        create=False,
        now=services.clock.now(),
    )
    return DONE


async def _configure(services: Services, caller: Caller, name: str, change: Configure) -> None:
    limit = services.limits.max_queues
    done = await services.storage.change_gate(
        caller.tenant, GateKind.QUEUE, name, change, create=True, limit=limit, now=services.clock.now()
    )
    if not done:
        raise OverLimit("queues", f"there are {limit} already, which is the maximum")
