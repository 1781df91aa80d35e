"""A lane: operations of one kind that wait are taken together, and become one transaction.

There is no linger: under load the transaction before is the gathering, and a lone operation is a group of one. A
lane of the road has a connection (or a few) of its own, so that the road of a message never queues behind anything
else; any other borrows one for each group.

Killed before a group's commit, the server undoes it and nobody had been told it happened; killed after, all of it
is there, told or not.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar

from relay.domain.errors import Unavailable
from storage.postgres import driver
from storage.postgres.connections import Pool, Server
from storage.postgres.driver import Connection, Session

P = TypeVar("P")
R = TypeVar("R")

#: Of one group. More wait for the next: a commit must not take so long that the first of its callers gives up.
_GROUP_OPERATIONS = 2_000
_GROUP_BYTES = 8 << 20

#: Of all that wait while the database is stuck. Beyond it the relay says so instead of filling its memory.
_WAITING_OPERATIONS = 20_000
_WAITING_BYTES = 128 << 20

_REPEATS = 3

#: How long closing waits for what was accepted.
_CLOSE_S = 15.0


class Work(NamedTuple, Generic[P, R]):
    """What a lane does with payloads: `together` many in one transaction, `alone` one, when it spoils its group."""

    together: Callable[[Connection, Sequence[P]], Awaitable[Sequence[R]]]
    alone: Callable[[Connection, P], Awaitable[R]]


class _Operation(Generic[P, R]):
    __slots__ = ("cost", "future", "payload")

    def __init__(self, payload: P, cost: int, future: "asyncio.Future[R]") -> None:
        self.payload = payload
        self.cost = cost
        self.future = future


class Lane(Generic[P, R]):
    """Takes operations in order and resolves each with its result, or with what went wrong with it alone.

    With a `pool` the connections are the pool's. `orphaned` hears of every result whose caller had gone by then.
    """

    def __init__(
        self,
        server: Server,
        session: Session,
        work: Work[P, R],
        *,
        width: int = 1,
        pool: Pool | None = None,
        orphaned: Callable[[R], None] | None = None,
    ) -> None:
        self._server = server
        self._session = session
        self._work = work
        self._pool = pool
        self._orphaned = orphaned
        self._waiting: deque[_Operation[P, R]] = deque()
        self._operations = 0
        self._bytes = 0
        self._closing = False
        self._idle: list[asyncio.Future[None]] = []
        self._runners = [asyncio.create_task(self._run()) for _ in range(width)]

    def submit(self, payload: P, cost: int = 0) -> "asyncio.Future[R]":
        """Hand an operation over; `cost` is about its bytes. Raises `Unavailable` when too much waits already."""
        if self._closing:
            raise Unavailable("the relay is stopping", retry_after_s=5)
        if self._operations >= _WAITING_OPERATIONS or self._bytes >= _WAITING_BYTES:
            raise Unavailable("too much is waiting to be written", retry_after_s=2)
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._operations += 1
        self._bytes += cost
        self._waiting.append(_Operation(payload, cost, future))
        if self._idle:
            self._idle.pop().set_result(None)
        return future

    async def close(self) -> None:
        """Write what was accepted and let go of the connections."""
        self._closing = True
        while self._idle:
            self._idle.pop().set_result(None)
        _, stuck = await asyncio.wait(self._runners, timeout=_CLOSE_S)
        for runner in stuck:
            runner.cancel()
        await asyncio.gather(*self._runners, return_exceptions=True)

    async def _run(self) -> None:
        connection: Connection | None = None
        try:
            while True:
                if not self._waiting:
                    if self._closing:
                        return
                    arrival: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                    self._idle.append(arrival)
                    await arrival
                    continue
                group = self._take()
                try:
                    if self._pool is not None:
                        results = await self._pool.use(partial(self._results, group=group))
                    else:
                        if connection is None or not connection.usable:
                            connection = await self._server.connect(self._session)
                        results = await self._results(connection, group)
                except asyncio.CancelledError:
                    self._resolve(group, [Unavailable("the relay is stopping", retry_after_s=5)] * len(group))
                    raise
                except Exception as error:
                    results = [_own(error) for _ in group]
                self._resolve(group, results)
        finally:
            if connection is not None:
                connection.terminate()

    def _take(self) -> list[_Operation[P, R]]:
        """All that wait, up to the bounds of a group."""
        waiting = self._waiting
        group: list[_Operation[P, R]] = []
        cost = 0
        while waiting and len(group) < _GROUP_OPERATIONS and cost < _GROUP_BYTES:
            operation = waiting.popleft()
            group.append(operation)
            cost += operation.cost
        return group

    async def _results(self, connection: Connection, group: Sequence[_Operation[P, R]]) -> Sequence[Any]:
        """A value or an exception for each. A spoiled group is halved until the one that spoils it is alone.

        Raises `Unavailable` when the server is to blame.
        """
        repeats = _REPEATS
        while True:
            try:
                return await self._work.together(connection, [operation.payload for operation in group])
            except Unavailable as error:
                if not repeats or not driver.is_collision(error):
                    raise
                repeats -= 1
            except Exception:
                if len(group) == 1:
                    return [await self._alone(connection, group[0].payload)]
                half = len(group) // 2
                first = await self._part(connection, group[:half])
                return [*first, *await self._part(connection, group[half:])]

    async def _alone(self, connection: Connection, payload: P) -> R | Exception:
        for _ in range(_REPEATS):
            try:
                return await self._work.alone(connection, payload)
            except Unavailable as error:
                if not driver.is_collision(error):
                    raise
                problem: Exception = error
            except driver.Conflict as error:
                # Somebody wrote the same just now: a second look finds it.
                problem = error
            except Exception as error:
                return error
        return problem

    async def _part(self, connection: Connection, group: Sequence[_Operation[P, R]]) -> Sequence[Any]:
        """`_results` of a part: what one part has committed is told although the server fails the other."""
        try:
            if not connection.usable:
                raise Unavailable("the connection to the database was lost", retry_after_s=2)
            return await self._results(connection, group)
        except Unavailable as error:
            return [_own(error) for _ in group]

    def _resolve(self, group: Sequence[_Operation[P, R]], results: Sequence[Any]) -> None:
        for operation, result in zip(group, results, strict=True):
            self._operations -= 1
            self._bytes -= operation.cost
            future = operation.future
            if isinstance(result, Exception):
                if not future.done():
                    future.set_exception(result)
            elif not future.done():
                future.set_result(result)
            elif self._orphaned is not None:
                self._orphaned(result)


def _own(error: Exception) -> Exception:
    """An error for one of many callers: each its own, since raising one writes on it."""
    if isinstance(error, Unavailable):
        return Unavailable(str(error), retry_after_s=error.retry_after_s)
    return error
