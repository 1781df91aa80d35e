"""Connections that only read, so that a search through history never stands in the way of a delivery."""

import asyncio
import contextlib
from pathlib import Path
from typing import Any, TypeVar

import aiosqlite

from relay.domain.errors import Unavailable
from storage.sql.script import Script
from storage.sqlite import driver

T = TypeVar("T")

#: A search that takes longer is given up, so that a few of them cannot occupy all connections.
_LONGEST_S = 20.0

#: An interruption that comes before the statement has begun is lost: it is repeated this often.
_INSIST_S = 0.02


class Readers:
    """A few connections to one file, opened when first needed and replaced when they break."""

    def __init__(self, path: Path, count: int, *, longest_s: float = _LONGEST_S) -> None:
        self._path = path
        self._longest_s = longest_s
        #: None stands for a connection that is not open.
        self._free: asyncio.LifoQueue[aiosqlite.Connection | None] = asyncio.LifoQueue()
        for _ in range(count):
            self._free.put_nowait(None)
        self._open: set[aiosqlite.Connection] = set()
        self._given_up: set[asyncio.Task[None]] = set()
        self._closed = False

    async def run(self, script: Script[T]) -> T:
        """The script's result. Each of its queries sees everything that was committed before it began.

        Raises `Unavailable` when the database does not answer, or not in time.
        """
        if self._closed:
            raise _stopping()
        try:
            async with asyncio.timeout(self._longest_s):
                return await self._run(script)
        except TimeoutError:
            raise Unavailable("the database took too long to answer", retry_after_s=2) from None
        except driver.Error as error:
            raise driver.translated(error) from error
        except ValueError:
            # What a closed connection says.
            if self._closed:
                raise _stopping() from None
            raise

    async def close(self) -> None:
        """Let go of all connections; queries that are under way are interrupted."""
        self._closed = True
        while self._given_up:
            await asyncio.wait(self._given_up)
        for connection in list(self._open):
            await self._let_go(connection)

    async def _run(self, script: Script[T]) -> T:
        connection = await self._free.get()
        try:
            if self._closed:
                raise _stopping()
            if connection is None:
                connection = await aiosqlite.Connection(lambda: driver.connect_reader(self._path), 64)
                self._open.add(connection)
                if self._closed:
                    await self._let_go(connection)
            result = await _steps(connection, script)
        except asyncio.CancelledError:
            if connection is None:
                self._free.put_nowait(None)
            else:
                task = asyncio.ensure_future(self._give_up(connection))
                self._given_up.add(task)
                task.add_done_callback(self._given_up.discard)
            raise
        except BaseException as error:
            if connection is not None and driver.unavailable(error) is not None and driver.is_lasting(error):
                await self._let_go(connection)
                connection = None
            self._free.put_nowait(connection)
            raise
        self._free.put_nowait(connection)
        return result

    async def _give_up(self, connection: aiosqlite.Connection) -> None:
        """Nobody waits for the query of this connection any more: end it, then let others have it."""
        await _quiet(connection)
        self._free.put_nowait(connection)

    async def _let_go(self, connection: aiosqlite.Connection) -> None:
        self._open.discard(connection)
        await _quiet(connection)
        with contextlib.suppress(driver.Error):
            await connection.close()


def _stopping() -> Unavailable:
    return Unavailable("the relay is stopping", retry_after_s=5)


async def _steps(connection: aiosqlite.Connection, script: Script[T]) -> T:
    try:
        query = next(script)
        while True:
            rows: Any = await connection.execute_fetchall(query.text, query.parameters)
            query = script.send(rows)
    except StopIteration as stop:
        result: T = stop.value
        return result


async def _quiet(connection: aiosqlite.Connection) -> None:
    """Wait until the connection's thread has nothing to do, interrupting what it does."""
    probe = asyncio.ensure_future(connection.execute_fetchall("SELECT 1"))
    while not probe.done():
        await connection.interrupt()
        await asyncio.wait([probe], timeout=_INSIST_S)
    # Interrupted itself, the probe has served as well.
    probe.exception()
