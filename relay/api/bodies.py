"""Reading request bodies: within a limit, within a common budget, and never from a sender who has gone silent."""

import asyncio

from aiohttp import web

from relay.domain.errors import TooLarge, Unavailable

_HELD = web.RequestKey("bodies.held", int)


class Stalled(Exception):  # noqa: N818 - named like the errors of the domain
    """The sender stopped in the middle of a body, or left."""


class Bodies:
    """Reads bodies; at most `budget_bytes` of them are in memory at once, whoever sends them.

    A body whose sender is silent for `idle_s` is given up.
    """

    def __init__(self, *, budget_bytes: int = 512 << 20, idle_s: float = 30) -> None:
        self._budget_bytes = budget_bytes
        self.idle_s = idle_s
        self.held_bytes = 0

    async def read(self, request: web.Request, limit: int, what: str) -> bytes:
        """The body as it was sent; `what` names it in `TooLarge`.

        Raises `TooLarge` before reading when the declared length is over the limit, `Unavailable` when the
        budget is spent, `Stalled` when the rest does not come. Whoever calls this calls `release` when the
        request has been answered.
        """
        if not request.body_exists:
            return b""
        if request.content_length is not None and request.content_length > limit:
            raise TooLarge(what, limit)
        if request.headers.get("Expect", "").lower() == "100-continue":
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0
        chunks: list[bytes] = []
        length = 0
        while chunk := await self._next_chunk(request):
            length += len(chunk)
            if length > limit:
                raise TooLarge(what, limit)
            self._hold(request, len(chunk))
            chunks.append(chunk)
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def release(self, request: web.Request) -> None:
        """Give back what this request's body took of the budget."""
        self.held_bytes -= request.pop(_HELD, 0)

    def _hold(self, request: web.Request, size: int) -> None:
        if self.held_bytes + size > self._budget_bytes:
            raise Unavailable("too many bytes are being received at once")
        self.held_bytes += size
        request[_HELD] = request.get(_HELD, 0) + size

    async def _next_chunk(self, request: web.Request) -> bytes:
        try:
            async with asyncio.timeout(self.idle_s):
                return await request.content.readany()
        except TimeoutError:
            raise Stalled(f"no more of the body came within {self.idle_s:g} s") from None
        except (ConnectionError, web.RequestPayloadError) as error:
            raise Stalled(f"the body ended early: {error}") from None
