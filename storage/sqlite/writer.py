"""The grouped writer: one thread, one connection, one transaction and one flush for everything that waits.

Operations are handed over from the event loop. The thread takes all that have gathered, runs them as one
transaction and resolves their futures with one wake-up of the loop; while it flushes, the next group gathers.
Nothing ever lingers: a lone operation is a group of one.

Killed before a group's COMMIT is durable, SQLite undoes it on the next open and nobody had been told it
happened; killed after, all of it is there, told or not.
"""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from queue import Empty, SimpleQueue
from typing import Any, Generic, NamedTuple, TypeVar

from relay.domain.errors import Unavailable
from relay.ids import Ids
from storage.codec import Row
from storage.sql.script import Bulk, Script
from storage.sqlite import driver
from storage.sqlite.driver import Connection

P = TypeVar("P")
R = TypeVar("R")
T = TypeVar("T")

#: Of one group. More wait for the next: a commit must not take so long that the first of its callers gives up.
_GROUP_OPERATIONS = 2_000
_GROUP_BYTES = 8 << 20

#: Of all that wait while storage is stuck. Beyond it the relay says so instead of filling its memory.
_WAITING_OPERATIONS = 20_000
_WAITING_BYTES = 128 << 20

#: How long closing waits for the thread: a group that finds the database locked is given up sooner than this.
_LONGEST_CLOSE_S = 15.0

_log = logging.getLogger("relay.storage")


class Tx:
    """The open transaction of a group, and what is to be said and counted once it is committed."""

    __slots__ = ("_connection", "_positions", "dead_letters", "due_at", "live")

    def __init__(self, connection: Connection, positions: Ids) -> None:
        self._connection = connection
        self._positions = positions
        self.live = 0
        self.dead_letters = 0
        self.due_at: int | None = None

    def rows(self, text: str, parameters: Sequence[Any] = ()) -> Sequence[Row]:
        """Run one statement."""
        return self._connection.execute(text, parameters).fetchall()

    def write(self, bulk: Bulk, rows: Sequence[Row]) -> None:
        """Run a bulk statement over the rows, however many."""
        for query in bulk.queries(rows):
            self._connection.execute(query.text, query.parameters)

    def bulk(self, bulk: Bulk, rows: Sequence[Row]) -> Sequence[Row]:
        """Run a bulk query over the rows; everything it answers."""
        return [
            row
            for query in bulk.queries(rows)
            for row in self._connection.execute(query.text, query.parameters).fetchall()
        ]

    def stream(self, text: str, parameters: Sequence[Any] = ()) -> Iterator[Row]:
        """Run one query, reading each row when it is asked for."""
        return iter(self._connection.execute(text, parameters))

    def run(self, script: Script[T]) -> T:
        """Run a script."""
        return driver.run(self._connection, script)

    def position(self, at: int) -> int:
        """The next position of history: ever growing, in the order of commits."""
        return self._positions.next(at)

    def due(self, at: int | None) -> None:
        """Something that nobody holds is due then; None: nothing is."""
        if at is not None and (self.due_at is None or at < self.due_at):
            self.due_at = at


class Kind(NamedTuple, Generic[P, R]):
    """What an operation does with its payload.

    `together` runs several at once, `alone` one under a savepoint: the way to find the one that spoils a group.
    `grows` says that it is no use when the disk is full.
    """

    together: Callable[[Tx, Sequence[P]], Sequence[R]]
    alone: Callable[[Tx, P], R]
    grows: bool = False


class _Operation:
    __slots__ = ("cost", "future", "kind", "payload")

    def __init__(self, kind: Kind[Any, Any], payload: Any, cost: int, future: "asyncio.Future[Any]") -> None:
        self.kind = kind
        self.payload = payload
        self.cost = cost
        self.future = future


class _Outcome(NamedTuple):
    """What became of a group: a value or an exception for each operation."""

    results: Sequence[Any]
    tx: Tx | None


