"""Scenarios in which the relay is killed: at a step of the road, at random, and by a message."""

import asyncio
import random
import signal
import time
from collections.abc import Sequence

from relay.domain.delivery import MAX_LOST_LEASES
from tests.crash.ledger import Kind
from tests.crash.waiting import until
from tests.crash.world import Outcome, World

#: Ten times as fast as the machine: a lease runs out in 0.3 s.
RATE = 10
SHORT_LEASE = {"RELAY_LEASE": "3s"}

#: Slow enough for a busy machine not to lose a lease of its own while the loss of leases is what counts.
POISON_RATE = 4

#: Ten minutes, the least that history is kept, in one second; leases as long as they may be, not to lose any.
FAST = 600
LONG = {"RELAY_LEASE": "10m"}
SHORT_MEMORY = {"RELAY_LOG_RETENTION": "10m", **LONG}

#: In the middle of the load: its publishes, claims and settlements come by the dozen, dead letters are rare.
_NTH = {"publish": 30, "claim": 10, "send": 30, "settle": 20, "bury": 2, "prune": 2}


def nth_of(step: str) -> int:
    """When to die, in the middle of the load."""
    return _NTH[step.partition(".")[0]]


async def at(world: World, steps: Sequence[str]) -> Outcome:
    """Publishers go on through one death after the other."""
    world.load.begin()
    for step in steps:
        await _doom(world, step)
        await world.dead()
    await _recover(world)
    return await world.judge()


async def while_pruning(world: World) -> Outcome:
    """Time goes so fast that history is forgotten while more is made."""
    # No deduplication: its ten minutes are too short for a publisher that repeats a second later.
    world.load = world.load_of((Kind.PLAIN, Kind.FLAKY, Kind.DEAD, Kind.DELAYED))
    world.load.begin()
    for step in world.steps_of("prune"):
        await _doom(world, step, rate=FAST)
        await world.dead()
    await _recover(world, rate=FAST, forgets=True)
    return await world.judge(forgets=True)


async def while_migrating(world: World) -> Outcome:
    """Starts die on an empty database, one after the other, before one is allowed to live."""
    for step in world.steps_of("migrate"):
        await world.node.doom("--at", step, rate=RATE)
        await world.dead()
    world.load.begin()
    await world.node.doom(rate=RATE)
    await until(lambda: len(world.ledger.promises) > 50, "nothing was accepted")
    await world.load.end()
    await world.settled()
    return await world.judge()


async def at_redrive(world: World, step: str) -> Outcome:
    """Dead letters are sent once more, one by one, by someone who repeats what was not answered."""
    await world.node.doom(rate=RATE)
    await asyncio.gather(*(world.client.publish(Kind.DEAD) for _ in range(8)))
    await world.settled()
    assert await world.node.stop() == 0
    world.endpoint.mended = True
    world.redriven |= world.ledger.promised(Kind.DEAD)
    await world.node.doom("--at", step, "--nth", "4", rate=RATE)
    for dlq_id in await world.client.dead_letters():
        await world.client.ask("POST", f"/v2/dlq/retry/{dlq_id}")
    await world.dead()
    died_at = time.monotonic()
    await world.node.doom(rate=RATE)
    for dlq_id in await world.client.dead_letters():
        answer = await world.client.ask("POST", f"/v2/dlq/retry/{dlq_id}")
        assert answer is not None
        assert answer[0] == 201
    assert await world.client.dead_letters() == {}
    successes = world.ledger.successes
    await until(lambda: len(successes()) == 8, lambda: f"arrived again: {successes()}")
    world.recovered_since(died_at)
    assert all(len(ids) == 1 for ids in successes().values()), successes()
    return await world.judge()


async def while_handing_back(world: World, step: str) -> Outcome:
    """A shutdown runs out of time, and is killed while it gives back what it could not finish."""
    await world.node.doom("--at", step, rate=RATE, RELAY_SHUTDOWN_TIMEOUT="1s")
    await asyncio.gather(*(world.client.publish(Kind.HELD) for _ in range(20)))
    await until(lambda: world.endpoint.holding == 20, "not all are in flight")
    world.node.signal(signal.SIGTERM)
    await world.dead()
    world.endpoint.let_go.set()
    await world.node.doom(rate=RATE)
    await world.settled()
    return await world.judge()


async def by_poison(world: World) -> Outcome:
    """One message kills every relay that is about to send it, and a supervisor starts another each time.

    What is in flight beside it dies with it time after time, and arrives all the same.
    """
    deaths = 0

    async def supervise() -> None:
        nonlocal deaths
        while True:
            await world.node.doom("--poison", Kind.POISON.value, rate=POISON_RATE)
            await world.dead()
            deaths += 1
            world.endpoint.let_go.set()

    supervisor = asyncio.create_task(supervise())
    try:
        await world.node.up.wait()
        await asyncio.gather(*(world.client.publish(Kind.HELD) for _ in range(5)))
        await until(lambda: world.endpoint.holding == 5, "not all are in flight")
        await world.client.publish_until_accepted(Kind.POISON)
        await until(lambda: deaths == MAX_LOST_LEASES, lambda: f"it killed {deaths} times")
        await world.node.up.wait()
        await asyncio.gather(*(world.client.publish_until_accepted(Kind.ONCE) for _ in range(5)))
        await world.settled()
    finally:
        supervisor.cancel()
    assert deaths == MAX_LOST_LEASES
    assert not [arrival for arrival in world.ledger.arrivals if arrival.kind is Kind.POISON]
    return await world.judge()


async def at_random(world: World, *, rounds: int) -> Outcome:
    """The real command, at full load and real time, killed from outside whatever it is doing."""
    world.load.begin()
    for _ in range(rounds):
        await world.node.serve()
        accepted = len(world.ledger.promises)
        await until(lambda before=accepted: len(world.ledger.promises) > before, "nothing is accepted")
        await asyncio.sleep(random.uniform(0, 0.5))
        await world.killed()
    await world.node.serve()
    await world.load.end()
    await world.settled()
    return await world.judge()


async def _doom(world: World, step: str, *, rate: int = RATE) -> None:
    await world.node.doom("--at", step, "--nth", str(nth_of(step)), rate=rate)


async def _recover(world: World, *, rate: int = RATE, forgets: bool = False) -> None:
    await world.node.doom(rate=rate)
    await world.load.end()
    await world.settled(forgets=forgets)
