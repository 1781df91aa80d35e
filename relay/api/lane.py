"""The fast lane: small publishes answered without building what the router needs.

Most of what a relay receives is a POST to /v2/publish with a body that fits one read. For that request aiohttp's
request object, task, router, middleware and response cost as much as everything else together, so a connection
looks at each parsed message first and answers such a publish itself. Whatever is anything else goes to aiohttp as
it is, and from then on so does all that comes over the same connection. The rules are the same functions in both
roads; the tests of the API run through both.

The private names of `RequestHandler` used here and in `connection.py` are `_messages`, `_parser`, `_waiter`,
`_force_close`, `_close`, `_paused`, `_drain_helper`, `_request_in_progress`, `_handler_waiter`,
`_keepalive_timeout`, `_next_keepalive_close_time`, `_keepalive_handle`, `_process_keepalive`, `_request_count`,
`_upgraded` and `_ErrInfo`; pyproject.toml holds aiohttp to the minor version they were read in.
"""

import asyncio
from http import HTTPStatus

from aiohttp import HttpVersion11
from aiohttp.helpers import rfc822_formatted_time
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import StreamReader

from relay.api.answer import Answer
from relay.api.middleware import REQUEST_ID_HEADER, answer_to, request_id
from relay.api.publish import PREFIX, publish
from relay.api.services import Services

#: Larger bodies take the other road, which reads them piece by piece within a common budget.
_LARGEST_BODY = 64 << 10
_REASONS = {status.value: status.phrase for status in HTTPStatus}


def belongs(message: RawRequestMessage) -> bool:
    """Whether this head begins a request that is answered here."""
    if message.method != "POST" or not message.path.startswith(PREFIX) or message.should_close:
        return False
    if message.version != HttpVersion11:  # HTTP/1.0 has to be told that its connection is kept
        return False
    headers = message.headers
    length = headers.get("Content-Length")
    return (
        length is not None
        and len(length) <= 6
        and int(length) <= _LARGEST_BODY
        and not message.upgrade
        and "Expect" not in headers
    )


async def body_of(payload: StreamReader, idle_s: float) -> bytes:
    """The whole body, which may still be on its way; `TimeoutError` when it does not come within `idle_s`."""
    if not payload.is_eof():
        async with asyncio.timeout(idle_s):
            await payload.wait_eof()
    return payload.read_nowait()


async def answer(services: Services, message: RawRequestMessage, body: bytes, peer_ip: str | None) -> bytes:
    """The complete response to a publish, as bytes; every error is one of the answers.

    It says that the connection ends with it when `services.stopping()`, as that is when this returns.
    """
    id = request_id(services)
    try:
        headers = message.headers
        caller = await services.authenticator.caller(
            headers.get("Authorization"), message.path.partition("?")[2]
        )
        caller.require_write()
        services.refuse_when_stopping()
        said = await publish(services, caller, message.path, headers.items(), body, peer_ip)
    except Exception as error:
        said = answer_to(services, error, id, "POST")
    return spell(said, id, last=services.stopping())


def spell(said: Answer, id: str, *, last: bool) -> bytes:
    """An answer as HTTP/1.1; the `last` of its connection says so."""
    more = "".join([f"{name}: {value}\r\n" for name, value in said.headers])
    if last:
        more += "Connection: close\r\n"
    head = (
        f"HTTP/1.1 {said.status} {_REASONS[said.status]}\r\nContent-Type: {said.content_type}\r\n{more}"
        f"{REQUEST_ID_HEADER}: {id}\r\nContent-Length: {len(said.body)}\r\nDate: {rfc822_formatted_time()}\r\n\r\n"
    )
    return head.encode("latin-1") + said.body
