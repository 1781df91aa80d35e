"""Scenarios in which somebody sets a clock by an hour, and back, while publishers go on."""

import signal

from tests.crash.kills import FAST
from tests.crash.ledger import Kind
from tests.crash.waiting import until
from tests.crash.world import Outcome, World


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
