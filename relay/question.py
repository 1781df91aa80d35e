"""A question to storage that many may ask at once and nobody waits long for."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from relay.clock import Clock
from relay.domain.errors import Unavailable

T = TypeVar("T")

#: Probes wait two or three seconds, and some ask for several processes.
LONGEST_ANSWER_MS = 1_500


class Question(Generic[T]):
    """Puts one question at a time, however often it is asked meanwhile, and gives up on none.

    Who asks waits for the answer up to `patience_ms`. A call that takes longer goes on: to cut it off would cost
    the connection it has, and what asks next would begin at the end of the line again.
    """

    def __init__(
        self, ask: Callable[[], Coroutine[Any, Any, T]], *, clock: Clock, patience_ms: int = LONGEST_ANSWER_MS
    ) -> None:
        self._ask = ask
        self._patience_ms = patience_ms
        self._clock = clock
        self._asked: asyncio.Task[T] | None = None
        self._answered = asyncio.Event()
        #: Why the last call that came to an end failed, and when it ended.
        self._refusal: str | None = None
        self._ended_at = 0

    async def answer(self) -> T:
        """What storage says now. Raises `Unavailable` when it refuses, or says nothing in time."""
        asked = self._asked
        if asked is None:
            self._answered = asyncio.Event()
            asked = self._asked = asyncio.create_task(self._ask())
            asked.add_done_callback(self._end)
        if not await self._clock.wait(self._answered, self._clock.now() + self._patience_ms):
            raise Unavailable(self._silence())
        return asked.result()

    def problem(self, *, within_ms: int) -> str | None:
        """Why the last call failed, if one did so within this time; storage is not asked."""
        return self._refusal if self._clock.now() - self._ended_at < within_ms else None

    async def drop(self) -> None:
        """Give up on a call that is under way."""
        if self._asked is not None:
            self._asked.cancel()
            await asyncio.wait((self._asked,))

    def _end(self, asked: "asyncio.Task[T]") -> None:
        problem = None if asked.cancelled() else asked.exception()
        self._refusal = str(problem) if isinstance(problem, Unavailable) else None
        self._ended_at = self._clock.now()
        self._asked = None
        self._answered.set()

    def _silence(self) -> str:
        # No duration: what several processes say alike is said once.
        return "it does not answer" + ("" if self._refusal is None else f"; before that: {self._refusal}")
