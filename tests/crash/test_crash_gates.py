"""Killed at any step, the relay keeps the order of a queue and the limits of a key, and forgets nobody."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest
from aiohttp import web

from tests.crash.doom import steps_of
from tests.crash.kills import RATE
from tests.crash.load import a_session
from tests.crash.node import Node, a_node
from tests.crash.scenarios import BACKENDS
from tests.crash.waiting import until

SLOTS = 2
#: A second of the machine: a process that is starved for longer may send what is no longer its own.
LEASE = {"RELAY_LEASE": "10s"}
#: In the middle of the work: what a queue lets through comes one by one.
NTH = "4"
LEAST = 20


class Arrival(NamedTuple):
    body: str
    began: float
    ended: float


class Receiver:
    """Takes a moment for every request, and remembers what was there when; each path by itself."""

    def __init__(self) -> None:
        self.origin = ""
        self._arrivals: dict[str, list[Arrival]] = {}

    async def handle(self, request: web.BaseRequest) -> web.Response:
        body = (await request.content.read()).decode()
        if request.path == "/called":
            # The report says whose it is in the order of publishing.
            body = request.headers["Number"]
        began = time.monotonic()
        try:
            await asyncio.sleep(0.005)
        finally:
            self._arrivals.setdefault(request.path, []).append(Arrival(body, began, time.monotonic()))
        return web.Response()

    def arrivals(self, path: str) -> list[Arrival]:
        return sorted(self._arrivals.get(path, ()), key=lambda arrival: arrival.began)

    def bodies(self, path: str) -> list[str]:
        """In the order of their first arrivals."""
        return list(dict.fromkeys(arrival.body for arrival in self.arrivals(path)))


@asynccontextmanager
async def a_receiver() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    runner = web.ServerRunner(web.Server(receiver.handle, access_log=None), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    receiver.origin = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield receiver
    finally:
        await runner.cleanup()


class Publisher:
    """Publishes a job and something with a key, one after the other, each until it was accepted."""

    def __init__(self, node: Node, receiver: Receiver, session: aiohttp.ClientSession) -> None:
        self.published = 0
        self.enough = asyncio.Event()
        self._node = node
        self._receiver = receiver
        self._session = session

    async def run(self) -> None:
        origin = self._receiver.origin
        for number in count():
            if self.enough.is_set():
                return
            callback = {
                "Upstash-Callback": f"{origin}/called",
                "Upstash-Callback-Forward-Number": str(number),
            }
            if number % 2:
                callback["Upstash-Callback-Flow-Control-Key"] = "called"
                callback["Upstash-Callback-Flow-Control-Value"] = "rate=100"
            await self._publish(f"/v2/enqueue/jobs/{origin}/job", f"job {number}", str(number), callback)
            keyed = {
                "Upstash-Flow-Control-Key": "slots",
                "Upstash-Flow-Control-Value": f"parallelism={SLOTS}",
            }
            await self._publish(f"/v2/publish/{origin}/keyed", f"keyed {number}", str(number), keyed)
            self.published = number + 1

    async def _publish(self, path: str, id: str, body: str, headers: dict[str, str]) -> None:
        while True:
            await self._node.up.wait()
            try:
                async with self._session.post(
                    self._node.url + path, data=body, headers={**headers, "Upstash-Deduplication-Id": id}
                ) as response:
                    if response.status in (200, 202):
                        return
                    assert response.status == 503, await response.text()
            except (aiohttp.ClientError, TimeoutError, ConnectionError):
                pass
            await asyncio.sleep(0.02)

    async def ask(self, path: str) -> Any:
        async with self._session.get(self._node.url + path) as response:
            return await response.json()


@pytest.mark.parametrize("verb", ["publish", "claim", "settle"])
async def test_killed_at_every_step_a_queue_stays_in_order_and_a_key_within_its_limit(
    tmp_path: Path, backend: str, verb: str
) -> None:
    async with (
        a_receiver() as receiver,
        a_node(tmp_path, BACKENDS[backend](tmp_path), LEASE) as node,
        a_session() as session,
    ):
        publisher = Publisher(node, receiver, session)
        publishing = asyncio.create_task(publisher.run())
        for step in (*steps_of(verb), *(steps_of("send") if verb == "claim" else ())):
            await node.doom("--at", step, "--nth", NTH, rate=RATE)
            await node.ended()
        await node.doom(rate=RATE)
        await until(lambda: publishing.done() or publisher.published >= LEAST, "nothing is accepted")
        publisher.enough.set()
        await publishing
        everybody = [str(number) for number in range(publisher.published)]
        paths = ("/job", "/called", "/keyed")
        await until(
            lambda: all(set(receiver.bodies(path)) == set(everybody) for path in paths),
            lambda: str([receiver.bodies(path) for path in paths]),
        )

        async def is_over() -> bool:
            keys = await publisher.ask("/v2/flowControl")
            return (await publisher.ask("/v2/queues/jobs"))["lag"] == 0 and not any(
                key["parallelismCount"] for key in keys
            )

        await until(is_over, "something is still held")
        assert await node.stop() == 0
    assert receiver.bodies("/job") == receiver.bodies("/called") == everybody
    jobs, called = receiver.arrivals("/job"), receiver.arrivals("/called")
    in_turn = sorted((*jobs, *called), key=lambda arrival: arrival.began)
    assert [int(one.body) for one in in_turn] == sorted(int(one.body) for one in in_turn)
    assert all(one.ended <= other.began for one, other in pairwise(in_turn))
    keyed = receiver.arrivals("/keyed")
    for one in keyed:
        assert sum(other.began <= one.began < other.ended for other in keyed) <= SLOTS
