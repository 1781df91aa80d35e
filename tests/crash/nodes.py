"""Scenarios with several nodes on one database: some die or freeze, others go on and take over."""

import asyncio
import random
import signal
from collections.abc import Sequence

from tests.crash.doomed import FastClock
from tests.crash.kills import nth_of
from tests.crash.ledger import Kind
from tests.crash.node import Node
from tests.crash.waiting import until
from tests.crash.world import Outcome, World

#: A lease is two seconds: several nodes and a server on a busy machine keep it.
RATE = 5
LEASE = {"RELAY_LEASE": "10s"}
_LEASE_MS = 10_000

_HELD = 21


async def one_dies_at(world: World, *, steps: Sequence[str]) -> Outcome:
    """Before it is started again, what it owed has arrived from another."""
    first, *others = world.fleet.nodes
    await _start(others)
    world.load.begin()
    for step in steps:
        await first.doom("--at", step, "--nth", str(nth_of(step)), rate=RATE, **LEASE)
        await world.dead(first)
        await world.rescued()
    await world.load.end()
    await world.settled()
    return await world.judge()


async def one_dies_at_random(world: World, *, rounds: int) -> Outcome:
    """The real command; publishers go on at the others."""
    nodes = world.fleet.nodes
    for node in nodes:
        await node.serve()
    world.load.begin()
    for number in range(rounds):
        node = nodes[number % len(nodes)]
        await world.accepted(20)
        await asyncio.sleep(random.uniform(0, 0.5))
        await world.killed(node)
        await world.rescued()
        await node.serve()
    await world.load.end()
    await world.settled()
    return await world.judge()


async def all_die_at_once(world: World, *, rounds: int) -> Outcome:
    """As when a room loses power."""
    nodes = world.fleet.nodes
    world.load.begin()
    for _ in range(rounds):
        await asyncio.gather(*(node.serve() for node in nodes))
        await world.accepted(20)
        await asyncio.sleep(random.uniform(0, 0.5))
        await world.killed(*nodes)
    await asyncio.gather(*(node.serve() for node in nodes))
    await world.load.end()
    await world.settled()
    return await world.judge()


async def one_freezes(world: World) -> Outcome:
    """SIGSTOP for longer than a lease: others take over what was in flight, its late settlements are refused."""
    await _start(world.fleet.nodes)
    first = world.node
    held = await hold(world, first)
    first.freeze()
    world.interrupted()
    await until(lambda: world.endpoint.holding >= _HELD + held, "nobody took over what it held")
    world.endpoint.let_go.set()
    first.thaw()
    await refused(world, first, held)
    await world.settled()
    return await world.judge(late=True)


async def one_freezes_under_load(world: World, *, rounds: int) -> Outcome:
    """Another one each time."""
    nodes = world.fleet.nodes
    await _start(nodes)
    world.load.begin()
    for number in range(rounds):
        node = nodes[number % len(nodes)]
        await world.accepted(50)
        node.freeze()
        world.interrupted()
        await _two_leases(world)
        await world.accepted(10)
        node.thaw()
    await world.load.end()
    await world.settled()
    return await world.judge(late=True)


async def hold(world: World, node: Node) -> int:
    """Deliveries are in flight that the endpoint does not answer; how many of them are this node's: some are."""
    statuses = await asyncio.gather(*(world.client.publish(Kind.HELD) for _ in range(_HELD)))
    assert set(statuses) == {200}
    await until(lambda: world.endpoint.holding >= _HELD, "not all are in flight")
    held = int(await world.client.at(node).metric("relay_in_flight"))
    assert 0 < held < _HELD, held
    return held


async def refused(world: World, node: Node, count: int) -> None:
    """Wait until so many late settlements of this node were refused."""
    client = world.client.at(node)

    async def are_refused() -> bool:
        return await client.metric("relay_settlements_refused_total") >= count

    await until(are_refused, "late settlements were not refused")


async def rolling(world: World) -> Outcome:
    """Each is replaced in good order under load, and no delivery is made twice for it."""
    nodes = world.fleet.nodes
    for node in nodes:
        await node.serve()
    world.load.begin()
    for node in nodes:
        await world.accepted(50)
        node.up.clear()
        node.signal(signal.SIGTERM)
        assert await node.ended() == 0
        await node.serve()
    await world.load.end()
    await world.settled()
    assert world.ledger.doubled == 0
    return await world.judge()


async def _two_leases(world: World) -> None:
    clock = FastClock(world.node.epoch, RATE)
    until_at = clock.now() + 2 * _LEASE_MS
    await until(lambda: clock.now() > until_at, "time stands still")


async def _start(nodes: Sequence[Node]) -> None:
    for node in nodes:
        await node.doom(rate=RATE, **LEASE)
