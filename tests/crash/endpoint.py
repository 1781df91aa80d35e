"""The endpoint of the crash tests: outside the relay, it enters what arrives in the ledger."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from tests.crash.ledger import FAILURES, Kind, Ledger, read

_LATE_S = 1.5
_LOOK_S = 0.02


class Endpoint:
    """Answers by the kind of message. `mended`, it answers even what it has always refused with 200."""

    def __init__(self, ledger: Ledger) -> None:
        self.url = ""
        self.mended = False
        #: Set, it answers what it was holding and holds nothing more.
        self.let_go = asyncio.Event()
        self.holding = 0
        #: Message ids by the schedule they came from.
        self.scheduled: dict[str, list[str]] = {}
        self._ledger = ledger

    async def handle(self, request: web.BaseRequest) -> web.Response:
        body = await request.content.read()
        message_id = request.headers["Upstash-Message-Id"]
        schedule_id = request.headers.get("Upstash-Schedule-Id")
        if schedule_id is not None:
            self.scheduled.setdefault(schedule_id, []).append(message_id)
            return web.Response()
        number, kind = read(body)
        retried = int(request.headers["Upstash-Retried"])
        if kind is Kind.HELD:
            self.holding += 1
            await self.let_go.wait()
            self.holding -= 1
        if retried == 0:
            await _misbehave(kind, request)
        failures = 0 if self.mended else FAILURES.get(kind, 0)
        status = 500 if failures is None or retried < failures else 200
        if request.transport is None:  # whoever sent it has gone, and will not hear the answer
            status = 0
        self._ledger.arrive(number, kind, message_id, retried, status)
        return web.Response(status=status)


async def _misbehave(kind: Kind, request: web.BaseRequest) -> None:
    """Let the first attempt end as such a message deserves."""
    if kind is Kind.LATE:
        await asyncio.sleep(_LATE_S)
    elif kind is Kind.HUNG:
        while request.transport is not None:
            await asyncio.sleep(_LOOK_S)
    elif kind is Kind.RESET and request.transport is not None:
        connection = request.transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        request.transport.abort()
        while request.transport is not None:
            await asyncio.sleep(0)


@asynccontextmanager
async def an_endpoint(ledger: Ledger) -> AsyncIterator[Endpoint]:
    """An endpoint on a loopback port of its own."""
    endpoint = Endpoint(ledger)
    runner = web.ServerRunner(web.Server(endpoint.handle, access_log=None), shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    endpoint.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    try:
        yield endpoint
    finally:
        endpoint.let_go.set()
        await runner.cleanup()
