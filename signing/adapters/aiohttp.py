"""aiohttp: `@verified(...)` above a handler.

The body is what `await request.read()` gives. It is read up to `max_body_bytes` or the application's own
`client_max_size` (1 MiB), whichever is smaller. Messages that are published with a Content-Encoding need a server
that leaves it alone: `web.run_app(app, handler_args={"auto_decompress": False})`.
"""

from collections.abc import Awaitable, Callable
from functools import wraps

from aiohttp import web

from signing.adapters.gate import MAX_BODY_BYTES, Gate, Refusal, Url, url_for

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def verified(
    *keys: str,
    url: Url[web.Request] = None,
    max_body_bytes: int = MAX_BODY_BYTES,
    clock_tolerance_s: int = 0,
) -> Callable[[Handler], Handler]:
    """Call the handler for genuine requests only."""
    gate = Gate(
        keys, checks_url=url is not None, max_body_bytes=max_body_bytes, clock_tolerance_s=clock_tolerance_s
    )

    def decorate(handler: Handler) -> Handler:
        @wraps(handler)
        async def handle(request: web.Request) -> web.StreamResponse:
            refusal = gate.too_large(request.content_length)
            if refusal is None:
                try:
                    body = await request.read()
                except web.HTTPRequestEntityTooLarge:
                    refusal = gate.refused_as_too_large()
                else:
                    refusal = gate.refusal(request.headers.items(), body, url_for(url, request))
            return await handler(request) if refusal is None else _response(refusal)

        return handle

    return decorate


def _response(refusal: Refusal) -> web.Response:
    return web.Response(status=refusal.status, body=refusal.body, content_type="application/json")
