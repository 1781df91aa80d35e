"""What goes on beside the road: signs of life, the database's clock, and hints that there is work.

One connection and one task. Nothing here is needed for the truth: a hint that is lost is made up for by polling,
and while the database cannot be reached nothing is written either.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any

from relay.clock import SharedClock
from relay.domain.errors import Unavailable
from storage.postgres import nodes, schema
from storage.postgres.connections import Server
from storage.postgres.driver import Connection, Session
from storage.postgres.nodes import Node
from storage.postgres.takeovers import MEASURE_S, Takeovers

_BEAT_S = 10.0

#: Others are told of work this often at most. NOTIFY takes a lock on the whole server while it commits: it is a
#: transaction of its own, and never one that somebody waits for.
_HINT_S = 0.1

_PAUSE_S = 0.5

#: Without a sign of life for this long, and with time to spare, the number is not used: it may be another's soon.
_SILENT_S = nodes.SILENCE_S - 60

_NOW = "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint"

_log = logging.getLogger("relay.storage")


class Watch:
    """The task of one process. `woken` hears, on the event loop, of the due times that other processes tell."""

    def __init__(
        self,
        server: Server,
        node: Node,
        clock: SharedClock,
        takeovers: Takeovers,
        *,
        woken: Callable[[int], None],
    ) -> None:
        self._server = server
        self._node = node
        self._clock = clock
        self._takeovers = takeovers
        self._woken = woken
        self._channel = f"{server.target.schema}_work"
        self._hint: int | None = None
        self._stirred = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._seen_at = self._loop.time()
        self._lost = False
        #: The last that was heard of the database.
        self._of_use = True
        self._listening = asyncio.Event()
        self._task = asyncio.create_task(self._run())

    def check(self) -> None:
        """Raises `Unavailable` when this process must not make ids: it was silent for so long that another process
        has been given its number, or may be."""
        if self._lost:
            raise Unavailable("another process was given this one's number: restart it", retry_after_s=60)
        if self._loop.time() - self._seen_at > _SILENT_S:
            raise Unavailable("the database has not been reached for minutes", retry_after_s=2)

    async def beat(self, connection: Connection) -> None:
        """Give a sign of life."""
        began_at = self._loop.time()
        if await nodes.keep(connection, self._node, at=self._clock.now()):
            self._seen_at = began_at
            self._lost = False
        elif not self._lost:
            self._lost = True
            _log.error("another process was given this one's number %s: restart it", self._node.number)

    def tell(self, due_at: int) -> None:
        """Hint to other processes that something is due then."""
        if self._hint is None or due_at < self._hint:
            self._hint = due_at
        self._stirred.set()

    async def listening(self) -> None:
        """Wait until hints of others would be heard."""
        await self._listening.wait()

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            connection = None
            try:
                connection = await self._server.connect(Session(longest_s=5.0))
                await self._listen(connection)
                await self._attend(connection)
            except Unavailable as problem:
                if self._of_use:
                    _log.warning("the database cannot be used: %s", problem)
                self._of_use = False
            except Exception:
                _log.exception("the watch over the database broke off")
            finally:
                self._listening.clear()
                if connection is not None:
                    connection.terminate()
            await asyncio.sleep(_PAUSE_S)

    async def _listen(self, connection: Connection) -> None:
        """Hear hints, and be known to be alive. Behind a pooler nobody can: polling finds the work of others."""
        raw = connection.raw
        raw.add_termination_listener(lambda _: self._stirred.set())
        if not self._server.target.pooled:
            await connection.listen(self._channel, self._heard)
            await connection.run(schema.shared_lock(self._server.target.schema, schema.ALIVE))
            self._listening.set()

    def _heard(self, raw: Any, pid: int, channel: str, payload: str) -> None:
        if pid != raw.get_server_pid():
            with contextlib.suppress(ValueError):
                self._woken(int(payload))

    async def _attend(self, connection: Connection) -> None:
        """Beat and tell until the connection breaks."""
        beat_at = measure_at = 0.0
        while connection.usable:
            if self._loop.time() >= measure_at:
                measure_at = self._loop.time() + MEASURE_S
                self._takeovers.corrected(await agree(connection, self._clock))
            if self._loop.time() >= beat_at:
                beat_at = self._loop.time() + _BEAT_S
                await self.beat(connection)
                self._of_use = True
            if self._hint is not None:
                hint, self._hint = self._hint, None
                await connection.rows("SELECT pg_notify($1, $2)", self._channel, str(hint))
                await asyncio.sleep(_HINT_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, min(beat_at, measure_at) - self._loop.time())):
                    await self._stirred.wait()
            self._stirred.clear()


async def agree(connection: Connection, clock: SharedClock) -> int:
    """Measure how far the clock is from the database's, and correct what cannot be the way there and back; by how
    many ms."""
    before = clock.now()
    (at,) = (await connection.rows(_NOW))[0]
    after = clock.now()
    error_ms: int = at - (before + after) // 2
    if abs(error_ms) <= (after - before) // 2 + 1:
        return 0
    clock.correct(error_ms)
    return error_ms
