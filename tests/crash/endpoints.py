"""Scenarios with endpoints that hang, reset and answer too late, while relays die."""

from tests.crash.kills import SHORT_LEASE
from tests.crash.ledger import Kind
from tests.crash.world import Outcome, World

_KINDS = (Kind.HUNG, Kind.PLAIN, Kind.RESET, Kind.LATE, Kind.PLAIN, Kind.FLAKY)


async def misbehave(world: World, *, rounds: int) -> Outcome:
    """The first attempt of most messages ends badly; a relay is killed among them, and started again."""
    nodes = world.fleet.nodes
    world.load = world.load_of(_KINDS)
    for node in nodes:
        await node.serve(**SHORT_LEASE)
    world.load.begin()
    for number in range(rounds):
        node = nodes[number % len(nodes)]
        await world.accepted(50)
        await world.killed(node)
        await node.serve(**SHORT_LEASE)
    await world.load.end()
    await world.settled()
    return await world.judge()
