"""Scenarios in which storage fails under a running relay: refusals, no wrong answer, and recovery by itself."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

from tests.crash.kills import RATE, SHORT_LEASE
from tests.crash.ledger import Kind
from tests.crash.node import ROOT
from tests.crash.waiting import until
from tests.crash.world import Outcome, World

_HELD = 10
_PUBLISHES = 20
#: So large that none fits where others were.
_PADDING = 50_000


async def locked(world: World) -> Outcome:
    """A foreign process holds the file locked."""
    await world.node.serve()
    await _endure(world, lambda: a_lock(_file_of(world)))
    return await world.judge()


async def unwritable(world: World) -> Outcome:
    """Writing to a file fails beyond its present size, as it does on a broken disk."""
    await world.node.serve()
    await _endure(world, lambda: _a_limit(world, Path(f"{_file_of(world)}-wal").stat().st_size))
    return await world.judge()


async def full(world: World) -> Outcome:
    """The file cannot grow."""
    await world.node.doom("--trouble", "full", rate=1)
    # What is small finds room: the settlements of what is in flight, and the proof that a commit is possible.
    await _endure(world, lambda: _a_signal(world), writable=True)
    return await world.judge()


async def readonly(world: World) -> Outcome:
    """The file takes no write any more."""
    await world.node.doom("--trouble", "readonly", rate=1)
    await _endure(world, lambda: _a_signal(world))
    return await world.judge()


async def away(world: World) -> Outcome:
    """Storage answers nothing at all, not even a question."""
    await world.node.doom("--trouble", "away", rate=1)
    await _endure(world, lambda: _a_signal(world), readable=False)
    return await world.judge()


async def away_before_signing(world: World) -> Outcome:
    """Storage goes between the commit and the first question after it: which key to sign with."""
    await world.node.doom("--trouble", "away", "--at", "publish.told", rate=RATE)
    await world.started()
    assert await world.client.publish(Kind.DEAD) == 200
    await until(lambda: "delivery.postponed" in world.node.log, "it was signed")
    world.node.signal(signal.SIGUSR2)
    await world.settled()
    return await world.judge()


async def killed_in_trouble(world: World) -> Outcome:
    """Killed while nothing can be written: what was accepted before is there, and nothing that was refused."""
    await world.node.serve(**SHORT_LEASE)
    world.load.begin()
    await until(lambda: len(world.ledger.promises) > 50, "little is accepted")
    world.node.limit_files(Path(f"{_file_of(world)}-wal").stat().st_size + 20_000)
    await until(lambda: len(world.ledger.refused) > 3, "nothing is refused")
    await world.killed()
    await world.node.serve(**SHORT_LEASE)
    await world.load.end()
    await world.settled()
    return await world.judge()


async def _endure(
    world: World,
    trouble: Callable[[], AbstractAsyncContextManager[None]],
    *,
    writable: bool = False,
    readable: bool = True,
) -> None:
    """Before, during and after the trouble there are publishes, and deliveries end during it."""
    client, endpoint, ledger = world.client, world.endpoint, world.ledger
    await _publish(world, Kind.PLAIN)
    await asyncio.gather(*(client.publish(Kind.HELD) for _ in range(_HELD)))
    await until(lambda: endpoint.holding == _HELD, "not all are in flight")
    async with trouble():
        endpoint.let_go.set()
        statuses, *others = await asyncio.gather(
            _publish(world, Kind.PLAIN, padding=_PADDING),
            client.status("/v2/logs"),
            client.status("/healthz"),
        )
        assert statuses == {503}
        assert len(ledger.refused) == _PUBLISHES
        assert others == [200 if readable else 503, 200]
        assert await client.status("/readyz") == 503
        if not writable:
            await until(lambda: "settler.waiting" in world.node.log, "what ended was written down")
    await world.ready()
    assert await _publish(world, Kind.PLAIN, padding=_PADDING) == {200}
    await world.settled()
    assert ledger.doubled == 0


async def _publish(world: World, kind: Kind, *, padding: int = 0) -> set[int | None]:
    """The different statuses of many publishes at once."""
    return set(
        await asyncio.gather(*(world.client.publish(kind, padding=padding) for _ in range(_PUBLISHES)))
    )


def _locker(path: Path) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "tests.crash.locker", str(path)]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


@asynccontextmanager
async def a_lock(path: Path) -> AsyncIterator[None]:
    """Another process holds the file."""
    with _locker(path) as foreign:
        assert foreign.stdout is not None
        assert await asyncio.to_thread(foreign.stdout.readline) == b"locked\n"
        try:
            yield
        finally:
            foreign.communicate()


@asynccontextmanager
async def _a_limit(world: World, size: int) -> AsyncIterator[None]:
    world.node.limit_files(size)
    yield
    world.node.limit_files(None)


@asynccontextmanager
async def _a_signal(world: World) -> AsyncIterator[None]:
    world.node.signal(signal.SIGUSR1)
    await until(lambda: "trouble.began" in world.node.log, "there is no trouble")
    yield
    world.node.signal(signal.SIGUSR2)


def _file_of(world: World) -> Path:
    return Path(world.node.database.removeprefix("sqlite:///"))
