"""The server side of one TCP connection, where it differs from aiohttp's.

aiohttp answers what is not HTTP with plain text, and writes the offending line, which may hold a token, to the
log. Here it is answered like any other bad request, and logged nowhere.
"""

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from relay.api.answer import error_answer
from relay.api.middleware import response_of

_LONGEST_REASON = 200


class Connection(RequestHandler):
    """Speaks HTTP/1.1 with one client."""

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to what the parser refused. The connection ends with it: nobody knows where the next
        request would begin."""
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has already begun")
        reason = (message or "").partition("\n")[0].rstrip(" :")[:_LONGEST_REASON]
        response = response_of(error_answer(status, f"not a valid HTTP request: {reason}"))
        response.force_close()
        return response


class _Server(web.Server):
    def __call__(self) -> RequestHandler:
        return Connection(self, loop=self._loop, **self._kwargs)


class ApiRunner(web.AppRunner):
    """An `AppRunner` whose connections are `Connection`s."""

    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        return _Server(
            server.request_handler,
            request_factory=server.request_factory,
            loop=server._loop,
            **server._kwargs,
        )
