"""Every scenario by name, for the table; the tests run a part of them, several deaths in one life."""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tests.crash import kills, stops, ticks, trouble
from tests.crash.doom import steps_of
from tests.crash.world import Outcome, World, a_world

#: From an empty directory to the URL of a database that nobody has used.
BACKENDS: Mapping[str, Callable[[Path], str]] = {
    "sqlite": lambda directory: f"sqlite:///{directory}/relay.db",
}

#: What every message that is delivered goes through, and what some do.
ROAD = ("publish", "claim", "send", "settle", "bury")


@dataclass(frozen=True, slots=True)
class Scenario:
    """`backends` are those it can be played on: all, unless it needs a file."""

    name: str
    run: Callable[[World], Awaitable[Outcome]]
    environment: Mapping[str, str] = field(default_factory=dict)
    backends: Sequence[str] = tuple(BACKENDS)


async def play(scenario: Scenario, directory: Path, backend: str) -> Outcome:
    """Play it in an empty directory; raises AssertionError when a promise was broken."""
    async with a_world(directory, BACKENDS[backend](directory), scenario.environment) as world:
        return await scenario.run(world)


def killed_on_the_road(*steps: str) -> Scenario:
    return Scenario(f"SIGKILL at {', '.join(steps)}", partial(kills.at, steps=steps), kills.SHORT_LEASE)


def killed_in_a_redrive(step: str) -> Scenario:
    return Scenario(f"SIGKILL at {step}", partial(kills.at_redrive, step=step), kills.SHORT_LEASE)


def killed_while_handing_back(step: str) -> Scenario:
    return Scenario(f"SIGKILL at {step}", partial(kills.while_handing_back, step=step), kills.SHORT_LEASE)


def killed_at_random(rounds: int) -> Scenario:
    return Scenario(
        f"{rounds} times SIGKILL at random", partial(kills.at_random, rounds=rounds), kills.SHORT_LEASE
    )


def restarted_under_load(rounds: int) -> Scenario:
    return Scenario(f"{rounds} times SIGTERM under load", partial(stops.under_load, rounds=rounds))


def frozen_under_load(rounds: int) -> Scenario:
    return Scenario(
        f"{rounds} times SIGSTOP for two leases under load", partial(stops.frozen_under_load, rounds=rounds)
    )


PRUNING = Scenario("SIGKILL at every step of pruning", kills.while_pruning, kills.SHORT_MEMORY)
MIGRATING = Scenario("SIGKILL at every step of a migration", kills.while_migrating)
FIRING = Scenario("SIGKILL at every step of a firing", ticks.around_firings, ticks.LONG_LEASE)
POISON = Scenario("killed by a message, again and again", kills.by_poison, kills.SHORT_LEASE)
FINISHING = Scenario("SIGTERM, answered in time", stops.finishing)
HANDING_BACK = Scenario("SIGTERM, handed back", stops.handing_back)
AT_ONCE = Scenario("SIGTERM twice", stops.at_once)
FROZEN = Scenario("SIGSTOP, taken over, SIGCONT", stops.frozen)
AWAY = Scenario("storage does not answer", trouble.away)
AWAY_BEFORE_SIGNING = Scenario("storage goes before signing", trouble.away_before_signing)
LOCKED = Scenario("file locked by another process", trouble.locked, backends=["sqlite"])
UNWRITABLE = Scenario("file cannot be written", trouble.unwritable, backends=["sqlite"])
FULL = Scenario("file cannot grow", trouble.full, backends=["sqlite"])
READONLY = Scenario("file is read-only", trouble.readonly, backends=["sqlite"])
KILLED_IN_TROUBLE = Scenario(
    "SIGKILL while nothing can be written", trouble.killed_in_trouble, backends=["sqlite"]
)


def all_of(backend: str) -> Iterable[Scenario]:
    """In the order of the table, each step in a life of its own."""
    scenarios = [
        *map(killed_on_the_road, steps_of(*ROAD)),
        *map(killed_in_a_redrive, steps_of("redrive")),
        *map(killed_while_handing_back, steps_of("hand_back")),
        FIRING,
        PRUNING,
        MIGRATING,
        POISON,
        killed_at_random(20),
        FINISHING,
        HANDING_BACK,
        AT_ONCE,
        restarted_under_load(5),
        FROZEN,
        frozen_under_load(5),
        AWAY,
        AWAY_BEFORE_SIGNING,
        LOCKED,
        UNWRITABLE,
        FULL,
        READONLY,
        KILLED_IN_TROUBLE,
    ]
    return [scenario for scenario in scenarios if backend in scenario.backends]
