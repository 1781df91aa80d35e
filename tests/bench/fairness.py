"""How long one message waits while others have very much: `python -m tests.bench.fairness`.

The database is filled through the storage package with a backlog for one host, then `relay serve` starts on it,
and meanwhile single messages are published evenly for another host. The backlog is the same tenant's or another's,
and its host answers at once, or never. Last, a message is due one millisecond after the whole backlog.
"""

import argparse
import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import uvloop
from msgspec.structs import replace

from relay.domain.message import TenantId
from relay.domain.tenant import Tenant
from storage.sqlite import open_sqlite
from tests.bench import filling, load, machine, systems
from tests.bench.table import Finding, conclude, percentile, show
from tests.builders import TENANT

_RATE = 10.0
_OTHER = TenantId(TENANT + 1)
_BATCH = 1000
#: Numbers of the backlog, which no ledger knows.
_BACKLOG = 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How much to measure: messages of each backlog, seconds of single messages beside it."""

    messages: int = 100_000
    seconds: float = 10
    directory: Path | None = None


def measure(options: Options) -> list[Finding]:
    """Run the contests and print the table."""
    with systems.workspace(options.directory) as directory, machine.on_core(machine.LOAD_CORE):
        rows = [
            ("alone", uvloop.run(_contest(directory / "alone.db", options, TENANT, hangs=False, messages=0)))
        ]
        for tenant, whose in ((TENANT, "the same tenant's"), (_OTHER, "another tenant's")):
            for hangs, what in ((False, "backlog for a quick host"), (True, "backlog for a host that hangs")):
                database = directory / f"{tenant}{hangs}.db"
                waits = uvloop.run(
                    _contest(database, options, tenant, hangs=hangs, messages=options.messages)
                )
                rows.append((f"beside {whose} {what}", waits))
        late = uvloop.run(_due_at_once(directory / "due.db", options))
    show(
        f"Single messages, {_RATE:g}/s, beside a backlog of {options.messages:,}: end to end, ms",
        ("", "p50", "max"),
        [(name, f"{percentile(waits, 50):.1f}", f"{waits[-1]:.1f}") for name, waits in rows],
    )
    worst = max(waits[-1] for _, waits in rows[1:])
    return [
        Finding(what="longest wait beside a backlog", value=f"{worst:.0f} ms", aim="< 1000 ms"),
        Finding(
            what=f"due 1 ms after {options.messages:,} others, late by",
            value=f"{late:.0f} ms",
            aim="< 1000 ms",
        ),
    ]


async def _contest(
    database: Path, options: Options, tenant: TenantId, *, hangs: bool, messages: int
) -> list[float]:
    """Milliseconds from publish to arrival of the single messages, in rising order."""
    async with load.receiver() as quick, _backlog_host(hangs=hangs) as port, load.receiver() as endpoint:
        port = port or quick.port
        with systems.relay(database):
            pass  # makes the account
        await _fill(database, tenant, messages, port=port, due_at=filling.now())
        with systems.relay(database) as system:
            ledger = load.Ledger(first=0, count=max(20, int(_RATE * options.seconds)))
            await load.open_loop(system, endpoint, ledger, rate=_RATE, connections=4)
            await ledger.all_arrived(seconds=60)
            return sorted((b - a) * 1000 for a, b in zip(ledger.sent, ledger.arrived, strict=True))


async def _due_at_once(database: Path, options: Options) -> float:
    """By how many milliseconds a message is late that is due right after a backlog."""
    async with load.receiver() as quick, load.receiver() as endpoint:
        with systems.relay(database):
            pass
        due_at = filling.now() + 5_000 + options.messages // 10
        await _fill(database, TENANT, options.messages, port=quick.port, due_at=due_at)
        storage = await open_sqlite(f"sqlite:///{database}")
        await filling.fill(storage, 1, url=endpoint.url, not_before=[due_at + 1])
        await storage.close()
        endpoint.ledger = load.Ledger(first=0, count=1)
        with systems.relay(database):
            if filling.now() > due_at:
                raise RuntimeError("the backlog was due before the relay ran: fill less")
            await endpoint.ledger.all_arrived(seconds=120)
        ago_ms = (time.perf_counter() - endpoint.ledger.arrived[0]) * 1000
        return filling.now() - ago_ms - due_at - 1


async def _fill(database: Path, tenant: TenantId, count: int, *, port: int, due_at: int) -> None:
    storage = await open_sqlite(f"sqlite:///{database}")
    try:
        if tenant != TENANT:
            keys = Tenant(id=tenant, user_id="other", current_key="sig_a", next_key="sig_b")
            await storage.put_tenant(keys, now=filling.now())
        for first in range(0, count, _BATCH):
            batch = filling.messages(
                min(_BATCH, count - first),
                first=_BACKLOG + first,
                url=f"http://localhost:{port}/hook",
                not_before=due_at,
            )
            await storage.publish([replace(one, tenant=tenant) for one in batch], now=filling.now())
    finally:
        await storage.close()


@asynccontextmanager
async def _backlog_host(*, hangs: bool) -> AsyncIterator[int]:
    """The port of an endpoint that accepts connections and answers nothing; 0 when none is wanted."""
    if not hangs:
        yield 0
        return
    held: list[asyncio.StreamWriter] = []

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held.append(writer)

    server = await asyncio.start_server(hold, "127.0.0.1", 0, backlog=4096)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for writer in held:
            writer.transport.abort()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.fairness", description=__doc__)
    parser.add_argument("--messages", type=int, default=Options().messages, help="of each backlog")
    parser.add_argument("--seconds", type=float, default=Options().seconds, help="of single messages")
    parser.add_argument("--directory", type=Path, help="where databases are made (default: the system's)")
    given = parser.parse_args()
    systems.stop_on_sigterm()
    conclude(measure(Options(messages=given.messages, seconds=given.seconds, directory=given.directory)))


if __name__ == "__main__":
    main()
