"""How much of a parallelism limit arrives at a receiver: `python -m tests.bench.limits`, with `--postgres` on that.

A flow-control key lets so many requests be under way at once, and the receiver answers each after the same time:
that allows so many starts a second. Whatever passes between an answer and the next request is lost. The *floor* is
a stock aiohttp client with as many lanes, each sending the next request when the one before was answered: it shows
what client, receiver and machine leave of the limit when nothing is stored.
"""

import argparse
import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import uvloop

from tests.bench import machine, systems
from tests.bench.load import body
from tests.bench.table import Finding, conclude, show, spread
from tests.live import a_relay
from tests.postgres_server import Server

_BATCH = 100
_PATIENCE_S = 30
_HEAD_END = b"\r\n\r\n"
_OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nok"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """So many at once, each answered after so long."""

    parallelism: int
    answer_ms: int

    @property
    def allowed(self) -> float:
        """Starts a second."""
        return self.parallelism * 1_000 / self.answer_ms

    @property
    def name(self) -> str:
        return f"{self.parallelism} x {self.answer_ms} ms"


CASES = (
    Case(parallelism=1, answer_ms=10),
    Case(parallelism=10, answer_ms=50),
    Case(parallelism=3, answer_ms=100),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How much to measure: each case for about so many `seconds` in each of the `rounds`."""

    rounds: int = 3
    seconds: float = 4.0
    postgres: bool = False
    directory: Path | None = None


@dataclass(slots=True)
class _Measured:
    """Starts a second as shares of what is allowed, round by round."""

    relay: list[float] = field(default_factory=list)
    floor: list[float] = field(default_factory=list)


