"""The server side of one TCP connection, where it differs from aiohttp's.

Small publishes take the fast lane of `lane.py`.

aiohttp answers what is not HTTP with plain text, and writes the offending line, which may hold a token, to the
log. Here it is answered like any other bad request, and logged nowhere.
"""

from typing import Any

from aiohttp import web
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import StreamReader
from aiohttp.web_protocol import RequestHandler

from relay.api import lane
from relay.api.answer import error_answer
from relay.api.middleware import response_of
from relay.api.services import Services

_LONGEST_REASON = 200


class Connection(RequestHandler):
    """Speaks HTTP/1.1 with one client."""

    __slots__ = ("_arriving", "_services")

    def __init__(self, manager: web.Server, *, services: Services | None, **kwargs: Any) -> None:
        super().__init__(manager, **kwargs)
        self._services = services
        #: The body the fast lane is waiting for.
        self._arriving: StreamReader | None = None

    async def start(self) -> None:
        """Answer requests until one is not for the fast lane; aiohttp takes over with that one."""
        if self._services is not None:
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
        reason = message.partition("\n")[0].rstrip(" :")[:_LONGEST_REASON]
        response = response_of(error_answer(status, f"not a valid HTTP request: {reason}"))
        response.force_close()
        return response


class _Server(web.Server):
    services: Services | None = None

    def __call__(self) -> RequestHandler:
        return Connection(self, services=self.services, loop=self._loop, **self._kwargs)


class ApiRunner(web.AppRunner):
    """An `AppRunner` whose connections are `Connection`s; with `services` they have a fast lane."""

    def __init__(self, app: web.Application, *, services: Services | None = None, **kwargs: Any) -> None:
        super().__init__(app, **kwargs)
        self._services = services

    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        ours = _Server(
            server.request_handler,
            request_factory=server.request_factory,
            loop=server._loop,
            **server._kwargs,
        )
        ours.services = self._services
        return ours
