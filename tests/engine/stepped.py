"""Driving a loop by hand: a clock that knows when it sleeps, a log to read, storage that can be made to fail."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Protocol

from prometheus_client import generate_latest

from relay.clock import FakeClock
from relay.domain.errors import Unavailable
from relay.metrics import Metrics
from storage.protocol import Work

_PATIENCE_S = 30


class SteppedClock(FakeClock):
    """Drives one loop: `step` moves the time and returns when the loop has dealt with it and sleeps again.

    `naps` are the lengths (ms) of the sleeps so far; the last one may still be going on.
    """

    def __init__(self, now: int = 1_800_000_000_000) -> None:
        super().__init__(now)
        self.naps: list[int] = []
        self._until = now
        self._sleeping = asyncio.Event()

    async def wait(self, event: asyncio.Event, until: int | None) -> bool:
        assert until is not None
        if not event.is_set() and self.now() < until:
            self.naps.append(until - self.now())
            self._until = until
            self._sleeping.set()
        try:
            return await super().wait(event, until)
        finally:
            self._sleeping.clear()

    async def asleep(self) -> None:
        async with asyncio.timeout(_PATIENCE_S):
            await self._sleeping.wait()

    async def step(self, ms: int) -> None:
        await self.asleep()
        self.advance(ms)
        if self._until <= self.now():
            self._sleeping.clear()
        await self.asleep()

    async def step_to_end_of_nap(self) -> None:
        await self.asleep()
        await self.step(self._until - self.now())

    async def after(self, wake: Callable[[], None]) -> None:
        """Call `wake`, which must wake the loop, and return when it sleeps again."""
        await self.asleep()
        self._sleeping.clear()
        wake()
        await self.asleep()


class Lines:
    """A log that is kept: (level, event, fields)."""

    def __init__(self) -> None:
        self.all: list[tuple[str, str, dict[str, object]]] = []

    def info(self, event: str, /, **fields: object) -> None:
        self.all.append(("info", event, fields))

    def warning(self, event: str, /, **fields: object) -> None:
        self.all.append(("warning", event, fields))

    def error(self, event: str, /, *, exc: BaseException | None = None, **fields: object) -> None:
        self.all.append(("error", event, {**fields, "exc": exc}))

    def named(self, event: str) -> list[dict[str, object]]:
        return [fields for _, name, fields in self.all if name == event]


class Workbench:
    """What a loop is given to run on: a clock of its own, a log and metrics to read."""

    def __init__(self, now: int) -> None:
        self.clock = SteppedClock(now)
        self.lines = Lines()
        self.metrics = Metrics()
        self.random = random.Random(7).random

    def value(self, metric: str) -> float:
        """Of a metric, its labels included."""
        for line in generate_latest(self.metrics.registry).decode().splitlines():
            if line.startswith(metric + " "):
                return float(line.split()[-1])
        raise KeyError(metric)


class Faulty:
    """Real storage, and what may go wrong on the way to it or back.

    `before` and `after` are called with the verb and its arguments around each call, and may raise.
    """

    def __init__(self, storage: object) -> None:
        self._storage = storage
        self.before: Callable[..., Awaitable[None]] = _nothing
        self.after: Callable[..., Awaitable[None]] = _nothing

    def __getattr__(self, verb: str) -> Any:
        real = getattr(self._storage, verb)

        async def call(*args: Any, **kwargs: Any) -> Any:
            await self.before(verb, *args)
            result = await real(*args, **kwargs)
            await self.after(verb, *args)
            return result

        return call


class WithHint:
    """`Faulty` verbs, and the hint of the real storage, which is not a coroutine."""

    def __init__(self, faulty: Faulty, storage: Work) -> None:
        self._faulty = faulty
        self.on_work = storage.on_work

    def __getattr__(self, verb: str) -> Any:
        return getattr(self._faulty, verb)


async def _nothing(verb: str, *args: Any) -> None:
    """Nothing goes wrong."""


async def storage_is_away(verb: str, *args: Any) -> None:
    raise Unavailable("the disk is full")


class Loop(Protocol):
    async def run(self, stopping: asyncio.Event) -> None: ...


@asynccontextmanager
async def running(loop: Loop) -> AsyncIterator[asyncio.Event]:
    """The loop runs inside the block, and has ended by itself after it; gives the event that stops it."""
    stopping = asyncio.Event()
    task = asyncio.create_task(loop.run(stopping))
    try:
        yield stopping
    finally:
        stopping.set()
        async with asyncio.timeout(_PATIENCE_S):
            await task
