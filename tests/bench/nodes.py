"""Throughput and CPU with 1, 2 and 4 processes on one PostgreSQL: `python -m tests.bench.nodes`.

The database flushes its log at each commit, as in production. Relay, database and load share all cores of the
machine, in turns of a fresh schema each: where there are few cores the curve ends early, and what counts is the CPU
that a message costs.
"""

import argparse
import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import uvloop

from tests.bench import load, machine, systems
from tests.bench.table import Finding, conclude, show, spread
from tests.live import a_relay
from tests.postgres_server import Server

_SETTLED_S = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How much to measure."""

    workers: tuple[int, ...] = (1, 2, 4)
    rounds: int = 3
    messages: int = 5_000
    connections: int = load.CONNECTIONS
    directory: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One closed loop; CPU in seconds for a thousand messages."""

    rate: float
    relay_cpu: float
    database_cpu: float
    load_cpu: float
    doubled: int


def measure(options: Options) -> list[Finding]:
    """Run the rounds and print the table."""
    turns: dict[int, list[Turn]] = {workers: [] for workers in options.workers}
    server = Server(fsync="on", full_page_writes="on")
    try:
        server.start()
        with systems.workspace(options.directory) as directory:
            for number in range(options.rounds):
                for workers in options.workers:
                    own = directory / f"{number}-{workers}"
                    own.mkdir()
                    turns[workers].append(_turn(server, workers, own, options))
                    print(
                        f"round {number + 1} of {options.rounds}, {workers} workers:"
                        f" {turns[workers][-1].rate:.0f} messages/s",
                        flush=True,
                    )
    finally:
        server.remove()
    show(
        f"One PostgreSQL, {options.messages} messages of 1 KB, {options.connections} connections, closed loop,"
        f" {len(machine.cores())} cores for everything, {options.rounds} rounds: median (min-max)",
        ("workers", "messages/s", "relay CPU s/1000", "database CPU s/1000", "load CPU s/1000", "doubled"),
        [_row(workers, turns[workers]) for workers in options.workers],
    )
    return [
        Finding(
            what=f"{workers} workers on PostgreSQL, messages/s",
            value=spread([turn.rate for turn in turns[workers]]),
        )
        for workers in options.workers
    ]


def _turn(server: Server, workers: int, directory: Path, options: Options) -> Turn:
    with a_relay(
        "--workers",
        str(workers),
        directory=directory,
        mode="serve",
        environment={
            "RELAY_DATABASE_URL": server.url(),
            "RELAY_TOKEN": systems.TOKEN,
            "RELAY_ALLOW_NETWORKS": "127.0.0.0/8",
        },
    ) as live:
        system = systems.System(name="relay", pid=live.process.pid, port=int(live.port), log=live.log)
        return uvloop.run(_run(system, server.pid, options))


async def _run(system: systems.System, postmaster: int, options: Options) -> Turn:
    async with load.receiver() as endpoint:
        warm_up = min(1_000, options.messages)
        await _publish_all(system, endpoint, load.Ledger(first=0, count=warm_up), options)
        ledger = load.Ledger(first=warm_up, count=options.messages)
        relay, database, own = system.cpu(), machine.cpu_seconds(postmaster), time.process_time()
        await _publish_all(system, endpoint, ledger, options)
        thousands = options.messages / 1000
        return Turn(
            rate=options.messages / (max(ledger.arrived) - min(ledger.sent)),
            relay_cpu=(system.cpu() - relay) / thousands,
            database_cpu=(machine.cpu_seconds(postmaster) - database) / thousands,
            load_cpu=(time.process_time() - own) / thousands,
            doubled=ledger.doubled,
        )


async def _publish_all(
    system: systems.System, endpoint: load.Receiver, ledger: load.Ledger, options: Options
) -> None:
    """Returns when everything has arrived and is settled."""
    seconds = 60 + ledger.count / 100
    await load.closed_loop(system, endpoint, ledger, connections=options.connections, seconds=seconds)
    await ledger.all_arrived(seconds=seconds)
    async with asyncio.timeout(_SETTLED_S):
        while await asyncio.to_thread(system.metric, "relay_messages_live"):
            await asyncio.sleep(0.05)


def _row(workers: int, turns: Sequence[Turn]) -> tuple[str, ...]:
    return (
        str(workers),
        spread([turn.rate for turn in turns]),
        spread([turn.relay_cpu for turn in turns], 2),
        spread([turn.database_cpu for turn in turns], 2),
        spread([turn.load_cpu for turn in turns], 2),
        str(sum(turn.doubled for turn in turns)),
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.nodes", description=__doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--messages", type=int, default=5_000, help="in each turn")
    parser.add_argument("--connections", type=int, default=load.CONNECTIONS)
    parser.add_argument("--directory", type=Path, help="where logs are made (default: the system's)")
    given = parser.parse_args()
    systems.stop_on_sigterm()
    conclude(
        measure(
            Options(
                workers=tuple(given.workers),
                rounds=given.rounds,
                messages=given.messages,
                connections=given.connections,
                directory=given.directory,
            )
        )
    )


if __name__ == "__main__":
    main()
