"""A TCP server that treats each connection as badly as its script says."""

import asyncio
import contextlib
import os
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable
from types import TracebackType

from msgspec import Struct


class Received(Struct, frozen=True):
    """A request as it came over the wire; names of `headers` in lower case."""

    line: str
    headers: dict[str, str]
    body: bytes
    raw_head: bytes


class Caller:
    """One accepted connection, in the hands of a script."""

    def __init__(
        self, server: "ChaosServer", reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._server = server
        self._writer = writer
        self.reader = reader
        #: 1 for the server's first connection.
        self.number = server.connections

    async def request(self) -> Received | None:
        """The next whole request; None when the client has gone."""
        try:
            head = await self.reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return None
        line, *fields = head.decode("latin-1").split("\r\n")[:-2]
        headers = {name.lower(): value for name, _, value in (field.partition(": ") for field in fields)}
        body = await self.reader.readexactly(int(headers.get("content-length", 0)))
        received = Received(line, headers, body, head)
        self._server.requests.append(received)
        return received

    def write(self, data: bytes) -> None:
        self._writer.write(data)

    async def drain(self) -> None:
        await self._writer.drain()

    def close(self) -> None:
        """End the connection in good order."""
        self._writer.close()

    def reset(self) -> None:
        """End the connection with a RST."""
        transport = self._writer.transport
        # The options of a socket are shared by its duplicates; not every loop lets them be set on its own.
        with socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno())) as duplicate:
            duplicate.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()

    async def gone(self) -> None:
        """Wait until the client has closed the connection."""
        while await self.reader.read(65_536):
            pass


Script = Callable[[Caller], Awaitable[None]]


class ChaosServer:
    """Listens on loopback while its context lasts. A connection whose script returns is closed."""

    def __init__(self, script: Script, *, tls: ssl.SSLContext | None = None) -> None:
        self._script = script
        self._tls = tls
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server
        self.requests: list[Received] = []
        #: How many connections were accepted so far.
        self.connections = 0

    async def __aenter__(self) -> "ChaosServer":
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self._tls, limit=16 << 20)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def url(self, path: str = "/") -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}{path}"

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.get_running_loop().create_task(self._serve(Caller(self, reader, writer), writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, caller: Caller, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await self._script(caller)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


def an_answer(status: int = 200, body: bytes = b"ok", *headers: str) -> bytes:
    """A complete answer with a length."""
    lines = [f"HTTP/1.1 {status} Whatever", *headers, f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode() + body


def answering(answer: bytes = an_answer()) -> Script:
    """Every request gets these bytes; the connection stays open."""

    async def script(caller: Caller) -> None:
        while await caller.request() is not None:
            caller.write(answer)

    return script


def answering_once(answer: bytes = b"") -> Script:
    """The first request gets these bytes, and the connection is closed."""

    async def script(caller: Caller) -> None:
        await caller.request()
        caller.write(answer)

    return script


def resetting_after(answer: bytes = b"") -> Script:
    """The first request gets these bytes, and the connection is reset."""

    async def script(caller: Caller) -> None:
        await caller.request()
        caller.write(answer)
        await caller.drain()
        caller.reset()

    return script


def hanging_after(answer: bytes = b"") -> Script:
    """The first request gets these bytes and nothing more, ever."""

    async def script(caller: Caller) -> None:
        await caller.request()
        caller.write(answer)
        await caller.gone()

    return script
