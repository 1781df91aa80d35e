"""What a claim costs a row while ever more messages wait in the future: `python -m tests.bench.claim`.

Straight on the storage package, in this process. One database for each size, all open at once, claimed from in
turns, so that the machine's noise falls on all of them alike. Each turn makes some messages due, claims all of
them, and settles them outside the measurement; a poll is a claim that finds nothing. With `--postgres` the
databases are schemas of one PostgreSQL, whose CPU counts with that of this process.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import uvloop

from relay.domain.delivery import Claim, settle
from storage.postgres import open_postgres
from storage.protocol import ClaimTerms, Storage
from storage.sqlite import open_sqlite
from tests.bench import filling, machine, systems
from tests.bench.table import Finding, conclude, show, spread
from tests.builders import an_attempt, next_id
from tests.postgres_server import Server

_URL = "http://127.0.0.1:9/hook"
_DAY_MS = 86_400_000
_TERMS = ClaimTerms(limit=500, lease_ms=30_000)
#: Small, so that millions fit; the body is not what a claim's index has to find its way through.
_WAITING_BODY_BYTES = 64
_DUE_EACH_ROUND = 2_000
_POLLS_EACH_ROUND = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How much to measure."""

    sizes: Sequence[int] = (1_000, 100_000, 1_000_000)
    rounds: int = 7
    postgres: bool = False
    directory: Path | None = None


@dataclass(slots=True)
class _Waiting:
    """A database in which `count` messages wait for days to come."""

    count: int
    storage: Storage
    #: CPU seconds so far of everything that works for it.
    cpu: Callable[[], float]
    cpu_micros: list[float] = field(default_factory=list)
    wall_micros: list[float] = field(default_factory=list)
    poll_micros: list[float] = field(default_factory=list)


def measure(options: Options) -> list[Finding]:
    """Fill the databases, claim from them in turns, and print the table."""
    with systems.workspace(options.directory) as directory, machine.on_core(machine.SYSTEM_CORE):
        flushes = machine.fdatasync_rate(directory)
        with _server() if options.postgres else nullcontext() as server:
            databases = uvloop.run(_measure(directory, options, server))
    show(
        f"{'PostgreSQL' if options.postgres else 'SQLite'}, claims of {_TERMS.limit}, {_DUE_EACH_ROUND} due"
        f" messages of 1 KB in each of {options.rounds} rounds:"
        " median (min-max)",
        ("waiting in the future", "CPU us/row", "wall us/row", "empty poll, wall us"),
        [
            (
                f"{database.count:,}",
                spread(database.cpu_micros, 1),
                spread(database.wall_micros, 1),
                spread(database.poll_micros),
            )
            for database in databases
        ],
    )
    print(f"  fdatasync/s here: {flushes:.0f}")
    first, last = databases[0], databases[-1]
    ratios = [a / b for a, b in zip(last.cpu_micros, first.cpu_micros, strict=True)]
    return [
        Finding(
            what=f"claim cost per row{' on PostgreSQL' if options.postgres else ''},"
            f" {last.count:,} waiting / {first.count:,}",
            value=f"{spread(ratios, 2)}, {statistics.median(last.cpu_micros):.1f} us a row,"
            f" fdatasync/s {flushes:.0f}",
            aim="<= 1.3",
        )
    ]


@contextmanager
def _server() -> Iterator[Server]:
    server = Server(fsync="on", full_page_writes="on")
    try:
        server.start()
        yield server
    finally:
        server.remove()


async def _measure(directory: Path, options: Options, server: Server | None) -> list[_Waiting]:
    databases: list[_Waiting] = []
    try:
        for count in options.sizes:
            if server is None:
                storage: Storage = await open_sqlite(f"sqlite:///{directory / str(count)}.db")
                database = _Waiting(count, storage, time.process_time)
            else:
                storage = await open_postgres(server.url())
                database = _Waiting(
                    count, storage, lambda: time.process_time() + machine.cpu_seconds(server.pid)
                )
            databases.append(database)
            later = [filling.now() + day * _DAY_MS for day in (2, 1, 30, 7, 365)]
            seconds = await filling.fill(
                database.storage, count, url=_URL, not_before=later, body_bytes=_WAITING_BODY_BYTES
            )
            print(f"{count:,} messages stored in {seconds:.1f} s", flush=True)
        for turn in range(options.rounds + 1):
            for database in databases:
                await _round(database)
                if turn == 0:  # caches fill up
                    database.cpu_micros.clear()
                    database.wall_micros.clear()
                    database.poll_micros.clear()
    finally:
        for database in databases:
            await database.storage.close()
    return databases


async def _round(database: _Waiting) -> None:
    storage = database.storage
    now = filling.now()
    await storage.publish(filling.messages(_DUE_EACH_ROUND, first=0, url=_URL, not_before=now), now=now)
    claims: list[Claim] = []
    wall, cpu = time.perf_counter(), database.cpu()
    while len(claims) < _DUE_EACH_ROUND:
        claimed = (await storage.claim(_TERMS, now=filling.now() + 1)).claims
        if not claimed:
            raise RuntimeError(f"only {len(claims)} of {_DUE_EACH_ROUND} due messages were claimed")
        claims += claimed
    database.cpu_micros.append((database.cpu() - cpu) / len(claims) * 1e6)
    database.wall_micros.append((time.perf_counter() - wall) / len(claims) * 1e6)
    if len(claims) > _DUE_EACH_ROUND:
        raise RuntimeError(f"{len(claims)} claims of {_DUE_EACH_ROUND} due messages")
    attempt = an_attempt(started_at=now, ended_at=filling.now())
    refused = await storage.settle([settle(claim, attempt, next_id=next_id) for claim in claims])
    if refused:
        raise RuntimeError(f"{len(refused)} settlements were refused")
    for _ in range(_POLLS_EACH_ROUND):
        wall = time.perf_counter()
        await storage.claim(_TERMS, now=filling.now())
        database.poll_micros.append((time.perf_counter() - wall) * 1e6)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.claim", description=__doc__)
    parser.add_argument("--full", action="store_true", help="five million waiting as well (minutes, 5 GB)")
    parser.add_argument("--sizes", type=int, nargs="+", help="how many wait, instead of 1 k, 100 k and 1 M")
    parser.add_argument("--postgres", action="store_true", help="on PostgreSQL instead of SQLite")
    parser.add_argument("--rounds", type=int, default=Options().rounds)
    parser.add_argument("--directory", type=Path, help="where databases are made (default: the system's)")
    given = parser.parse_args()
    sizes = tuple(given.sizes or Options().sizes) + ((5_000_000,) if given.full else ())
    systems.stop_on_sigterm()
    conclude(
        measure(Options(sizes=sizes, rounds=given.rounds, postgres=given.postgres, directory=given.directory))
    )


if __name__ == "__main__":
    main()
