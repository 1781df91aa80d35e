"""Scenarios in which somebody sets a clock by an hour while publishers go on."""

import asyncio
import signal
import time

import asyncpg

from storage.postgres.driver import target_of
from storage.postgres.takeovers import REST_S
from tests.crash.doomed import OVERTAKEN
from tests.crash.kills import FAST
from tests.crash.ledger import Kind
from tests.crash.waiting import until
from tests.crash.world import Outcome, World

_HELD = 21
_LEASE_S = 5


async def is_set(world: World, *, trouble: str) -> Outcome:
    """`ahead` or `behind`, the first node's. An hour is six seconds: what waits for an hour too long arrives."""
    node, *others = world.fleet.nodes
    # No deduplication: its ten minutes are over while the clock is away.
    world.load = world.load_of((Kind.PLAIN, Kind.FLAKY, Kind.DEAD, Kind.DELAYED))
    await node.doom("--trouble", trouble, rate=FAST)
    for other in others:
        await other.doom(rate=FAST)
    world.load.begin()
    await world.accepted(50)
    node.signal(signal.SIGUSR1)
    await until(lambda: "trouble.began" in node.log, "the clock was not set")
    world.interrupted()
    await world.accepted(50)
    node.signal(signal.SIGUSR2)
    await until(lambda: "trouble.ended" in node.log, "the clock was not set back")
    world.interrupted()
    await world.accepted(50)
    await world.load.end()
    await world.settled()
    # To others, what it holds is overdue: they take it, and both send it.
    return await world.judge(late=True)


async def database_goes_ahead(world: World) -> Outcome:
    """The clock that all nodes share, by an hour: none takes what another is attempting, and work goes on."""
    nodes = world.fleet.nodes
    for node in nodes:
        await node.doom("--shared", rate=1, RELAY_LEASE=f"{_LEASE_S}s")
    statuses = await asyncio.gather(*(world.client.publish(Kind.HELD) for _ in range(_HELD)))
    assert set(statuses) == {200}
    await until(lambda: world.endpoint.holding == _HELD, "not all are in flight")
    await _overtake(world.node.database)
    step_at = time.monotonic()
    world.load = world.load_of((Kind.PLAIN,))
    world.load.begin()
    await world.accepted(50)
    await until(
        lambda: time.monotonic() > step_at + REST_S + 2 * _LEASE_S or world.endpoint.holding != _HELD,
        "time stands still",
    )
    assert world.endpoint.holding == _HELD
    world.endpoint.let_go.set()
    await world.load.end()
    await world.settled()
    return await world.judge()


async def _overtake(url: str) -> None:
    target = target_of(url)
    database = await asyncpg.connect(target.dsn)
    await database.execute(f"INSERT INTO {target.schema}.settings VALUES ('{OVERTAKEN}', '')")
    await database.close()
