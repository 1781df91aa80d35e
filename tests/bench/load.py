"""The load: a publisher that keeps many connections busy, the endpoint that receives, and a ledger between them.

Both ends are bare protocols in one event loop, so that they cost a small part of what they measure and share one
clock. Every body begins with its number, so the ledger knows what is missing and what came twice. Every loop ends
by itself: after its count, after its time, or at the first refusal.
"""

import asyncio
import re
import time
from array import array
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import cast

from tests.bench import machine
from tests.bench.systems import TOKEN, System

CONNECTIONS = 128
BODY_BYTES = 1024
_DIGITS = 16
_PADDING = b"x" * (BODY_BYTES - _DIGITS)

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
_OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nok"


class Ledger:
    """What became of the messages `first` to `first + count - 1`; instants are `time.perf_counter` seconds."""

    def __init__(self, *, first: int, count: int) -> None:
        self.first = first
        self.count = count
        self.sent = array("d", bytes(8 * count))
        self.answered = array("d", bytes(8 * count))
        self.arrived = array("d", bytes(8 * count))
        self.answers = 0
        self.arrivals = 0
        self.doubled = 0
        #: The most messages that were acknowledged and had not arrived.
        self.backlog = 0
        self.complete = asyncio.Event()

    def arrive(self, number: int) -> None:
        position = number - self.first
        if not 0 <= position < self.count:
            return  # of a ledger before this one: a second delivery, which the relay may make
        if self.arrived[position]:
            self.doubled += 1
            return
        self.arrived[position] = time.perf_counter()
        self.arrivals += 1
        if self.arrivals == self.count:
            self.complete.set()

    def answer(self, position: int) -> None:
        self.answered[position] = time.perf_counter()
        self.answers += 1
        if self.answers - self.arrivals > self.backlog:
            self.backlog = self.answers - self.arrivals

    async def all_arrived(self, *, seconds: float) -> None:
        """Raises when messages are still missing after so many seconds."""
        try:
            async with asyncio.timeout(seconds):
                await self.complete.wait()
        except TimeoutError:
            raise RuntimeError(
                f"{self.count - self.arrivals} of {self.count} messages did not arrive within {seconds:g} s"
            ) from None


