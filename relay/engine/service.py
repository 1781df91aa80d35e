"""Everything that runs by itself, started together, watched, and stopped in the right order."""

import asyncio
from collections.abc import Awaitable, Callable

from relay.clock import Clock
from relay.engine.engine import Engine
from relay.engine.janitor import Janitor
from relay.engine.scheduler import Scheduler
from relay.log import Log

#: A loop that has not come round for this long is stuck, and the relay is not ready.
_STUCK_MS = 30_000
_RESTART_PAUSE_MS = 1_000
#: How long a refused publish makes the relay unready when no other has gone through: on a full disk there may be
#: room for the small proof that a commit is possible, and none for a message. And how long claims may be refused:
#: a database that is out of connections may have one left for that proof.
_REFUSED_MS = 5_000


class Service:
    """The engine's loops, the scheduler and the janitor as one thing to start and stop.

    A loop that ends by a bug is logged and started again a second later: one poisonous row must not stop the
    deliveries of everybody else, and readiness tells when a loop makes no progress.
    """

    def __init__(
        self, *, engine: Engine, scheduler: Scheduler, janitor: Janitor, clock: Clock, log: Log
    ) -> None:
        self._engine = engine
        self._scheduler = scheduler
        self._janitor = janitor
        self._clock = clock
        self._log = log
        self._stopping = asyncio.Event()
        self._background: list[asyncio.Task[None]] = []
        self._settling: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._background = [
            self._keep("claim", self._engine.claim_loop),
            self._keep("scheduler", lambda: self._scheduler.run(self._stopping)),
            self._keep("janitor", lambda: self._janitor.run(self._stopping)),
        ]
        self._settling = [
            self._keep("settle", self._engine.settle_loop),
            self._keep("renew", self._engine.renew_loop),
        ]

    def problems(self) -> list[str]:
        """Why the relay is not ready, as sentences; empty when every loop makes progress."""
        if self._stopping.is_set():
            return ["the relay is shutting down"]
        now = self._clock.now()
        marks = {
            "claim loop": self._engine.last_progress_at,
            "scheduler": self._scheduler.last_progress_at,
        }
        stuck = [
            f"the {name} has made no progress for {(now - at) // 1000} seconds"
            for name, at in marks.items()
            if now - at > _STUCK_MS
        ]
        outage = self._engine.outage
        if not self._engine.has_looked:
            because = "" if outage.reason is None else f": {outage.reason}"
            stuck.append(f"the engine has not seen yet what is due{because}")
        elif outage.lasted_ms >= _REFUSED_MS and not self._engine.is_full:
            # Who is full asks for nothing, and has not been told either that the outage is over.
            stuck.append(f"nothing is claimed: {outage.reason}")
        refused = self._engine.refused
        if refused is not None and now - refused[0] < _REFUSED_MS:
            stuck.append(f"publishes are refused: {refused[1]}")
        return stuck

    async def stop(self, until: int) -> None:
        """Claim and fire nothing more, let deliveries finish until the instant `until`, hand the rest back.

        Settling and renewing go on to the very end, since what is in flight still has to be written down.
        """
        self._stopping.set()
        await self._engine.drain(until)
        for task in self._background + self._settling:
            task.cancel()
        await asyncio.gather(*self._background, *self._settling, return_exceptions=True)

    def _keep(self, name: str, loop: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        return asyncio.get_running_loop().create_task(self._forever(name, loop), name=name)

    async def _forever(self, name: str, loop: Callable[[], Awaitable[None]]) -> None:
        while not self._stopping.is_set():
            try:
                await loop()
            except Exception as bug:
                self._log.error("loop.broke", loop=name, exc=bug)
                await self._clock.wait(self._stopping, self._clock.now() + _RESTART_PAUSE_MS)
