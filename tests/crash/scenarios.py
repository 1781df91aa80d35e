"""Every scenario by name, for the table; the tests run a part of them, several deaths in one life."""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tests import postgres_server
from tests.crash import clocks, endpoints, kills, nodes, pooled, server, stops, ticks, trouble
from tests.crash.doom import steps_of
from tests.crash.world import Outcome, World, a_world

#: From an empty directory to the URL of a database that nobody has used.
BACKENDS: Mapping[str, Callable[[Path], str]] = {
    "sqlite": lambda directory: f"sqlite:///{directory}/relay.db",
    "postgresql": lambda directory: postgres_server.url(),
}

#: What every message that is delivered goes through, and what some do.
ROAD = ("publish", "claim", "send", "settle", "bury")


@dataclass(frozen=True, slots=True)
class Scenario:
    """`backends` are those it can be played on: all, unless it needs a file, or a server."""

    name: str
    run: Callable[[World], Awaitable[Outcome]]
    environment: Mapping[str, str] = field(default_factory=dict)
    backends: Sequence[str] = tuple(BACKENDS)
    nodes: int = 1


async def play(scenario: Scenario, directory: Path, backend: str) -> Outcome:
    """Play it in an empty directory; raises AssertionError when a promise was broken."""
    async with a_world(
        directory, BACKENDS[backend](directory), scenario.environment, nodes=scenario.nodes
    ) as world:
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


#: One relay that several nodes make up needs a database they can share.
_SHARED = ["postgresql"]
_NODES = 3


def one_killed_at(verb: str) -> Scenario:
    return Scenario(
        f"SIGKILL of one of {_NODES} at every step of {verb}",
        partial(nodes.one_dies_at, steps=steps_of(verb, server=True)),
        backends=_SHARED,
        nodes=_NODES,
    )


def one_killed_at_random(rounds: int) -> Scenario:
    return Scenario(
        f"{rounds} times SIGKILL of one of {_NODES}",
        partial(nodes.one_dies_at_random, rounds=rounds),
        kills.SHORT_LEASE,
        _SHARED,
        _NODES,
    )


def all_killed_at_once(rounds: int) -> Scenario:
    return Scenario(
        f"{rounds} times SIGKILL of all {_NODES} at once",
        partial(nodes.all_die_at_once, rounds=rounds),
        kills.SHORT_LEASE,
        _SHARED,
        _NODES,
    )


def one_frozen_under_load(rounds: int) -> Scenario:
    return Scenario(
        f"{rounds} times SIGSTOP of one of {_NODES} under load",
        partial(nodes.one_freezes_under_load, rounds=rounds),
        backends=_SHARED,
        nodes=_NODES,
    )


def sessions_terminated(rounds: int) -> Scenario:
    return Scenario(
        f"{rounds} times pg_terminate_backend of all",
        partial(server.terminated, rounds=rounds),
        backends=_SHARED,
        nodes=2,
    )


def server_crashed(rounds: int) -> Scenario:
    return Scenario(
        f"{rounds} times SIGKILL of a backend",
        partial(server.crashed, rounds=rounds),
        backends=_SHARED,
        nodes=2,
    )


def clock_set(trouble: str) -> Scenario:
    return Scenario(f"clock an hour {trouble}, and back", partial(clocks.is_set, trouble=trouble), kills.LONG)


DATABASE_AHEAD = Scenario(
    f"clock of PostgreSQL an hour ahead of {_NODES}",
    clocks.database_goes_ahead,
    backends=_SHARED,
    nodes=_NODES,
)


def one_clock_set(trouble: str) -> Scenario:
    return Scenario(
        f"one clock of {_NODES} an hour {trouble}, and back",
        partial(clocks.is_set, trouble=trouble),
        kills.LONG,
        _SHARED,
        _NODES,
    )


def clock_set_between_ticks(trouble: str) -> Scenario:
    return Scenario(
        f"ticks, clock an hour {trouble}, and back",
        partial(ticks.while_a_clock_is_set, trouble=trouble),
        ticks.LONG_LEASE,
    )


