"""What storage knows and the hot path needs: believed for a moment, asked for once at a time."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

from relay.clock import Clock

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Fresh(Generic[K, V]):
    """Values by key, each used for `fresh_ms` after it was fetched; at most `most` of them.

    When a value has aged while many wait for it, one of them fetches it for all. What does not exist is never
    remembered.
    """

    def __init__(self, clock: Clock, *, fresh_ms: int, most: int) -> None:
        self._clock = clock
        self._fresh_ms = fresh_ms
        self._most = most
        self._known: dict[K, tuple[V, int]] = {}
        self._asked: dict[K, asyncio.Future[V | None]] = {}

    def known(self, key: K) -> V | None:
        """The value, when it is fresh: an aged one is as good as none, also when the clock was set back."""
        found = self._known.get(key)
        if found is None or not 0 <= self._clock.now() - found[1] < self._fresh_ms:
            return None
        return found[0]

    def last(self, key: K) -> V | None:
        """What storage said when it was asked last, fresh or not; None, too, when that was forgotten."""
        found = self._known.get(key)
        return None if found is None else found[0]

    async def fetch(self, key: K, ask: Callable[[], Awaitable[V | None]]) -> V | None:
        """The value as storage has it now, or as the request on its way will bring it; raises what `ask` raises."""
        asked = self._asked.get(key)
        if asked is None:
            asked = asyncio.ensure_future(self._ask(key, ask))
            self._asked[key] = asked
            asked.add_done_callback(lambda asked: self._answered(key, asked))
        # Whoever stops waiting must not take the answer away from the others.
        return await asyncio.shield(asked)

    def forget(self, key: K) -> None:
        """What is known has changed, and whatever a request on its way brings may be older than the change."""
        self._known.pop(key, None)
        self._asked.pop(key, None)

    def _answered(self, key: K, asked: "asyncio.Future[V | None]") -> None:
        if self._asked.get(key) is asked:
            del self._asked[key]

    async def _ask(self, key: K, ask: Callable[[], Awaitable[V | None]]) -> V | None:
        now = self._clock.now()
        value = await ask()
        if self._asked.get(key) is not asyncio.current_task():
            return value
        if value is None:
            self._known.pop(key, None)
            return None
        if len(self._known) >= self._most:
            self._known.clear()
        self._known[key] = (value, now)
        return value