class Writer:
    """Owns the thread. Everything but `_run` and what it calls belongs to the event loop.

    `open_connection` is called in the thread when there is no `connection`, or it had to be given up.
    `committed` hears of every commit, `orphaned` of every result whose caller had gone by then; what it submits
    `late` is written even when that was the last group before closing. `check` is called in the thread before every
    COMMIT, and raises an error of the driver when there is to be none.
    """

    def __init__(
        self,
        open_connection: Callable[[], Connection],
        positions: Ids,
        *,
        committed: Callable[[Tx], None],
        orphaned: Callable[[Any], None],
        connection: Connection | None = None,
        check: Callable[[], None] = lambda: None,
        longest_close_s: float = _LONGEST_CLOSE_S,
    ) -> None:
        self._open_connection = open_connection
        self._positions = positions
        self._committed = committed
        self._orphaned = orphaned
        self._connection = connection
        self._check = check
        self._longest_close_s = longest_close_s
        self._loop = asyncio.get_running_loop()
        self._queue: SimpleQueue[_Operation | None] = SimpleQueue()
        self._operations = 0
        self._bytes = 0
        self._closing = False
        self._stopped = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="relay-writer", daemon=True)
        self._thread.start()

    def submit(
        self, kind: Kind[P, R], payload: P, cost: int = 0, *, late: bool = False
    ) -> "asyncio.Future[R]":
        """Hand an operation over; `cost` is about its bytes. Raises `Unavailable` when too much waits already.

        While the writer closes it takes only what is `late`: what comes of an operation it had accepted.
        """
        if self._closing and not late:
            raise Unavailable("the relay is stopping", retry_after_s=5)
        if self._operations >= _WAITING_OPERATIONS or self._bytes >= _WAITING_BYTES:
            raise Unavailable("too much is waiting to be written", retry_after_s=2)
        future: asyncio.Future[R] = self._loop.create_future()
        self._operations += 1
        self._bytes += cost
        self._queue.put(_Operation(kind, payload, cost, future))
        return future

    async def close(self) -> None:
        """Write what was accepted and let go of the connection. Gives up on a thread that is stuck."""
        if not self._closing:
            self._closing = True
            self._end_if_idle()
        try:
            async with asyncio.timeout(self._longest_close_s):
                await self._stopped.wait()
        except TimeoutError:
            _log.error("the database did not let go within %s s of closing", self._longest_close_s)

    def _run(self) -> None:
        try:
            while group := self._take():
                self._tell(self._resolve, group, self._outcome(group))
        finally:
            self._let_go()
            self._tell(self._stopped.set)

    def _take(self) -> list[_Operation]:
        """Wait for an operation, then take along all that wait already; nothing when there will be no more."""
        operation = self._queue.get()
        group: list[_Operation] = []
        cost = 0
        try:
            while operation is not None:
                group.append(operation)
                cost += operation.cost
                if len(group) >= _GROUP_OPERATIONS or cost >= _GROUP_BYTES:
                    break
                operation = self._queue.get_nowait()
        except Empty:
            pass
        return group

    def _outcome(self, group: list[_Operation]) -> _Outcome:
        """Never raises: whatever happens, every caller hears of it."""
        try:
            return self._attempt(group)
        except Exception as error:
            if driver.is_full(error):
                return self._without_growth(group, error)
            return _Outcome([driver.translated(error) for _ in group], None)

    def _attempt(self, group: list[_Operation]) -> _Outcome:
        """One transaction for all; if one of them spoils it, one transaction with a savepoint for each."""
        try:
            return self._commit(group, self._together)
        except Exception as error:
            if driver.unavailable(error) is not None:
                raise
        return self._commit(group, self._each_alone)

    def _without_growth(self, group: list[_Operation], error: Exception) -> _Outcome:
        """The disk is full: refuse what only adds, so that what is in flight can still be settled and old rows
        be forgotten."""
        rest = [operation for operation in group if not operation.kind.grows]
        if not rest or len(rest) == len(group):
            return _Outcome([driver.translated(error) for _ in group], None)
        outcome = self._outcome(rest)
        results = iter(outcome.results)
        return _Outcome(
            [driver.translated(error) if one.kind.grows else next(results) for one in group], outcome.tx
        )

    def _commit(
        self, group: list[_Operation], work: Callable[[Tx, list[_Operation]], Sequence[Any]]
    ) -> _Outcome:
        if self._connection is None:
            self._connection = self._open_connection()
        connection = self._connection
        tx = Tx(connection, self._positions)
        try:
            # At once for writing: a lock is met here, before any work was done for nothing.
            connection.execute("BEGIN IMMEDIATE")
            results = work(tx, group)
            self._check()
            connection.execute("COMMIT")
        except BaseException as error:
            self._undo(error)
            raise
        return _Outcome(results, tx)

    def _together(self, tx: Tx, group: list[_Operation]) -> Sequence[Any]:
        by_kind: dict[int, list[_Operation]] = {}
        for operation in group:
            by_kind.setdefault(id(operation.kind), []).append(operation)
        results: dict[_Operation, Any] = {}
        for operations in by_kind.values():
            kind = operations[0].kind
            answers = kind.together(tx, [operation.payload for operation in operations])
            results.update(zip(operations, answers, strict=True))
        return [results[operation] for operation in group]

    def _each_alone(self, tx: Tx, group: list[_Operation]) -> Sequence[Any]:
        results: list[Any] = []
        for operation in group:
            before = (tx.live, tx.dead_letters, tx.due_at)
            tx.rows("SAVEPOINT alone")
            try:
                results.append(operation.kind.alone(tx, operation.payload))
            except Exception as error:
                if driver.unavailable(error) is not None:
                    raise
                tx.rows("ROLLBACK TO alone")
                tx.live, tx.dead_letters, tx.due_at = before
                results.append(driver.translated(error))
            tx.rows("RELEASE alone")
        return results

    def _undo(self, error: BaseException) -> None:
        """Leave no transaction open, and no connection that may be beyond use."""
        connection = self._connection
        if connection is None:
            return
        with contextlib.suppress(driver.Error):
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        if driver.unavailable(error) is not None and driver.is_lasting(error):
            self._let_go()

    def _let_go(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(driver.Error):
                connection.close()

    def _tell(self, callback: Callable[..., None], *arguments: Any) -> None:
        # The loop may be gone: then there is nobody left to tell.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(callback, *arguments)

    def _resolve(self, group: list[_Operation], outcome: _Outcome) -> None:
        for operation, result in zip(group, outcome.results, strict=True):
            self._operations -= 1
            self._bytes -= operation.cost
            future = operation.future
            if isinstance(result, Exception):
                if not future.done():
                    future.set_exception(result)
            elif future.done():
                self._orphaned(result)
            else:
                future.set_result(result)
        if outcome.tx is not None:
            self._committed(outcome.tx)
        self._end_if_idle()

    def _end_if_idle(self) -> None:
        """The thread ends when everything was told: until then an orphan may bring one operation more."""
        if self._closing and not self._operations:
            self._queue.put(None)
