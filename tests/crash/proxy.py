"""The network between a relay and its database: a proxy that can cut it, swallow everything, be slow."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

_PIECE = 1 << 16


class Proxy:
    """Forwards each connection to a Unix socket until it is told otherwise."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._pairs: set[asyncio.Task[None]] = set()
        self._refusing = False
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._delay_s = 0.0
        self.port = 0

    def cut(self) -> None:
        """Every connection ends, and new ones end at once."""
        self._refusing = True
        for pair in self._pairs:
            pair.cancel()

    def swallow(self) -> None:
        """Nothing gets through, in either direction, and nobody is told: a route that has gone."""
        self._flowing.clear()

    def delay(self, seconds: float) -> None:
        """Everything arrives so much later."""
        self._delay_s = seconds

    def mend(self) -> None:
        """As in the beginning. What was swallowed was only late."""
        self._refusing = False
        self._delay_s = 0.0
        self._flowing.set()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._pairs.add(task)
        try:
            if not self._refusing:
                await self._join(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass  # cut, or the server has gone: then so has the connection
        finally:
            self._pairs.discard(task)
            writer.transport.abort()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._flowing.wait()
        far_reader, far_writer = await asyncio.open_unix_connection(self._target)
        ways = [
            asyncio.ensure_future(self._forward(reader, far_writer)),
            asyncio.ensure_future(self._forward(far_reader, writer)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            far_writer.transport.abort()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while piece := await reader.read(_PIECE):
                await asyncio.sleep(self._delay_s)
                await self._flowing.wait()
                writer.write(piece)
                await writer.drain()

    async def close(self) -> None:
        for pair in self._pairs:
            pair.cancel()
        await asyncio.gather(*self._pairs, return_exceptions=True)


@asynccontextmanager
async def a_proxy(target: str) -> AsyncIterator[Proxy]:
    """On a loopback port of its own, before this Unix socket."""
    proxy = Proxy(target)
    server = await asyncio.start_server(proxy.accept, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        await proxy.close()
        await server.wait_closed()
