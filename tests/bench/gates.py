"""What queues and flow-control keys cost: `python -m tests.bench.gates`.

Straight on the storage package, in this process. A queue is drained one message after the other, each claimed once
the one before it is settled, and every place in it is checked. Then messages of one key are published, claimed and
settled, in turns in databases that differ by what waits behind another, closed key.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import uvloop
from msgspec.structs import replace

from relay.domain.delivery import Claim, settle
from relay.domain.gates import Configure, GateKind
from relay.domain.message import FlowControl, Message
from storage.protocol import ClaimTerms, Storage
from storage.sqlite import open_sqlite
from tests.bench import filling, machine, systems
from tests.bench.table import Finding, conclude, show, spread
from tests.builders import TENANT, an_attempt, next_id

_URL = "http://127.0.0.1:9/hook"
_TERMS = ClaimTerms(limit=500, lease_ms=30_000)
_BATCH = 1_000
_EACH_ROUND = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How much to measure."""

    queued: int = 10_000
    closed: Sequence[int] = (0, 10_000, 100_000)
    rounds: int = 9
    directory: Path | None = None


@dataclass(slots=True)
class _Closed:
    """A database in which `count` messages wait behind a closed key."""

    count: int
    storage: Storage
    cpu_micros: list[float] = field(default_factory=list)


def measure(options: Options) -> list[Finding]:
    """Drain the queue, work beside closed keys, and print both."""
    with systems.workspace(options.directory) as directory, machine.on_core(machine.SYSTEM_CORE):
        seconds, cpu_s = uvloop.run(_drain(directory, options.queued))
        databases = uvloop.run(_beside(directory, options))
    print(f"A queue of {options.queued:,} drained in order, one at a time, in {seconds:.1f} s")
    show(
        f"Publish, claim and settlement of {_EACH_ROUND} messages with a key, {options.rounds} rounds:"
        " median (min-max)",
        ("behind another, closed key", "CPU us/message"),
        [(f"{database.count:,}", spread(database.cpu_micros, 1)) for database in databases],
    )
    first, last = databases[0], databases[-1]
    ratio = statistics.median(last.cpu_micros) / statistics.median(first.cpu_micros)
    return [
        Finding(
            what=f"queue of {options.queued:,}, one at a time",
            value=f"in order, {options.queued / seconds:.0f}/s, {cpu_s / options.queued * 1e6:.0f} us CPU each",
        ),
        Finding(
            what=f"cost beside {last.count:,} behind a closed key / beside none",
            value=f"{ratio:.2f}",
            aim="<= 1.1",
        ),
    ]


async def _drain(directory: Path, count: int) -> tuple[float, float]:
    """Wall and CPU seconds."""
    storage = await open_sqlite(f"sqlite:///{directory / 'queue.db'}")
    try:
        messages = _messages(count, queue="jobs")
        for first in range(0, count, _BATCH):
            await storage.publish(messages[first : first + _BATCH], now=filling.now())
        wall, cpu = time.perf_counter(), time.process_time()
        for message in messages:
            claims = (await storage.claim(_TERMS, now=filling.now())).claims
            if [claim.message.id for claim in claims] != [message.id]:
                raise RuntimeError(f"{len(claims)} claims, and not of the next in line alone")
            await _settle(storage, claims)
        return time.perf_counter() - wall, time.process_time() - cpu
    finally:
        await storage.close()


async def _beside(directory: Path, options: Options) -> Sequence[_Closed]:
    databases: list[_Closed] = []
    try:
        for count in options.closed:
            database = _Closed(count, await open_sqlite(f"sqlite:///{directory / f'closed{count}.db'}"))
            databases.append(database)
            closed = Configure(paused=True)
            await database.storage.change_gate(
                TENANT, GateKind.FLOW, "closed", closed, create=True, now=filling.now()
            )
            for first in range(0, count, _BATCH):
                waiting = _messages(min(_BATCH, count - first), key="closed")
                await database.storage.publish(waiting, now=filling.now())
        for turn in range(options.rounds + 1):
            for database in databases:
                await _round(database)
                if turn == 0:  # caches fill up
                    database.cpu_micros.clear()
    finally:
        for database in databases:
            await database.storage.close()
    return databases


async def _round(database: _Closed) -> None:
    messages = _messages(_EACH_ROUND, key="open")
    cpu = time.process_time()
    await database.storage.publish(messages, now=filling.now())
    claims = (await database.storage.claim(_TERMS, now=filling.now())).claims
    if len(claims) != _EACH_ROUND:
        raise RuntimeError(f"{len(claims)} of {_EACH_ROUND} messages with an open key were claimed")
    await _settle(database.storage, claims)
    database.cpu_micros.append((time.process_time() - cpu) / _EACH_ROUND * 1e6)


async def _settle(storage: Storage, claims: Sequence[Claim]) -> None:
    now = filling.now()
    attempt = an_attempt(started_at=now, ended_at=now)
    if await storage.settle([settle(claim, attempt, next_id=next_id) for claim in claims]):
        raise RuntimeError("settlements were refused")


def _messages(count: int, *, queue: str | None = None, key: str | None = None) -> list[Message]:
    made = filling.messages(count, first=0, url=_URL, not_before=filling.now(), body_bytes=64)
    flow = None if key is None else FlowControl(key=key)
    return [replace(one, flow=flow, origin=replace(one.origin, queue=queue)) for one in made]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.gates", description=__doc__)
    parser.add_argument("--queued", type=int, default=Options().queued, help="messages in the queue")
    parser.add_argument("--rounds", type=int, default=Options().rounds)
    parser.add_argument("--directory", type=Path, help="where databases are made (default: the system's)")
    given = parser.parse_args()
    systems.stop_on_sigterm()
    conclude(measure(Options(queued=given.queued, rounds=given.rounds, directory=given.directory)))


if __name__ == "__main__":
    main()
