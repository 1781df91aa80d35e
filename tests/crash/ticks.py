"""Scenarios about schedules: relays die around every firing while minutes pass in a fifth of a second."""

import signal
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from relay.domain.schedule import MAX_RECORDED_SKIPS, Run, RunOutcome
from tests.crash import aftermath
from tests.crash.waiting import until
from tests.crash.world import Outcome, World

#: A minute every 200 ms, and leases as long as they may be, not to lose any to a busy machine.
RATE = 300
LONG_LEASE = {"RELAY_LEASE": "10m"}

_MINUTE_MS = 60_000
_CATCH_UP = ("all", "last", "none")
_LAST_MINUTES = 10


async def around_firings(world: World) -> Outcome:
    """Three schedules tick every minute, one for each way to catch up; one node dies, others fire along with it."""
    node, endpoint = world.node, world.endpoint
    for one in world.fleet.nodes:
        await one.doom(rate=RATE)
    for catch_up in _CATCH_UP:
        await _create(world, catch_up)
    await until(lambda: set(endpoint.scheduled) == set(_CATCH_UP), "not every schedule fires")
    assert await node.stop() == 0
    for step in world.steps_of("fire"):
        # The fifth firing: all three have fired, and it is in the middle of the next minute's.
        await node.doom("--at", step, "--nth", "5", rate=RATE)
        await world.dead()
    await node.doom(rate=RATE)
    world.interrupted()
    await _minutes_pass(world)
    return await _judge(world)


async def while_a_clock_is_set(world: World, *, trouble: str) -> Outcome:
    """Somebody sets the clock of the first node by an hour, and an hour or so later back."""
    node, *others = world.fleet.nodes
    await node.doom("--trouble", trouble, rate=RATE)
    for other in others:
        await other.doom(rate=RATE)
    for catch_up in _CATCH_UP:
        await _create(world, catch_up)
    await until(lambda: set(world.endpoint.scheduled) == set(_CATCH_UP), "not every schedule fires")
    node.signal(signal.SIGUSR1)
    await until(lambda: "trouble.began" in node.log, "the clock was not set")
    await _minutes_pass(world)
    node.signal(signal.SIGUSR2)
    await until(lambda: "trouble.ended" in node.log, "the clock was not set back")
    await _minutes_pass(world)
    return await _judge(world)


async def _minutes_pass(world: World) -> None:
    scheduled = world.endpoint.scheduled["none"]
    seen = len(scheduled)
    await until(lambda: len(scheduled) >= seen + _LAST_MINUTES, "minutes do not pass")


async def _judge(world: World) -> Outcome:
    """Every tick by the relay's own record, and by what arrived."""
    endpoint = world.endpoint
    await world.stopped()
    # A clock that is not hurried delivers what was fired just before the stop, and fires nothing more.
    found = await aftermath.examine(world.node.database)
    problems = list(found.problems)
    for catch_up in _CATCH_UP:
        arrived = Counter(endpoint.scheduled[catch_up])
        problems += _inexact(catch_up, found.runs[catch_up], arrived, set(found.alive))
    assert not problems, "\n".join(problems)
    fired = {
        id
        for runs in found.runs.values()
        for run in runs
        for id in map(aftermath.text_of_id, run.message_ids)
    }
    arrivals = [message_id for ids in endpoint.scheduled.values() for message_id in ids]
    return Outcome(
        len(fired),
        len(fired - set(arrivals) - found.alive.keys()),
        len(arrivals) - len(set(arrivals)),
        None,
    )


async def _create(world: World, catch_up: str) -> None:
    answer = await world.client.ask(
        "POST",
        f"/v2/schedules/{world.endpoint.url}",
        data=b"tick",
        headers={
            "Upstash-Cron": "* * * * *",
            "Upstash-Schedule-Id": catch_up,
            "Relay-Schedule-Catch-Up": catch_up,
        },
    )
    assert answer is not None
    assert answer[0] == 200, answer


def _inexact(
    catch_up: str, newest_first: Sequence[Run], arrived: Counter[str], alive: set[str]
) -> Sequence[str]:
    """What is wrong with the ticks of a schedule, by its own record and by what arrived."""
    runs = newest_first[::-1]
    messages = [aftermath.text_of_id(id) for run in runs for id in run.message_ids]
    problems = []
    for position, (run, following) in enumerate(pairwise(runs)):
        missing = (following.tick_at - run.tick_at) // _MINUTE_MS - 1
        if missing and not _is_long_absence(catch_up, runs[position:]):
            problems.append(f"{catch_up}: {missing} ticks are missing after {run.tick_at}")
    for run in runs:
        fired = run.outcome is RunOutcome.FIRED
        if len(run.message_ids) != fired or (catch_up == "all" and not fired):
            problems.append(f"{catch_up}: {run}")
    if len(set(messages)) != len(messages):
        problems.append(f"{catch_up}: ticks share a message")
    if unknown := arrived.keys() - set(messages):
        problems.append(f"{catch_up}: arrived, and no tick made it: {unknown}")
    if lost := set(messages) - arrived.keys() - alive:
        problems.append(f"{catch_up}: fired, and did not arrive: {lost}")
    return problems


def _is_long_absence(catch_up: str, runs: Sequence[Run]) -> bool:
    """Whether a gap follows the first of these for the only reason there is: so many skips are not recorded."""
    skipped = [run.outcome is RunOutcome.SKIPPED_MISSED for run in runs[:MAX_RECORDED_SKIPS]]
    return catch_up != "all" and len(skipped) == MAX_RECORDED_SKIPS and all(skipped)