class Receiver:
    """An endpoint that answers 200 to everything and enters it in the current ledger."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.ledger = Ledger(first=0, count=0)
        #: The head of the latest request, to look at what was really sent.
        self.latest_head = b""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"


@asynccontextmanager
async def receiver() -> AsyncIterator[Receiver]:
    """An endpoint on a free loopback port."""
    endpoint = Receiver(0)
    server = await asyncio.get_running_loop().create_server(
        lambda: _Incoming(endpoint), "127.0.0.1", 0, backlog=4096
    )
    endpoint.port = server.sockets[0].getsockname()[1]
    async with server:
        yield endpoint


class _Incoming(asyncio.Protocol):
    """One connection of the system under test to the endpoint."""

    _transport: asyncio.Transport

    def __init__(self, endpoint: Receiver) -> None:
        self._endpoint = endpoint
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one only by its methods

    def data_received(self, data: bytes) -> None:
        data = self._buffer + data if self._buffer else data
        while (end := data.find(b"\r\n\r\n") + 4) > 3:
            length = _LENGTH.search(data, 0, end)
            if length is None:
                raise RuntimeError(f"a delivery without a length: {data[:end]!r}")
            whole = end + int(length[1])
            if len(data) < whole:
                break
            self._endpoint.latest_head = data[:end]
            self._endpoint.ledger.arrive(int(data[end : end + _DIGITS]))
            self._transport.write(_OK)
            data = data[whole:]
        self._buffer = data


class _Publisher(asyncio.Protocol):
    """One connection with one publish at a time. `freed` is called after each answer."""

    _transport: asyncio.Transport

    def __init__(self, head: bytes, ledger: Ledger, freed: Callable[["_Publisher"], None]) -> None:
        self._head = head
        self._ledger = ledger
        self._freed = freed
        self._buffer = b""
        self._position = -1
        self.failure: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one only by its methods

    def publish(self, position: int, sent_at: float | None = None) -> None:
        self._position = position
        request = self._head + body(self._ledger.first + position)
        self._ledger.sent[position] = time.perf_counter() if sent_at is None else sent_at
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        data = self._buffer + data if self._buffer else data
        end = data.find(b"\r\n\r\n") + 4
        length = _LENGTH.search(data, 0, end) if end > 3 else None
        if length is None or len(data) < end + int(length[1]):
            self._buffer = data
            return
        self._buffer = b""
        if not data.startswith(b"HTTP/1.1 2"):
            self._fail(f"a publish was refused: {data[:600]!r}")
            return
        self._ledger.answer(self._position)
        self._position = -1
        self._freed(self)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._position >= 0:
            self._fail(f"a connection was lost before its publish was answered: {exc}")

    def close(self) -> None:
        self._position = -1
        self._transport.close()

    def _fail(self, reason: str) -> None:
        if self.failure is not None and not self.failure.done():
            self.failure.set_exception(RuntimeError(reason))


def body(number: int) -> bytes:
    """1 KB that begins with its number."""
    return b"%0*d" % (_DIGITS, number) + _PADDING


def _head(system: System, url: str) -> bytes:
    return (
        f"POST /v2/publish/{url} HTTP/1.1\r\nHost: 127.0.0.1:{system.port}\r\n"
        f"Authorization: Bearer {TOKEN}\r\nContent-Type: text/plain\r\nContent-Length: {BODY_BYTES}\r\n\r\n"
    ).encode()


@asynccontextmanager
async def _publishers(
    system: System, url: str, ledger: Ledger, count: int, freed: Callable[[_Publisher], None]
) -> AsyncIterator[tuple[list[_Publisher], asyncio.Future[None]]]:
    """Open connections, and a future that ends the loop: with a result by its owner, or with what went wrong."""
    loop = asyncio.get_running_loop()
    finished: asyncio.Future[None] = loop.create_future()
    head = _head(system, url)
    connections: list[_Publisher] = []
    try:
        for _ in range(count):
            _, connection = await loop.create_connection(
                lambda: _Publisher(head, ledger, freed), "127.0.0.1", system.port
            )
            connection.failure = finished
            connections.append(connection)
        yield connections, finished
    finally:
        for connection in connections:
            connection.close()


async def closed_loop(
    system: System, endpoint: Receiver, ledger: Ledger, *, connections: int = CONNECTIONS, seconds: float
) -> None:
    """Publish the ledger's messages, the next on each connection as soon as the one before was answered.

    Returns when all were answered; raises when one was refused or it took longer than `seconds`.
    """
    waiting = iter(range(ledger.count))

    def next_publish(connection: _Publisher) -> None:
        position = next(waiting, None)
        if position is not None:
            connection.publish(position)
        elif ledger.answers == ledger.count and not finished.done():
            finished.set_result(None)

    endpoint.ledger = ledger
    async with _publishers(system, endpoint.url, ledger, connections, next_publish) as (opened, finished):
        for connection in opened:
            next_publish(connection)
        async with asyncio.timeout(seconds):
            await finished


async def open_loop(
    system: System, endpoint: Receiver, ledger: Ledger, *, rate: float, connections: int = 2 * CONNECTIONS
) -> list[float]:
    """Publish the ledger's messages evenly at `rate` a second, whatever the answers do.

    A message that finds every connection waiting for an answer counts as sent at its turn, not when one becomes
    free: the system made it wait. Returns by how many seconds each of the others was sent later than its turn:
    that is the load's own fault. Raises when the answers take half a minute longer than the sending should.
    """
    late: list[float] = []
    held: deque[tuple[int, float]] = deque()

    def answered(connection: _Publisher) -> None:
        if held:
            connection.publish(*held.popleft())
            return
        free.append(connection)
        if ledger.answers == ledger.count and not finished.done():
            finished.set_result(None)

    endpoint.ledger = ledger
    async with _publishers(system, endpoint.url, ledger, connections, answered) as (opened, finished):
        free = list(opened)
        async with asyncio.timeout(30 + ledger.count / rate):
            began = time.perf_counter()
            for position in range(ledger.count):
                turn = began + position / rate
                if (ahead := turn - time.perf_counter()) > 0:
                    await asyncio.sleep(ahead)
                if finished.done():
                    break
                if free:
                    late.append(max(0.0, time.perf_counter() - turn))
                    free.pop().publish(position)
                else:
                    held.append((position, turn))
            await finished
    return late


async def quiet(system: System, *, seconds: float = 15) -> None:
    """Wait until the system has next to nothing left to do: below 2 % of a core for a tenth of a second."""
    async with asyncio.timeout(seconds):
        before = system.cpu()
        while True:
            await asyncio.sleep(0.1)
            now = system.cpu()
            if now - before < 0.002:
                return
            before = now


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One closed loop, from the first publish to the system's last settlement."""

    messages: int
    cpu_seconds: float
    #: The part of `cpu_seconds` spent in the system's first thread.
    main_thread_seconds: float
    #: From the first publish sent to the last message arrived.
    wall_seconds: float
    #: Share of its own core the load needed meanwhile; near 1 the load was the bottleneck.
    load_share: float
    #: Share of the system's core that other programs took meanwhile; much above 0 the rate means little.
    strangers_share: float
    backlog: int
    doubled: int

    @property
    def cpu_micros(self) -> float:
        """CPU per message."""
        return self.cpu_seconds / self.messages * 1e6

    @property
    def rate(self) -> float:
        """Messages per second, end to end."""
        return self.messages / self.wall_seconds


async def closed_run(
    system: System, *, messages: int, warm_up: int = 1000, connections: int = CONNECTIONS
) -> Run:
    """Warm the system up, then measure one closed loop. Raises unless every message arrived."""
    async with receiver() as endpoint:
        if warm_up:
            warming = Ledger(first=0, count=warm_up)
            await closed_loop(system, endpoint, warming, connections=connections, seconds=60)
            await warming.all_arrived(seconds=30)
            await quiet(system)
        ledger = Ledger(first=warm_up, count=messages)
        cpu, main_thread = system.cpu(), machine.main_thread_seconds(system.pid)
        busy = machine.busy_seconds()
        began, load_cpu = time.perf_counter(), time.process_time()
        await closed_loop(system, endpoint, ledger, connections=connections, seconds=30 + messages / 200)
        await ledger.all_arrived(seconds=30 + messages / 200)
        ended, load_cpu = time.perf_counter(), time.process_time() - load_cpu
        await quiet(system)
        cpu, busy = system.cpu() - cpu, machine.busy_seconds() - busy
        return Run(
            messages=messages,
            cpu_seconds=cpu,
            main_thread_seconds=machine.main_thread_seconds(system.pid) - main_thread,
            wall_seconds=max(ledger.arrived) - min(ledger.sent),
            load_share=load_cpu / (ended - began),
            strangers_share=max(0.0, busy - cpu) / (time.perf_counter() - began),
            backlog=ledger.backlog,
            doubled=ledger.doubled,
        )
