"""The server side of one TCP connection, where it differs from aiohttp's.

Small publishes take the fast lane of `lane.py`.

aiohttp answers what is not HTTP with plain text, and writes the offending line, which may hold a token, to the
log. Here it is answered, and logged, like any other bad request.

aiohttp waits for ever for the end of a head, and holds as many of its bytes as come. Here both have `Bounds`.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.web_protocol import RequestHandler, _ErrInfo
from msgspec import Struct
from multidict import CIMultiDict, CIMultiDictProxy

from relay.api import lane
from relay.api.answer import Answer, error_answer
from relay.api.middleware import REQUEST_ID_HEADER, request_id, response_of
from relay.api.services import Services

_LONGEST_REASON = 200
#: What aiohttp's parser says, without a type of its own.
_TOO_MANY_HEADERS = "Too many headers received"


class Bounds(Struct, frozen=True, kw_only=True):
    """What a client is given before anybody knows who it is.

    `head_s` for a whole head from its first byte, or for the first byte of a new connection; `idle_s` between an
    answer and the next request; `head_bytes` for the request line and all headers together.
    """

    head_s: float = 30
    idle_s: float = 75
    head_bytes: int = 128 << 10


class _Refused(HttpProcessingError):  # noqa: N818 - named like the errors of the domain
    """A head that this connection does not wait for any longer."""


class Connection(RequestHandler):
    """Speaks HTTP/1.1 with one client."""

    __slots__ = (
        "_arriving",
        "_bounds",
        "_deaf",
        "_head_bytes",
        "_head_due",
        "_in_lane",
        "_newest",
        "_services",
        "_wakes_at",
    )

    def __init__(
        self, manager: web.Server, *, services: Services, in_lane: bool, bounds: Bounds, **kwargs: Any
    ) -> None:
        super().__init__(manager, keepalive_timeout=bounds.idle_s, **kwargs)
        self._services = services
        self._in_lane = in_lane
        self._bounds = bounds
        #: The body the fast lane is waiting for.
        self._arriving: StreamReader | None = None
        #: The body of the newest request, which may still be on its way.
        self._newest: StreamReader = EMPTY_PAYLOAD
        #: Bytes since the last that completed a head or belonged to a body, and when the head they begin is due.
        self._head_bytes = 0
        self._head_due = 0.0
        #: When the timer is set to.
        self._wakes_at = 0.0
        #: Nothing more is heard: the connection ends with what is in the queue.
        self._deaf = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        now = self._loop.time()
        self._next_keepalive_close_time = now + self._bounds.head_s
        self._wake_at(now + min(self._bounds.head_s, self._bounds.idle_s))

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        requests, body, body_bytes = self._request_count, self._newest, self._newest.total_bytes
        in_body = not body.is_eof()
        super().data_received(data)
        if self._request_count != requests:
            if self._head_bytes + len(data) > self._bounds.head_bytes:
                self._refuse_the_overlong(self._request_count - requests)
            self._newest = self._messages[-1][1]
            self._head_bytes = 0
        elif in_body and (body.total_bytes != body_bytes or body.is_eof()):
            self._head_bytes = 0
        elif data:
            self._more_of_a_head(len(data))

    def _more_of_a_head(self, size: int) -> None:
        """Trailers, which the parser holds like headers, are part of a head in this respect."""
        if not self._head_bytes:
            self._head_due = self._loop.time() + self._bounds.head_s
            if self._head_due < self._wakes_at:
                self._wake_at(self._head_due)
        self._head_bytes += size
        if self._head_bytes > self._bounds.head_bytes:
            self._refuse(431, self._too_long)

    def _refuse_the_overlong(self, count: int) -> None:
        """Look at the heads of the newest requests: together with a body they may be long."""
        for index in range(len(self._messages) - count, len(self._messages)):
            message = self._messages[index][0]
            if isinstance(message, RawRequestMessage) and _length(message) > self._bounds.head_bytes:
                while len(self._messages) > index:
                    self._messages.pop()
                self._refuse(431, self._too_long)
                return

    @property
    def _too_long(self) -> str:
        return (
            f"the request line and the headers are longer than the limit of {self._bounds.head_bytes} bytes"
        )

    def _refuse(self, status: int, sentence: str) -> None:
        """Answer this after all requests before, and end the connection."""
        self._deaf = True
        refused = _ErrInfo(status, _Refused(code=status, message=sentence), sentence)
        self._messages.append((refused, EMPTY_PAYLOAD))
        if self._waiting:
            assert self._waiter is not None
            self._waiter.set_result(None)

    @property
    def _waiting(self) -> bool:
        """Whether all that was asked is answered."""
        return self._waiter is not None and not self._waiter.done()

    def hang_up_when_idle(self) -> None:
        """Close unless something was asked, if only by its first byte, and is not answered."""
        if self._waiting and not self._head_bytes:
            self.force_close()

    def _wake_at(self, when: float) -> None:
        if self._keepalive_handle is not None:
            self._keepalive_handle.cancel()
        self._wakes_at = when
        self._keepalive_handle = self._loop.call_at(when, self._process_keepalive)

    def _process_keepalive(self) -> None:
        """The one timer. It is set again only when it goes off, or a head is due earlier: most requests leave it
        alone."""
        self._keepalive_handle = None
        if self.transport is None or self._deaf:
            return
        now = self._loop.time()
        due = self._head_due if self._head_bytes else self._next_keepalive_close_time
        if not self._waiting:
            self._wake_at(now + min(self._bounds.head_s, self._bounds.idle_s))
        elif now < due:
            self._wake_at(min(due, now + self._bounds.idle_s))
        elif self._head_bytes:
            self._refuse(408, f"no complete head came within {self._bounds.head_s:g} s")
        else:
            self.force_close()

    async def start(self) -> None:
        """Answer requests until one is not for the fast lane; aiohttp takes over with that one."""
        if self._in_lane:
            while not self._force_close and await self._lane_took_it(self._services):
                if self._close and self.transport is not None:
                    self.transport.close()
                    return
        if not self._force_close:
            await super().start()

    async def _lane_took_it(self, services: Services) -> bool:
        """Wait for the next request and answer it here; False, and it is left in place, when it is aiohttp's."""
        if not self._messages:
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        message, payload = self._messages[0]
        if not isinstance(message, RawRequestMessage) or not lane.belongs(message):
            return False
        self._messages.popleft()
        if self._parser is not None:
            self._parser.message_consumed()
        if self._buffer_paused and not self._messages:
            self._resume_reading_if_drained()
        self._request_in_progress = True
        self._arriving = payload
        try:
            body = await lane.body_of(payload, services.bodies.idle_s)
            peer = self.peername
            response = await lane.answer(
                services, message, body, peer[0] if isinstance(peer, tuple) else None
            )
            if services.stopping():
                self._close = True
            if self.transport is not None:
                self.transport.write(response)
                if self._paused:
                    await self._drain_helper()
                self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        except (ConnectionError, TimeoutError, web.RequestPayloadError):
            self.force_close()
            return True
        finally:
            self._arriving = None
            self._request_in_progress = False
            if self._handler_waiter is not None:
                self._handler_waiter.set_result(None)
        return True

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        if self._arriving is not None:
            self._arriving.set_exception(exc or ConnectionResetError("the client has gone"))

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to what the parser refused. The connection ends with it: nobody knows where the next
        request would begin."""
        if message is None:  # no fault of the client's
            return super().handle_error(request, status, exc)
        id = request_id(self._services)
        response = response_of(self._answer_to_no_request(status, exc, message))
        self._services.refusals.tell(id, None, response.status, "head")
        response.headers[REQUEST_ID_HEADER] = id
        response.headers["Connection"] = "close"
        response.force_close()
        return response

    def _answer_to_no_request(self, status: int, exc: BaseException | None, message: str) -> Answer:
        if isinstance(exc, _Refused):
            return error_answer(status, message)
        if isinstance(exc, LineTooLong):
            # The parser does not say what was too long, but by which limit, and these are not the same.
            limit = exc.args[1]
            if limit == self.max_line_size:
                return error_answer(414, f"the request line is longer than the limit of {limit} bytes")
            return error_answer(431, f"a header is longer than the limit of {limit} bytes")
        if message == _TOO_MANY_HEADERS:
            return error_answer(431, f"there are more than {self.max_headers} headers")
        reason = message.partition("\n")[0].rstrip(" :")[:_LONGEST_REASON]
        return error_answer(status, f"not a valid HTTP request: {reason}")

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        if self._upgraded and not self._messages:
            # An upgrade is not taken up, and what came after it was kept unparsed.
            resp.force_close()
        return await super().finish_response(request, resp, start_time)


def _length(message: RawRequestMessage) -> int:
    """Bytes of a head, but for those that are the same in each."""
    return len(message.path) + sum([len(name) + len(value) + 4 for name, value in message.raw_headers])


def _passing_over_expectations(
    make_request: Callable[..., web.BaseRequest],
) -> Callable[..., web.BaseRequest]:
    """Hide an Expect that asks for nothing known. Where no route is found aiohttp answers it itself: in plain text,
    and with a 500 when its bytes are no text."""

    def make(message: RawRequestMessage, *others: Any) -> web.BaseRequest:
        expectation = message.headers.get("Expect")
        if expectation is not None and expectation.lower() != "100-continue":
            headers = CIMultiDict(message.headers)
            del headers["Expect"]
            message = message._replace(headers=CIMultiDictProxy(headers))
        return make_request(message, *others)

    return make


class _Server(web.Server):
    #: Given to every connection.
    given: Mapping[str, Any]

    def __call__(self) -> RequestHandler:
        return Connection(self, loop=self._loop, **self.given, **self._kwargs)


class ApiRunner(web.AppRunner):
    """An `AppRunner` whose connections are `Connection`s; `lane` says whether they have a fast one."""

    def __init__(
        self,
        app: web.Application,
        *,
        services: Services,
        lane: bool = True,
        bounds: Bounds = Bounds(),  # noqa: B008 - immutable
        **kwargs: Any,
    ) -> None:
        super().__init__(app, **kwargs)
        self._given = {"services": services, "in_lane": lane, "bounds": bounds}

    async def hang_up_idle(self) -> None:
        """Close the connections on which nothing is asked, to be called once `services.stopping()`."""
        await asyncio.sleep(0)  # what has arrived is read first
        for connection in () if self.server is None else self.server.connections:
            assert isinstance(connection, Connection)
            connection.hang_up_when_idle()

    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        ours = _Server(
            server.request_handler,
            request_factory=_passing_over_expectations(server.request_factory),
            loop=server._loop,
            **server._kwargs,
        )
        ours.given = self._given
        return ours