def endpoints_misbehave(rounds: int) -> Scenario:
    return Scenario(
        f"endpoints hang, reset, answer late; {rounds} SIGKILL", partial(endpoints.misbehave, rounds=rounds)
    )


FIRING_TOGETHER = Scenario(
    f"SIGKILL of one of {_NODES} at every step of a firing",
    ticks.around_firings,
    ticks.LONG_LEASE,
    _SHARED,
    _NODES,
)
ONE_FROZEN = Scenario(
    f"SIGSTOP of one of {_NODES}, taken over, SIGCONT", nodes.one_freezes, backends=_SHARED, nodes=_NODES
)
ROLLING = Scenario(f"{_NODES} replaced one by one", nodes.rolling, backends=_SHARED, nodes=_NODES)
CUT_OFF = Scenario(
    f"one of {_NODES} cut off from its database", server.one_is_cut_off, backends=_SHARED, nodes=_NODES
)
SERVER_KILLED = Scenario("SIGKILL of PostgreSQL", server.killed, backends=_SHARED, nodes=2)
SERVER_RESTARTED = Scenario("PostgreSQL restarted", server.restarted, backends=_SHARED, nodes=2)
NETWORK_CUT = Scenario("network to PostgreSQL cut", server.cut, backends=_SHARED, nodes=2)
NETWORK_SWALLOWS = Scenario(
    "network to PostgreSQL swallows everything", server.swallowed, backends=_SHARED, nodes=2
)
NETWORK_SLOW = Scenario("network to PostgreSQL slow", server.slow, backends=_SHARED, nodes=2)


def killed_behind_a_pooler(rounds: int) -> Scenario:
    return Scenario(
        f"{rounds} times SIGKILL of one of 2, pooler",
        partial(pooled.one_dies_at_random, rounds=rounds),
        pooled.SEVERAL_WORKERS,
        _SHARED,
        nodes=2,
    )


RESTARTED_BEHIND_A_POOLER = Scenario(
    "PostgreSQL restarted, pooler", pooled.restarted, pooled.SEVERAL_WORKERS, _SHARED, nodes=2
)
FIRING_BEHIND_A_POOLER = Scenario(
    "ticks, SIGKILL at every step of a firing, pooler",
    pooled.around_firings,
    ticks.LONG_LEASE,
    _SHARED,
    nodes=2,
)


def all_of(backend: str) -> Iterable[Scenario]:
    """In the order of the table, each step in a life of its own."""
    shared = backend in _SHARED
    scenarios = [
        *map(killed_on_the_road, steps_of(*ROAD, server=shared)),
        *map(killed_in_a_redrive, steps_of("redrive", server=shared)),
        *map(killed_while_handing_back, steps_of("hand_back", server=shared)),
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
        clock_set("ahead"),
        clock_set("behind"),
        clock_set_between_ticks("ahead"),
        clock_set_between_ticks("behind"),
        endpoints_misbehave(3),
        AWAY,
        AWAY_BEFORE_SIGNING,
        LOCKED,
        UNWRITABLE,
        FULL,
        READONLY,
        KILLED_IN_TROUBLE,
        *map(one_killed_at, ROAD),
        FIRING_TOGETHER,
        one_killed_at_random(3),
        all_killed_at_once(5),
        ROLLING,
        ONE_FROZEN,
        one_frozen_under_load(6),
        CUT_OFF,
        one_clock_set("ahead"),
        one_clock_set("behind"),
        DATABASE_AHEAD,
        SERVER_KILLED,
        SERVER_RESTARTED,
        server_crashed(5),
        sessions_terminated(20),
        NETWORK_CUT,
        NETWORK_SWALLOWS,
        NETWORK_SLOW,
        killed_behind_a_pooler(5),
        RESTARTED_BEHIND_A_POOLER,
        FIRING_BEHIND_A_POOLER,
    ]
    return [scenario for scenario in scenarios if backend in scenario.backends]
