"""Scenarios in which PostgreSQL dies, restarts or cannot be reached, under load and under several nodes.

Publishers get 503 with Retry-After meanwhile, no node ends, and all go on by themselves.
"""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from urllib.parse import urlencode

from relay.domain.errors import Unavailable
from storage.postgres import driver
from storage.postgres.driver import Session, target_of
from tests import postgres_server
from tests.crash.kills import SHORT_LEASE
from tests.crash.nodes import LEASE, RATE, hold, refused
from tests.crash.proxy import Proxy, a_proxy
from tests.crash.waiting import until
from tests.crash.world import Outcome, World

#: What begins a trouble, or ends it.
Trouble = Callable[[], Awaitable[object]]

_REFUSED = 10
_SLOW_S = 0.05
_TERMINATE = (
    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
    " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
)
_A_BACKEND = (
    "SELECT pid FROM pg_stat_activity"
    " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() LIMIT 1"
)


async def killed(world: World) -> Outcome:
    """SIGKILL of the postmaster; the server is started again on what it left."""
    async with _surroundings(world) as (server, _):
        return await away(world, partial(asyncio.to_thread, server.kill), started_again(server))


async def restarted(world: World) -> Outcome:
    """As an operator would: every session is ended, transactions are undone."""
    async with _surroundings(world) as (server, _):
        return await away(world, partial(asyncio.to_thread, server.stop), started_again(server))


async def cut(world: World) -> Outcome:
    """Connections break, and new ones are refused."""
    async with _surroundings(world) as (_, proxy):
        return await away(world, _told(proxy.cut), _told(proxy.mend))


async def swallowed(world: World) -> Outcome:
    """Connections stay and nothing comes through: only timeouts tell."""
    async with _surroundings(world) as (_, proxy):
        return await away(world, _told(proxy.swallow), _told(proxy.mend))


async def slow(world: World) -> Outcome:
    """Every packet is late, and nobody is refused."""
    async with _surroundings(world) as (_, proxy):
        await _serve_all(world)
        world.load.begin()
        proxy.delay(_SLOW_S)
        await world.accepted(100)
        await world.load.end()
        await world.settled()
        assert not world.ledger.refused
        return await world.judge()


async def terminated(world: World, *, rounds: int) -> Outcome:
    """`pg_terminate_backend` of every session, again and again."""
    return await _struck(world, _TERMINATE, lambda number: None, rounds=rounds)


async def crashed(world: World, *, rounds: int) -> Outcome:
    """SIGKILL of one backend: the server ends all of them, and recovers by itself."""
    return await _struck(world, _A_BACKEND, lambda pid: os.kill(pid, signal.SIGKILL), rounds=rounds)


async def one_is_cut_off(world: World) -> Outcome:
    """One node of several loses its way to the database for longer than a lease, with deliveries in flight.

    The others take over; what it has to settle when it is back is refused.
    """
    async with _surroundings(world) as (server, proxy):
        first, *others = world.fleet.nodes
        for node in others:
            node.database = _at(server.directory.as_posix(), first.database)
        for node in world.fleet.nodes:
            await node.doom(rate=RATE, **LEASE)
        held = await hold(world, first)
        proxy.cut()
        world.interrupted()
        before = world.endpoint.holding
        await until(lambda: world.endpoint.holding >= before + held, "nobody took over what it held")
        world.endpoint.let_go.set()
        statuses = await asyncio.gather(*(world.client.at(first).publish() for _ in range(_REFUSED)))
        assert set(statuses) == {503}
        assert await world.client.at(first).status("/readyz") == 503
        assert await world.client.at(others[0]).publish() == 200
        proxy.mend()
        await refused(world, first, held)
        await world.ready()
        await world.settled()
        return await world.judge(in_doubt=True, late=True)


async def away(world: World, begin: Trouble, end: Trouble) -> Outcome:
    """The database goes under load, and comes back when every publisher has heard of it."""
    await _serve_all(world)
    world.load.begin()
    await world.accepted(50)
    await begin()
    world.interrupted()
    before = len(world.ledger.refused)
    await until(lambda: len(world.ledger.refused) >= before + _REFUSED, "nobody is refused")
    for node in world.fleet.nodes:
        assert await world.client.at(node).status("/healthz") == 200
    await end()
    await world.ready()
    await world.accepted(20)
    await world.load.end()
    await world.settled()
    return await world.judge(in_doubt=True, late=True)


async def _struck(world: World, query: str, strike: Callable[[int], object], *, rounds: int) -> Outcome:
    async with _surroundings(world) as (_, _proxy):
        await _serve_all(world)
        world.load.begin()
        for _round in range(rounds):
            await world.accepted(20)
            # A server that recovers from the blow before may refuse this connection at first.
            number = await _asked(world.node.database, query)
            began = time.monotonic()
            strike(number)
            world.interrupted()
            await world.accepted(1)
            world.recovered_since(began)
        await world.load.end()
        await world.settled()
        return await world.judge(in_doubt=True, late=True)


async def _asked(database: str, query: str) -> int:
    """The number this query yields, as soon as the server answers one."""
    answer: list[int] = []

    async def ask() -> bool:
        try:
            connection = await driver.connect(target_of(database), Session(longest_s=5))
        except Unavailable:
            return False
        try:
            answer.extend(row[0] for row in await connection.rows(query))
        except Unavailable:
            return False
        finally:
            connection.terminate()
        return bool(answer)

    await until(ask, "the server does not answer")
    return answer[0]


@asynccontextmanager
async def a_server(world: World) -> AsyncIterator[postgres_server.Server]:
    """A server of this scenario's own, which the nodes do not outlive."""
    server = await asyncio.to_thread(postgres_server.Server)
    try:
        await asyncio.to_thread(server.start)
        try:
            yield server
        finally:
            # Whoever waits for the server must not outlive it.
            await world.fleet.end()
    finally:
        await asyncio.to_thread(server.remove)


@asynccontextmanager
async def _surroundings(world: World) -> AsyncIterator[tuple[postgres_server.Server, Proxy]]:
    """A server of this scenario's own, which all nodes reach through a proxy."""
    async with a_server(world) as server, a_proxy(str(server.socket)) as proxy:
        world.moved_to(_at("127.0.0.1", server.url(), port=str(proxy.port)))
        try:
            yield server, proxy
        finally:
            await world.fleet.end()


def _at(host: str, url: str, **others: str) -> str:
    """The same database, reached at another place."""
    schema = target_of(url).schema
    return f"postgresql://postgres@/postgres?{urlencode({'host': host, **others, 'schema': schema})}"


async def _serve_all(world: World) -> None:
    await asyncio.gather(*(node.serve(**SHORT_LEASE) for node in world.fleet.nodes))


def started_again(server: postgres_server.Server) -> Trouble:
    return partial(asyncio.to_thread, server.start)


def _told(change: Callable[[], None]) -> Trouble:
    """Of a proxy, which does it at once."""

    async def tell() -> None:
        change()

    return tell
