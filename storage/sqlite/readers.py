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


class Readers:
    """A few connections to one file, opened when first needed and replaced when they break."""

    def __init__(self, path: Path, count: int) -> None:
        self._path = path
        self._free: asyncio.LifoQueue[aiosqlite.Connection | None] = asyncio.LifoQueue()
        for _ in range(count):
            self._free.put_nowait(None)
        self._open: set[aiosqlite.Connection] = set()
        self._closed = False

    async def run(self, script: Script[T]) -> T:
        """The script's result. Each of its queries sees everything that was committed before it began.

        Raises `Unavailable` when the database does not answer, or not in time.
        """
        if self._closed:
            raise Unavailable("the relay is stopping", retry_after_s=5)
        try:
            async with asyncio.timeout(_LONGEST_S):
                connection = await self._free.get()
                try:
                    if connection is None:
                        connection = await self._connect()
                    return await self._steps(connection, script)
                except BaseException as error:
                    connection = await self._recovered(connection, error)
                    raise
                finally:
                    self._free.put_nowait(connection)
        except TimeoutError:
            raise Unavailable("the database took too long to answer", retry_after_s=2) from None
        except driver.Error as error:
            raise driver.translated(error) from error

    async def close(self) -> None:
        """Let go of all connections; a query that is under way is interrupted."""
        self._closed = True
        for connection in list(self._open):
            await self._let_go(connection)

    async def _connect(self) -> aiosqlite.Connection:
        connection = await aiosqlite.Connection(lambda: driver.connect_reader(self._path), 64)
        self._open.add(connection)
        return connection

    async def _steps(self, connection: aiosqlite.Connection, script: Script[T]) -> T:
        try:
            query = next(script)
            while True:
                rows: Any = await connection.execute_fetchall(query.text, query.parameters)
                query = script.send(rows)
        except StopIteration as stop:
            result: T = stop.value
            return result

    async def _recovered(
        self, connection: aiosqlite.Connection | None, error: BaseException
    ) -> aiosqlite.Connection | None:
        """What goes back into the pool: None, to be opened anew, when the connection may be broken."""
        if connection is None:
            return None
        if isinstance(error, asyncio.CancelledError):
            # Its thread may still be searching on behalf of nobody.
            await connection.interrupt()
            return connection
        if driver.unavailable(error) is not None and driver.is_lasting(error):
            await self._let_go(connection)
            return None
        return connection

    async def _let_go(self, connection: aiosqlite.Connection) -> None:
        self._open.discard(connection)
        with contextlib.suppress(driver.Error, ValueError):
            await connection.interrupt()
            await connection.close()
