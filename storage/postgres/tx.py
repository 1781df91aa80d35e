"""The open transaction of one operation, and what is to be said and counted once it is committed."""

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from relay.ids import Ids
from storage.postgres import connections
from storage.postgres.driver import Connection
from storage.sql.script import Script

T = TypeVar("T")

#: What is due later than this is found by polling in good time.
_SOON_MS = 1_000

LEDGER = "INSERT INTO depths (live, dead_letters) VALUES ($1, $2)"


class Tx:
    """One attempt at one transaction: made anew when it has to be repeated."""

    __slots__ = ("_connection", "_positions", "dead_letters", "due_at", "live", "opens_at", "soon")

    def __init__(self, connection: Connection, positions: Ids) -> None:
        self._connection = connection
        self._positions = positions
        self.live = 0
        self.dead_letters = 0
        self.due_at: int | None = None
        self.opens_at: int | None = None
        self.soon = False

    async def rows(self, text: str, *values: Any) -> Any:
        """Run one statement."""
        return await self._connection.rows(text, *values)

    async def run(self, script: Script[T]) -> T:
        """Run a script."""
        return await connections.run(self._connection, script)

    def position(self, at: int) -> int:
        """The next position of history: ever growing in this process; node numbers tell it from those of others."""
        return self._positions.next(at)

    def opens(self, at: int | None, now: int) -> None:
        """A gate opens then; None: none does."""
        if at is not None:
            self.soon = self.soon or at - now <= _SOON_MS
            self.opens_at = at if self.opens_at is None else min(at, self.opens_at)

    def due(self, at: int, now: int) -> None:
        """Something that nobody holds is due then."""
        self.soon = self.soon or at - now <= _SOON_MS
        if self.due_at is None or at < self.due_at:
            self.due_at = at


class Transactions:
    """Runs transactions. `due` hears after each commit what it made due, and whether that is soon.

    `opens_at` is when the next gate opens, as far as this process knows: claims find out how it really is.
    """

    def __init__(self, positions: Ids, due: Callable[[int, bool], None]) -> None:
        self._positions = positions
        self._due = due
        self.opens_at: int | None = None

    async def run(self, connection: Connection, work: Callable[[Tx], Awaitable[T]]) -> T:
        """Begin, work, commit; repeated when it collides with another. All of it happens or nothing."""

        async def attempt(connection: Connection) -> tuple[T, Tx]:
            tx = Tx(connection, self._positions)
            result = await work(tx)
            if tx.live or tx.dead_letters:
                await tx.rows(LEDGER, tx.live, tx.dead_letters)
            return result, tx

        result, tx = await connections.transaction(connection, attempt)
        self.committed(tx)
        return result

    async def at_once(self, connection: Connection, work: Callable[[Tx], Awaitable[T]]) -> T:
        """Work that is one statement, and so a transaction by itself; it writes the ledger itself."""
        tx = Tx(connection, self._positions)
        result = await work(tx)
        self.committed(tx)
        return result

    def tell(self, due_at: int) -> None:
        """Something that nobody holds has been due since then, and this process does not take it."""
        self._due(due_at, True)

    def opens(self, at: int | None) -> None:
        """A gate opens then; None: none does."""
        if at is not None:
            self.opens_at = at if self.opens_at is None else min(at, self.opens_at)

    def committed(self, tx: Tx) -> None:
        self.opens(tx.opens_at)
        due_at = min((at for at in (tx.due_at, tx.opens_at) if at is not None), default=None)
        if due_at is not None:
            self._due(due_at, tx.soon)