class _Slow:
    """An endpoint that answers every request after `answer_s`, and remembers when each came."""

    def __init__(self, answer_s: float, expected: int) -> None:
        self.answer_s = answer_s
        self.expected = expected
        self.arrivals: list[float] = []
        self.present = 0
        self.most = 0
        self.complete = asyncio.Event()

    def arrive(self) -> None:
        self.arrivals.append(time.perf_counter())
        self.present += 1
        self.most = max(self.most, self.present)
        if len(self.arrivals) == self.expected:
            self.complete.set()

    def rate(self) -> float:
        """Starts a second, without the first tenth: connections are opened, caches fill up."""
        counted = self.arrivals[len(self.arrivals) // 10 :]
        return (len(counted) - 1) / (counted[-1] - counted[0])


class _Incoming(asyncio.Protocol):
    """One connection to the endpoint, with one request at a time."""

    _transport: asyncio.WriteTransport

    def __init__(self, endpoint: _Slow) -> None:
        self._endpoint = endpoint
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(_HEAD_END)
        # All bodies have the same length, and nothing is pipelined.
        if end < 0 or len(self._buffer) < end + len(_HEAD_END) + len(body(0)):
            return
        self._buffer = b""
        self._endpoint.arrive()
        asyncio.get_running_loop().call_later(self._endpoint.answer_s, self._answer)

    def _answer(self) -> None:
        self._endpoint.present -= 1
        self._transport.write(_OK)


def measure(options: Options) -> list[Finding]:
    """Run the rounds and print the table."""
    measured = {case: _Measured() for case in CASES}
    flushes: list[float] = []
    with (
        systems.workspace(options.directory) as directory,
        machine.on_core(machine.LOAD_CORE),
        ExitStack() as stack,
    ):
        server: Server | None = None
        if options.postgres:
            server = Server(fsync="on", full_page_writes="on")
            stack.callback(server.remove)
            server.start()
        for number in range(options.rounds):
            flushes.append(machine.fdatasync_rate(directory))
            own = directory / str(number)
            own.mkdir()
            with ExitStack() as running:
                system = _started(running, own, server)
                for case in CASES:
                    uvloop.run(_turn(system, case, measured[case], number, options))
    backend = "PostgreSQL" if options.postgres else "SQLite"
    show(
        f"Starts at a receiver as a share of what the limit allows, {backend},"
        f" {options.rounds} rounds: median (min-max)",
        ("at once x answer", "allowed/s", "relay %", "floor %", "relay / floor"),
        [
            (
                case.name,
                f"{case.allowed:.0f}",
                spread([100 * share for share in one.relay]),
                spread([100 * share for share in one.floor]),
                spread(_ratios(one), 2),
            )
            for case, one in measured.items()
        ],
    )
    print(f"  fdatasync/s here: {spread(flushes)}")
    return [
        Finding(
            what=f"share of a limit of {case.name}, {backend}",
            value=f"{spread([100 * share for share in one.relay])} %, {spread(_ratios(one), 2)} of the floor",
            aim=">= 90 %",
        )
        for case, one in measured.items()
    ]


def _ratios(one: _Measured) -> Sequence[float]:
    return [relay / floor for relay, floor in zip(one.relay, one.floor, strict=True)]


def _started(running: ExitStack, directory: Path, server: Server | None) -> systems.System:
    if server is None:
        return running.enter_context(systems.relay(directory / "relay.db"))
    settings = {
        "RELAY_DATABASE_URL": server.url(),
        "RELAY_TOKEN": systems.TOKEN,
        "RELAY_ALLOW_NETWORKS": "127.0.0.0/8",
    }
    with machine.on_core(machine.SYSTEM_CORE):
        live = running.enter_context(a_relay(directory=directory, mode="serve", environment=settings))
    return systems.System(name="relay", pid=live.process.pid, port=int(live.port), log=live.log)


async def _turn(
    system: systems.System, case: Case, measured: _Measured, number: int, options: Options
) -> None:
    count = max(20, int(case.allowed * options.seconds))
    key = f"{case.parallelism}-{case.answer_ms}-{number}"
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        floor = await _received(case, count, lambda url: _back_to_back(session, url, case.parallelism, count))
        relay = await _received(case, count, lambda url: _publish(session, system, url, key, case, count))
    measured.floor.append(floor.rate() / case.allowed)
    measured.relay.append(relay.rate() / case.allowed)
    if relay.most > case.parallelism:
        raise RuntimeError(f"{relay.most} requests at once where {case.parallelism} are allowed")


async def _received(case: Case, count: int, send: Callable[[str], Awaitable[None]]) -> _Slow:
    endpoint = _Slow(case.answer_ms / 1_000, count)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Incoming(endpoint), "127.0.0.1", 0)
    async with server, asyncio.timeout(_PATIENCE_S + 2 * count / case.allowed):
        await send(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook")
        await endpoint.complete.wait()
        # The last answers, too: whoever asked is not to see a closed connection.
        while endpoint.present:
            await asyncio.sleep(case.answer_ms / 1_000)
    return endpoint


async def _back_to_back(session: aiohttp.ClientSession, url: str, lanes: int, count: int) -> None:
    numbers = iter(range(count))

    async def lane() -> None:
        for number in numbers:
            async with session.post(
                url, data=body(number), headers={"Content-Type": "text/plain"}
            ) as response:
                await response.read()

    await asyncio.gather(*(lane() for _ in range(lanes)))


async def _publish(
    session: aiohttp.ClientSession, system: systems.System, url: str, key: str, case: Case, count: int
) -> None:
    messages = [
        {
            "destination": url,
            "body": body(number).decode(),
            "headers": {
                "Content-Type": "text/plain",
                "Upstash-Flow-Control-Key": key,
                "Upstash-Flow-Control-Value": f"parallelism={case.parallelism}",
            },
        }
        for number in range(count)
    ]
    for first in range(0, count, _BATCH):
        async with session.post(
            f"http://127.0.0.1:{system.port}/v2/batch",
            data=json.dumps(messages[first : first + _BATCH]),
            headers={"Authorization": f"Bearer {systems.TOKEN}", "Content-Type": "application/json"},
        ) as response:
            if response.status != 200:
                raise RuntimeError(f"a batch was refused: {await response.text()}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.limits", description=__doc__)
    parser.add_argument("--rounds", type=int, default=Options().rounds)
    parser.add_argument("--seconds", type=float, default=Options().seconds, help="for each case in a round")
    parser.add_argument("--postgres", action="store_true", help="on PostgreSQL instead of SQLite")
    parser.add_argument("--directory", type=Path, help="where databases are made (default: the system's)")
    given = parser.parse_args()
    systems.stop_on_sigterm()
    conclude(
        measure(
            Options(
                rounds=given.rounds,
                seconds=given.seconds,
                postgres=given.postgres,
                directory=given.directory,
            )
        )
    )


if __name__ == "__main__":
    main()
