"""ASGI: `Verified` around an application or a route, with any framework that speaks it; it imports none.

With Starlette as `middleware=[Middleware(Verified, ...)]` of an application, a `Route` or a `Mount`; with FastAPI
as `app.mount("/hooks", Verified(hooks, ...))`. Everything inside sees genuine requests only: also the parsing of a
typed body, which FastAPI does before it calls any dependency.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from signing.adapters.gate import MAX_BODY_BYTES, Gate, Refusal, Url, url_for

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_POLICY_VIOLATION = 1008


class Verified:
    """Passes genuine requests on, with their body. `url` as a function gets the scope.

    A web socket cannot be signed for, and is refused.
    """

    def __init__(
        self,
        app: App,
        *keys: str,
        url: Url[Scope] = None,
        max_body_bytes: int = MAX_BODY_BYTES,
        clock_tolerance_s: int = 0,
    ) -> None:
        self._app = app
        self._url = url
        self._gate = Gate(
            keys,
            checks_url=url is not None,
            max_body_bytes=max_body_bytes,
            clock_tolerance_s=clock_tolerance_s,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": _POLICY_VIOLATION})
        elif scope["type"] == "http":
            await self._request(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _request(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
        body = await read_body(receive, self._gate.max_body_bytes)
        if body is None:
            await _refuse(send, self._gate.refused_as_too_large())
            return
        refusal = self._gate.refusal(headers, body, url_for(self._url, scope))
        if refusal is not None:
            await _refuse(send, refusal)
            return
        await self._app(scope, replayed(body, receive), send)


async def read_body(receive: Receive, most: int) -> bytes | None:
    """The whole body; None as soon as it is larger than `most` bytes, or the client is gone."""
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        chunk: bytes = message.get("body", b"")
        size += len(chunk)
        if size > most:
            return None
        chunks.append(chunk)
        if not message.get("more_body", False):
            return b"".join(chunks)


def replayed(body: bytes, receive: Receive) -> Receive:
    """What to receive from once the body has been read: the body, then whatever else comes."""
    told = False

    async def replay() -> Message:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


async def _refuse(send: Send, refusal: Refusal) -> None:
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(refusal.body)).encode()),
    ]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": refusal.body})
