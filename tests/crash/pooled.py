"""Scenarios with a pooler in transaction mode between several nodes, of several workers each, and PostgreSQL.

What anybody left in a session of the pooler is held against the relay in the end: there is nothing it may leave.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from tests import pooler, postgres_server
from tests.crash import nodes, server, ticks
from tests.crash.kills import SHORT_LEASE
from tests.crash.world import Outcome, World

SEVERAL_WORKERS = {"RELAY_WORKERS": "2", **SHORT_LEASE}


async def one_dies_at_random(world: World, *, rounds: int) -> Outcome:
    """With all that its workers had under way at the pooler."""
    async with _surroundings(world):
        return await nodes.one_dies_at_random(world, rounds=rounds)


async def restarted(world: World) -> Outcome:
    """PostgreSQL is; the pooler stays, and turns everybody away meanwhile."""
    async with _surroundings(world) as database:
        return await server.away(
            world, partial(asyncio.to_thread, database.stop), server.started_again(database)
        )


async def around_firings(world: World) -> Outcome:
    async with _surroundings(world):
        return await ticks.around_firings(world)


@asynccontextmanager
async def _surroundings(world: World) -> AsyncIterator[postgres_server.Server]:
    """A server of this scenario's own, which all nodes reach through a pooler."""
    async with server.a_server(world) as database, pooler.a_pooler(database.socket) as between:
        world.moved_to(pooler.through(between, database.url()))
        try:
            yield database
            assert between.passed > len(world.ledger.promises)
            assert await between.left_behind() == []
        finally:
            await world.fleet.end()
