"""How fast a backlog drains that was stored while the relay was away: `python -m tests.bench.drain`.

The database is filled through the storage package with messages that are due, then `relay serve` starts on it:
every message is claimed, signed, delivered and settled. The stock floor, measured in the same run, says what
accepting and forwarding one message costs here; a drained message was accepted by nobody, so it should cost less.
"""

import argparse
import asyncio
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import uvloop

from storage.sqlite import open_sqlite
from tests.bench import filling, load, machine, systems
from tests.bench.table import Finding, conclude, show

_FLOOR_MESSAGES = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How much to measure."""

    messages: int = 200_000
    floor_messages: int = _FLOOR_MESSAGES
    directory: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Drained:
    seconds: float
    #: Of the whole process, its start included.
    cpu_seconds: float
    fill_seconds: float
    peak_mb: float
    doubled: int


def measure(options: Options) -> list[Finding]:
    """Fill, drain, and print the table."""
    with (
        systems.workspace(options.directory) as directory,
        machine.on_core(machine.LOAD_CORE),
    ):
        with systems.floor(directory) as system:
            floor = uvloop.run(load.closed_run(system, messages=options.floor_messages))
        flushes = machine.fdatasync_rate(directory)
        database = directory / "relay.db"
        with systems.relay(database) as system:
            starting = system.cpu()  # this first start also makes the account the messages belong to
        drained = uvloop.run(_drain(database, options.messages))
    rate = options.messages / drained.seconds
    micros = (drained.cpu_seconds - starting) / options.messages * 1e6
    show(
        f"A backlog of {options.messages:,} messages of 1 KB, one core",
        ("", "CPU us/message", "messages/s", "seconds", "peak RSS MB", "doubled"),
        [
            (
                "drained by the relay",
                f"{micros:.0f}",
                f"{rate:.0f}",
                f"{drained.seconds:.1f}",
                f"{drained.peak_mb:.0f}",
                str(drained.doubled),
            ),
            ("accepted, forwarded by the floor", f"{floor.cpu_micros:.0f}", f"{floor.rate:.0f}", "", "", ""),
        ],
    )
    print(f"  stored in {drained.fill_seconds:.1f} s; fdatasync/s here: {flushes:.0f}")
    return [
        Finding(what=f"drain rate of {options.messages:,}", value=f"{rate:.0f}/s, fdatasync/s {flushes:.0f}"),
        Finding(
            what="CPU per drained message / stock floor",
            value=f"{micros / floor.cpu_micros:.2f} ({micros:.0f} us / {floor.cpu_micros:.0f} us)",
        ),
    ]


async def _drain(database: Path, count: int) -> _Drained:
    async with load.receiver() as endpoint:
        ledger = endpoint.ledger = load.Ledger(first=0, count=count)
        storage = await open_sqlite(f"sqlite:///{database}")
        try:
            fill_seconds = await filling.fill(storage, count, url=endpoint.url, not_before=[filling.now()])
        finally:
            await storage.close()
        with ExitStack() as stack:
            # In a thread: deliveries begin before the relay says that it is ready, and must find an endpoint.
            system = await asyncio.to_thread(stack.enter_context, systems.relay(database))
            await ledger.all_arrived(seconds=60 + count / 200)
            await load.quiet(system)
            cpu_seconds = system.cpu()
            _, peak_mb = machine.memory_mb(system.pid)
        if left := await filling.alive(database):
            raise RuntimeError(f"{left} messages were delivered and not settled")
        return _Drained(
            seconds=max(ledger.arrived) - min(ledger.arrived),
            cpu_seconds=cpu_seconds,
            fill_seconds=fill_seconds,
            peak_mb=peak_mb,
            doubled=ledger.doubled,
        )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.drain", description=__doc__)
    parser.add_argument("--messages", type=int, default=Options().messages)
    parser.add_argument("--directory", type=Path, help="where the database is made (default: the system's)")
    given = parser.parse_args()
    systems.stop_on_sigterm()
    conclude(measure(Options(messages=given.messages, directory=given.directory)))


if __name__ == "__main__":
    main()
