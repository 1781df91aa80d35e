"""Asks storage for the permits of tenants that are limited, for all deliveries that need one at the same time."""

import asyncio
from enum import Enum, auto

from relay.clock import Clock
from relay.domain.delivery import Lease
from storage.protocol import Work

#: How many ask in one transaction.
_BATCH = 500
#: How much of what is due is looked through at once for more of a tenant that has no permits left.
_SIFTED = 2_000


class Answer(Enum):
    """What became of who needs a permit: who `WAITS` has no lease any more, who `STAYS` is to be handed back."""

    GRANTED = auto()
    WAITS = auto()
    STAYS = auto()


class Permits:
    """One question is on its way to storage at a time; whoever comes meanwhile asks in the next one."""

    def __init__(self, storage: Work, *, clock: Clock) -> None:
        self._storage = storage
        self._clock = clock
        self._asking: list[tuple[Lease, asyncio.Future[Answer]]] = []
        self._run: asyncio.Task[None] | None = None

    async def ask(self, lease: Lease) -> Answer:
        """Raises `Unavailable`; then, and when it is cancelled, a permit may be held all the same."""
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._asking.append((lease, answer))
        if self._run is None:
            self._run = asyncio.create_task(self._ask_all())
        return await answer

    async def _ask_all(self) -> None:
        while self._asking:
            batch, self._asking = self._asking[:_BATCH], self._asking[_BATCH:]
            try:
                permits = await self._storage.ask_permits(
                    [lease for lease, _ in batch], now=self._clock.now(), sift=_SIFTED
                )
            except Exception as problem:
                for _, answer in batch:
                    if not answer.done():
                        answer.set_exception(problem)
                continue
            for lease, answer in batch:
                if answer.done():
                    continue
                if lease.message_id in permits.granted:
                    answer.set_result(Answer.GRANTED)
                else:
                    waits = lease.message_id in permits.waiting
                    answer.set_result(Answer.WAITS if waits else Answer.STAYS)
        self._run = None
