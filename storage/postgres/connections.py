"""Connections to one database: opened when first needed, replaced when they break, a few for each purpose."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from relay.domain.errors import Unavailable
from storage.postgres import driver
from storage.postgres.driver import Connection, Session, Target, dollars
from storage.sql.script import Script

T = TypeVar("T")

#: After a failure to connect, nobody tries for this long; the pause doubles up to the longest.
_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 1.0

#: A transaction that collided with another is repeated this often.
_REPEATS = 3


class Server:
    """The way to the database, and whether it is worth trying.

    While the server is away one connection at a time is tried, after growing pauses; everything else is told at
    once why it cannot be served.
    """

    def __init__(self, target: Target) -> None:
        self.target = target
        self._problem: Unavailable | None = None
        self._again_at = 0.0
        self._pause_s = _FIRST_PAUSE_S

    async def connect(self, session: Session) -> Connection:
        """A new connection; raises `Unavailable`."""
        loop = asyncio.get_running_loop()
        if self._problem is not None:
            if loop.time() < self._again_at:
                raise Unavailable(str(self._problem), retry_after_s=2)
            # Whoever else asks meanwhile need not wait for the same answer.
            self._again_at = loop.time() + _LONGEST_PAUSE_S
        try:
            connection = await driver.connect(self.target, session)
        except Unavailable as problem:
            self._problem = problem
            self._again_at = loop.time() + self._pause_s
            self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
            raise
        self._problem = None
        self._pause_s = _FIRST_PAUSE_S
        return connection


class Pool:
    """A few connections for one purpose."""

    def __init__(self, server: Server, session: Session, count: int) -> None:
        self._server = server
        self._session = session
        #: None stands for a connection that is not open.
        self._free: asyncio.LifoQueue[Connection | None] = asyncio.LifoQueue()
        for _ in range(count):
            self._free.put_nowait(None)
        self._open: set[Connection] = set()
        self._closed = False

    async def use(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        """What `work` makes of a connection. Raises `Unavailable` when none is to be had in time."""
        if self._closed:
            raise Unavailable("the relay is stopping", retry_after_s=5)
        try:
            async with asyncio.timeout(self._session.longest_s):
                connection = await self._free.get()
        except TimeoutError:
            raise Unavailable("the database has too much to do", retry_after_s=2) from None
        try:
            if connection is None or not connection.usable:
                self._open.discard(connection) if connection is not None else None
                connection = None
                connection = await self._server.connect(self._session)
                self._open.add(connection)
            return await work(connection)
        finally:
            if connection is not None and not connection.usable:
                self._open.discard(connection)
                connection = None
            self._free.put_nowait(connection)

    async def read(self, script: Callable[[], Script[T]]) -> T:
        """The result of a script that only reads. Each of its queries sees all that was committed before it."""
        return await self.use(lambda connection: run(connection, script()))

    async def transaction(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        """What `work` makes of a connection in a transaction of its own; repeated when it collides with another."""
        return await self.use(lambda connection: transaction(connection, work))

    async def close(self) -> None:
        """Let go of all connections; statements that are under way are given up."""
        self._closed = True
        for connection in list(self._open):
            connection.terminate()


async def run(connection: Connection, script: Script[T]) -> T:
    """Run a script to its end, inside whatever transaction there is."""
    try:
        query = next(script)
        while True:
            query = script.send(await connection.rows(dollars(query.text), *query.parameters))
    except StopIteration as stop:
        result: T = stop.value
        return result


async def transaction(connection: Connection, work: Callable[[Connection], Awaitable[T]]) -> T:
    """Begin, do the work, commit; undo all of it when anything fails.

    `Unavailable` from the COMMIT itself leaves open whether it happened: all callers may repeat what they did.
    """
    repeats = _REPEATS
    while True:
        await connection.begin()
        try:
            result = await work(connection)
            await connection.commit()
        except BaseException as error:
            await connection.rollback()
            if repeats and driver.is_collision(error):
                repeats -= 1
                continue
            raise
        return result
