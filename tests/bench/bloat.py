"""How large PostgreSQL's tables stay while very many messages go through: `python -m tests.bench.bloat`.

Straight on the storage package: messages are published and claimed at once, as the engine does, and settled, a
thousand in flight at a time, while autovacuum works as configured by the schema. The hot tables must not grow with
what went through; history grows until retention forgets it. Then the database is left alone with an idle relay's
questions for a while, to see what those cost.
"""

import argparse
import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import uvloop

from relay.domain.delivery import settle
from storage.postgres import open_postgres
from storage.protocol import ClaimTerms, Retention, Storage
from tests.bench import filling, machine, systems
from tests.bench.table import Finding, conclude, show
from tests.builders import an_attempt, next_id
from tests.postgres_server import Server

_URL = "http://127.0.0.1:9/hook"
_IN_FLIGHT = 1_000
_TERMS = ClaimTerms(limit=_IN_FLIGHT, lease_ms=30_000)
_HOT = ("deliveries", "depths", "dedup")
_KEPT = ("messages", "events")
_PRUNED_AT_ONCE = 5_000
_SIZES = """
    SELECT c.relname, pg_total_relation_size(c.oid) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = $1 AND c.relname = ANY ($2::text[])
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How much to measure: messages that go through, seconds of idling."""

    messages: int = 100_000
    idle_seconds: float = 10
    directory: Path | None = None


def measure(options: Options) -> list[Finding]:
    """Let the messages through and print the table."""
    with systems.workspace(options.directory):
        server = Server(fsync="on", full_page_writes="on")
        try:
            server.start()
            return uvloop.run(_measure(server, options))
        finally:
            server.remove()


async def _measure(server: Server, options: Options) -> list[Finding]:
    url = server.url()
    dsn, _, schema = url.rpartition("&schema=")
    storage = await open_postgres(url)
    looking = await asyncpg.connect(dsn)
    rows: list[tuple[str, ...]] = []
    try:
        began, cpu = time.perf_counter(), machine.cpu_seconds(server.pid)
        hot: list[float] = []
        steps = 10
        for step in range(1, steps + 1):
            await _through(storage, options.messages // steps)
            sizes = await _megabytes(looking, schema)
            hot.append(sum(sizes[name] for name in _HOT))
            rows.append(_row(f"{options.messages // steps * step:,}", sizes))
        seconds, cpu = time.perf_counter() - began, machine.cpu_seconds(server.pid) - cpu
        forgotten = Retention(events_before=filling.now() + 1, dead_letters_before=0)
        while await storage.prune(forgotten, now=filling.now() + 86_400_000, limit=_PRUNED_AT_ONCE):
            pass
        await looking.execute(f"VACUUM {', '.join(f'{schema}.{name}' for name in (*_HOT, *_KEPT))}")
        rows.append(_row("all forgotten, vacuumed", await _megabytes(looking, schema)))
        idle = machine.cpu_seconds(server.pid)
        until = time.perf_counter() + options.idle_seconds
        while time.perf_counter() < until:
            await storage.claim(_TERMS, now=filling.now())
            await asyncio.sleep(1)
        idle = (machine.cpu_seconds(server.pid) - idle) / options.idle_seconds
    finally:
        await looking.close()
        await storage.close()
    show(
        f"PostgreSQL, MB with indexes after so many messages of 1 KB ({options.messages / seconds:.0f}/s,"
        f" database {cpu / options.messages * 1e6:.0f} us CPU each)",
        ("", *_HOT, *_KEPT),
        rows,
    )
    return [
        Finding(
            what=f"hot tables after {options.messages:,} messages / after a tenth of them",
            value=f"{hot[-1] / hot[0]:.2f} ({hot[-1]:.1f} MB; highest {max(hot):.1f} MB)",
        ),
        Finding(what="an idle node's load on the database", value=f"{100 * idle:.2f} % of a core"),
    ]


async def _through(storage: Storage, count: int) -> None:
    """Publish, claim at once and settle so many."""
    for first in range(0, count, _IN_FLIGHT):
        now = filling.now()
        batch = filling.messages(min(_IN_FLIGHT, count - first), first=first, url=_URL, not_before=now)
        claims = (await storage.publish(batch, now=filling.now(), claim=_TERMS)).claims
        attempt = an_attempt(started_at=now, ended_at=filling.now())
        refused = await storage.settle([settle(claim, attempt, next_id=next_id) for claim in claims])
        if refused or len(claims) < len(batch):
            raise RuntimeError(f"{len(batch) - len(claims)} were not claimed, {len(refused)} not settled")


async def _megabytes(looking: "asyncpg.Connection[asyncpg.Record]", schema: str) -> Mapping[str, float]:
    found = await looking.fetch(_SIZES, schema, [*_HOT, *_KEPT])
    return {row[0]: row[1] / 2**20 for row in found}


def _row(name: str, sizes: Mapping[str, float]) -> tuple[str, ...]:
    return (name, *(f"{sizes[table]:.1f}" for table in (*_HOT, *_KEPT)))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.bloat", description=__doc__)
    parser.add_argument("--messages", type=int, default=Options().messages)
    parser.add_argument("--full", action="store_true", help="a million messages (minutes)")
    parser.add_argument("--directory", type=Path, help="where logs are made (default: the system's)")
    given = parser.parse_args()
    systems.stop_on_sigterm()
    count = 1_000_000 if given.full else given.messages
    conclude(measure(Options(messages=count, directory=given.directory)))


if __name__ == "__main__":
    main()
