"""Messages: look at one, cancel one, cancel many."""

from aiohttp import web

from relay.api.answer import Answer, json_answer
from relay.api.auth import Caller
from relay.api.incoming import query_of
from relay.api.services import Services
from relay.domain.errors import NotFound, quoted
from relay.domain.message import MessageId
from relay.domain.selection import Selection
from relay.ids import number_of
from relay.wire.json import message_json
from relay.wire.selection import Endpoint, select


async def show(services: Services, caller: Caller, request: web.Request) -> Answer:
    text, message_id = _message_id(request)
    message = await services.storage.message(caller.tenant, message_id)
    if message is None:
        raise NotFound(f"message {quoted(text)}")
    return json_answer(message_json(message))


async def cancel(services: Services, caller: Caller, request: web.Request) -> Answer:
    """A message that has ended, or whose cancellation was asked for already, is not found."""
    text, message_id = _message_id(request)
    cancelled = await services.storage.cancel(
        caller.tenant, Selection(message_ids=(message_id,)), limit=None, now=services.clock.now()
    )
    if not cancelled:
        raise NotFound(f"undelivered message {quoted(text)}")
    return json_answer({"cancelled": len(cancelled)})


async def cancel_selected(services: Services, caller: Caller, request: web.Request) -> Answer:
    body = await services.bodies.read(request, services.limits.max_message_bytes, "the request body")
    selection, page = select(Endpoint.CANCEL, query_of(request.rel_url.raw_query_string), body)
    cancelled = await services.storage.cancel(
        caller.tenant, selection, limit=page.count, now=services.clock.now()
    )
    return json_answer({"cancelled": len(cancelled)})


def _message_id(request: web.Request) -> tuple[str, MessageId]:
    text = request.match_info["message_id"]
    number = number_of("msg_", text)
    if number is None:
        raise NotFound(f"message {quoted(text)}")
    return text, MessageId(number)
