"""The only reader of time, and the only place that waits for it."""

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

#: Counts the time a machine is suspended, where that can be told.
_STEADY: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class Clock(Protocol):
    """What the rest of the relay knows of time."""

    def now(self) -> int:
        """Unix milliseconds."""
        ...

    async def wait(self, event: asyncio.Event, until: int | None) -> bool:
        """Wait for `event`, at most until the instant `until` (None: for ever).

        True when the event was set, False when the time came first. The event is left as it is.
        """
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> int:
        return time.time_ns() // 1_000_000

    async def wait(self, event: asyncio.Event, until: int | None) -> bool:
        if until is None:
            return await event.wait()
        try:
            async with asyncio.timeout(max(0, until - self.now()) / 1000):
                return await event.wait()
        except TimeoutError:
            return event.is_set()


class SharedClock(SystemClock):
    """Time that several machines agree on: this machine's steady clock, set by somebody who knows.

    Setting the machine's own clock, forwards or back, does not change it. Until it is corrected for the first time
    it is the machine's. Whoever waits for an instant waits for it by the corrected time: who renews leases hears of
    a step at once. `wall` and `steady` give Unix ms, and ms that only ever grow.
    """

    def __init__(
        self,
        wall: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        steady: Callable[[], int] = lambda: time.clock_gettime_ns(_STEADY) // 1_000_000,
    ) -> None:
        self._wall = wall
        self._steady = steady
        self._ahead = wall() - steady()
        self._waits: dict[asyncio.Timeout, int] = {}

    def now(self) -> int:
        return self._steady() + self._ahead

    async def wait(self, event: asyncio.Event, until: int | None) -> bool:
        if until is None:
            return await event.wait()
        try:
            async with asyncio.timeout_at(self._end_of(until)) as limit:
                self._waits[limit] = until
                try:
                    return await event.wait()
                finally:
                    del self._waits[limit]
        except TimeoutError:
            return event.is_set()

    def correct(self, by_ms: int) -> None:
        """It is `by_ms` later than `now()` says."""
        self._ahead += by_ms
        for limit, until in self._waits.items():
            if not limit.expired():
                limit.reschedule(self._end_of(until))

    def _end_of(self, until: int) -> float:
        """The instant by the event loop's time."""
        return asyncio.get_running_loop().time() + max(0, until - self.now()) / 1000

    @property
    def offset_ms(self) -> int:
        """How far the machine's clock is ahead of the agreed time; negative when it is behind."""
        return self._wall() - self.now()


class FakeClock:
    """Stands still until told: a week of retries runs in milliseconds of test."""

    def __init__(self, now: int = 1_800_000_000_000) -> None:
        self._now = now
        self._moved = asyncio.Event()

    def now(self) -> int:
        return self._now

    def advance(self, ms: int) -> None:
        """Move forward (or, negative, back) and let every waiter look at the new time."""
        self._now += ms
        self._moved.set()
        self._moved = asyncio.Event()

    async def wait(self, event: asyncio.Event, until: int | None) -> bool:
        while not event.is_set() and (until is None or self._now < until):
            moved = asyncio.ensure_future(self._moved.wait())
            set_ = asyncio.ensure_future(event.wait())
            try:
                await asyncio.wait((moved, set_), return_when=asyncio.FIRST_COMPLETED)
            finally:
                moved.cancel()
                set_.cancel()
        return event.is_set()
