"""PostgreSQL as the doomed relay uses it: connections that know what their transactions do.

What is one statement, and so a transaction by itself, is taken apart when the doom lies inside it: BEGIN, the
statement, COMMIT. At every other moment it is sent as it is.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

from storage.postgres import driver
from storage.postgres.driver import Connection, Session, Target
from tests.crash.doom import Doom
from tests.crash.watched import SIGNS

#: Turns of the event loop after which what was given to the driver has been given to the kernel.
_TURNS = 5


class _Watched:
    """Has the part of a connection that storage uses."""

    def __init__(self, connection: Connection, doom: Doom) -> None:
        self._connection = connection
        self._doom = doom
        self._verbs: list[str] = []
        self._open = False

    @property
    def usable(self) -> bool:
        return self._connection.usable

    @property
    def raw(self) -> Any:
        return self._connection.raw

    async def rows(self, text: str, *values: Any) -> Any:
        verbs = self._recognised(text)
        if self._open:
            return await self._inside(verbs, text, values)
        if self._lies_inside(verbs):
            return await self._apart(verbs, text, values)
        rows = await self._sent(self._connection.rows(text, *values), verbs)
        self._all_reached(_wrote(verbs, rows), "committed")
        return rows

    async def begin(self) -> None:
        self._verbs.clear()
        await self._connection.begin()
        self._open = True

    async def commit(self) -> None:
        self._open = False
        verbs = list(dict.fromkeys(self._verbs))
        self._all_reached(verbs, "committing")
        await self._sent(self._connection.commit(), verbs)
        self._all_reached(verbs, "committed")

    async def rollback(self) -> None:
        self._open = False
        await self._connection.rollback()

    async def run(self, text: str) -> None:
        await self._connection.run(text)
        if SIGNS["migrate"].search(text):
            self._written(["migrate"])

    async def listen(self, channel: str, heard: Callable[[Any, int, str, str], None]) -> None:
        await self._connection.listen(channel, heard)

    async def close(self) -> None:
        await self._connection.close()

    def terminate(self) -> None:
        self._connection.terminate()

    async def _apart(self, verbs: Sequence[str], text: str, values: Sequence[Any]) -> Any:
        await self.begin()
        try:
            rows = await self._inside(verbs, text, values)
            await self.commit()
        except BaseException:
            await self.rollback()
            raise
        return rows

    async def _inside(self, verbs: Sequence[str], text: str, values: Sequence[Any]) -> Any:
        rows = await self._connection.rows(text, *values)
        self._written(_wrote(verbs, rows))
        return rows

    async def _sent(self, work: Awaitable[Any], verbs: Sequence[str]) -> Any:
        """What it comes to; doom may lie between sending it and reading the answer."""
        if not any(self._doom.aims_at(verb, "sent") for verb in verbs):
            return await work
        answer = asyncio.ensure_future(work)
        for _ in range(_TURNS):
            await asyncio.sleep(0)
        self._all_reached(verbs, "sent")
        return await answer

    def _lies_inside(self, verbs: Sequence[str]) -> bool:
        # Whether a claim takes anything is known when its rows are there, and not when it is sent.
        return any(
            self._doom.aims_at(verb, "writing", "committing", *(["sent"] if verb == "claim" else []))
            for verb in verbs
        )

    def _recognised(self, text: str) -> Sequence[str]:
        flat = " ".join(text.split())
        return [verb for verb, sign in SIGNS.items() if self._doom.is_going_on(verb) and sign.search(flat)]

    def _written(self, verbs: Sequence[str]) -> None:
        self._verbs += verbs
        self._all_reached(verbs, "writing")

    def _all_reached(self, verbs: Sequence[str], moment: str) -> None:
        for verb in verbs:
            self._doom.reached(verb, moment)


def _wrote(verbs: Sequence[str], rows: Any) -> Sequence[str]:
    """A claim that finds nothing due writes nothing."""
    return [verb for verb in verbs if verb != "claim" or any(row["n"] is not None for row in rows)]


def watch(doom: Doom) -> None:
    """From now on every connection of this process is watched: the first, which migrates, included."""
    connect = driver.connect

    async def connect_watched(target: Target, session: Session) -> Connection:
        return cast(Connection, _Watched(await connect(target, session), doom))

    driver.connect = connect_watched
