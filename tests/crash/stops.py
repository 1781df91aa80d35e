"""Scenarios in which the relay is told to stop, or stands still."""

import asyncio
import signal
from pathlib import Path

from relay.main import open_storage
from storage.protocol import Claimed, ClaimTerms
from tests.crash.doomed import FastClock
from tests.crash.kills import RATE
from tests.crash.ledger import Kind
from tests.crash.waiting import until
from tests.crash.world import Outcome, World

_LEASE_MS = 3_000


async def finishing(world: World) -> Outcome:
    """What is in flight at SIGTERM is answered in time."""
    await world.node.serve()
    await _hold(world, 20)
    world.node.signal(signal.SIGTERM)
    await until(lambda: _is_stopping(world), "it does not stop")
    world.endpoint.let_go.set()
    assert await world.node.ended() == 0
    assert not world.ledger.owed()
    await world.node.serve()
    return await world.judge()


async def handing_back(world: World) -> Outcome:
    """What is in flight at SIGTERM is not answered in time, and the next start has it at once and unspent."""
    await world.node.serve(RELAY_SHUTDOWN_TIMEOUT="1s", RELAY_LEASE="10m")
    await _hold(world, 20)
    world.node.signal(signal.SIGTERM)
    assert await world.node.ended() == 0
    world.interrupted()
    world.endpoint.let_go.set()
    await world.node.serve(RELAY_LEASE="10m")
    await world.settled()
    return await world.judge()


async def at_once(world: World) -> Outcome:
    """The second signal does not wait for anything."""
    await world.node.serve(RELAY_LEASE="3s")
    await _hold(world, 20)
    world.node.signal(signal.SIGTERM)
    await until(lambda: _is_stopping(world), "it does not stop")
    world.node.signal(signal.SIGTERM)
    assert await world.node.ended(within_s=5) == 1
    world.interrupted()
    world.endpoint.let_go.set()
    await world.node.serve()
    await world.settled()
    return await world.judge()


async def under_load(world: World, *, rounds: int) -> Outcome:
    """Restarted in good order again and again, while publishers go on."""
    world.load.begin()
    for _ in range(rounds):
        await world.node.serve()
        before = len(world.ledger.promises)
        await until(lambda before=before: len(world.ledger.promises) > before + 50, "little is accepted")
        assert await world.node.stop() == 0
        world.interrupted()
    await world.node.serve()
    await world.load.end()
    await world.settled()
    assert world.ledger.doubled == 0
    return await world.judge()


async def frozen(world: World) -> Outcome:
    """SIGSTOP, until another node has taken over what was in flight; that one dies with it, and SIGCONT."""
    await world.node.doom(rate=RATE, RELAY_LEASE="3s")
    await _hold(world, 20)
    world.node.signal(signal.SIGSTOP)
    await _take_over(world, 20)
    world.endpoint.let_go.set()
    world.node.signal(signal.SIGCONT)
    world.interrupted()
    await until(lambda: _refused(world, 20), "late settlements were not refused")
    await until(lambda: len(world.ledger.arrivals) >= 40, "what was taken over did not arrive again")
    await world.settled()
    return await world.judge()


async def frozen_under_load(world: World, *, rounds: int) -> Outcome:
    """SIGSTOP for longer than a lease and SIGCONT, while publishers go on: the relay takes over from itself."""
    await world.node.doom(rate=RATE, RELAY_LEASE="3s")
    world.load.begin()
    for _ in range(rounds):
        before = len(world.ledger.promises)
        await until(lambda before=before: len(world.ledger.promises) > before + 50, "little is accepted")
        world.node.signal(signal.SIGSTOP)
        world.interrupted()
        await two_leases(world)
        world.node.signal(signal.SIGCONT)
    await world.load.end()
    await world.settled()
    return await world.judge()


async def two_leases(world: World) -> None:
    """Wait for twice as long as a lease of 3 s lasts by the clock of a doomed relay."""
    clock = FastClock(world.node.epoch, RATE)
    until_at = clock.now() + 2 * _LEASE_MS
    await until(lambda: clock.now() > until_at, "time stands still")


async def _hold(world: World, count: int) -> None:
    """That many deliveries are in flight, and the endpoint does not answer."""
    statuses = await asyncio.gather(*(world.client.publish(Kind.HELD) for _ in range(count)))
    assert set(statuses) == {200}
    await until(lambda: world.endpoint.holding == count, "not all are in flight")


async def _is_stopping(world: World) -> bool:
    return await world.client.status("/readyz") != 200


async def _refused(world: World, count: int) -> bool:
    return await world.client.metric("relay_settlements_refused_total") >= count


async def _take_over(world: World, count: int) -> None:
    """As another node on the same database would, once the leases have run out."""
    database = world.node.database
    if database.startswith("sqlite:"):
        # One file has one relay. The frozen one keeps the lock it has, on a name that is free again.
        Path(database.removeprefix("sqlite:///") + ".lock").unlink()
    clock = FastClock(world.node.epoch, RATE)
    other = await open_storage(database)
    taken = 0

    async def take() -> bool:
        nonlocal taken
        claimed: Claimed = await other.claim(ClaimTerms(limit=count, lease_ms=_LEASE_MS), now=clock.now())
        taken += len(claimed.claims)
        return taken >= count

    try:
        await until(take, lambda: f"only {taken} leases ran out")
    finally:
        await other.close()
