"""The same attempts over `ClientSession`, by the book: what the lean sender's outcomes are compared with."""

import ssl

import aiohttp
from aiohttp.abc import AbstractResolver
from yarl import URL

from relay.clock import Clock
from relay.domain.delivery import Attempt
from relay.engine.egress import Egress
from relay.wire.outbound import Outgoing


class StockSender:
    """Slower, and without the silent second sending; otherwise it must come to the same results."""

    def __init__(
        self,
        *,
        egress: Egress,
        clock: Clock,
        connect_timeout_ms: int = 10_000,
        max_response_bytes: int = 1 << 20,
        tls: ssl.SSLContext | None = None,
        resolver: AbstractResolver | None = None,
    ) -> None:
        self._clock = clock
        self._connect_timeout_s = connect_timeout_ms / 1000
        self._max_response_bytes = max_response_bytes
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0, socket_factory=egress.socket, ssl=tls or True, resolver=resolver
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
            max_line_size=16 << 10,
            max_field_size=16 << 10,
        )

    async def send(self, outgoing: Outgoing, *, timeout_ms: int) -> Attempt:
        started_at = self._clock.now()
        status: int | None = None
        headers: tuple[tuple[str, str], ...] = ()
        body = b""
        error = outgoing.problem
        if error is None:
            head, _, inline = outgoing.head.partition(b"\r\n\r\n")
            line, *fields = head.decode().split("\r\n")
            method, target, _ = line.split(" ")
            try:
                async with self._session.request(
                    method,
                    URL(
                        f"{'https' if outgoing.peer.tls else 'http'}://{outgoing.peer}{target}", encoded=True
                    ),
                    headers=[(name, value) for name, _, value in (field.partition(": ") for field in fields)],
                    data=inline + outgoing.body,
                    allow_redirects=False,
                    timeout=aiohttp.ClientTimeout(
                        total=timeout_ms / 1000, connect=self._connect_timeout_s, ceil_threshold=1e9
                    ),
                ) as response:
                    status = response.status
                    headers = tuple(
                        (n.decode("latin-1"), v.decode("latin-1")) for n, v in response.raw_headers
                    )
                    while len(body) < self._max_response_bytes and (
                        chunk := await response.content.read(self._max_response_bytes - len(body))
                    ):
                        body += chunk
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as problem:
                error = f"{type(problem).__name__}: {problem}"
        return Attempt(
            started_at=started_at,
            ended_at=self._clock.now(),
            status=status,
            headers=headers,
            body=body,
            error=error,
        )

    async def close(self) -> None:
        await self._session.close()
