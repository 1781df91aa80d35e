"""Starlette and FastAPI: `@verified(...)` above an endpoint that takes the request.

The body is what `await request.body()` gives. With FastAPI the endpoint has a parameter `request: Request`, and
`@verified` stands below the route. FastAPI reads and parses a body that the endpoint declares before anything
else: for those, put `signing.adapters.asgi.Verified` around the application they are in.
"""

from collections.abc import Awaitable, Callable
from functools import wraps
from inspect import iscoroutinefunction
from typing import Any, ParamSpec

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from signing.adapters.asgi import replayed
from signing.adapters.gate import MAX_BODY_BYTES, Gate, Refusal, Url, url_for

P = ParamSpec("P")


def verified(
    *keys: str,
    url: Url[Request] = None,
    max_body_bytes: int = MAX_BODY_BYTES,
    clock_tolerance_s: int = 0,
) -> Callable[[Callable[P, Any]], Callable[P, Awaitable[Any]]]:
    """Call the endpoint, a coroutine function or a plain one, for genuine requests only.

    `TypeError` at a request when the endpoint does not take it.
    """
    gate = Gate(
        keys, checks_url=url is not None, max_body_bytes=max_body_bytes, clock_tolerance_s=clock_tolerance_s
    )

    def decorate(endpoint: Callable[P, Any]) -> Callable[P, Awaitable[Any]]:
        @wraps(endpoint)
        async def handle(*args: P.args, **kwargs: P.kwargs) -> Any:
            request = _request((*args, *kwargs.values()))
            body = await _body(request, gate.max_body_bytes)
            if body is None:
                return _response(gate.refused_as_too_large())
            refusal = gate.refusal(request.headers.items(), body, url_for(url, request))
            if refusal is not None:
                return _response(refusal)
            again = Request(request.scope, replayed(body, request.receive))
            passed: Any = [again if value is request else value for value in args]
            named: Any = {name: again if value is request else value for name, value in kwargs.items()}
            if iscoroutinefunction(endpoint):
                return await endpoint(*passed, **named)
            return await run_in_threadpool(endpoint, *passed, **named)

        return handle

    return decorate


def _request(values: tuple[object, ...]) -> Request:
    for value in values:
        if isinstance(value, Request):
            return value
    raise TypeError("An endpoint under @verified needs a parameter for the request.")


async def _body(request: Request, most: int) -> bytes | None:
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > most:
            return None
        chunks.append(chunk)
    return b"".join(chunks)


def _response(refusal: Refusal) -> Response:
    return Response(refusal.body, refusal.status, media_type="application/json")
