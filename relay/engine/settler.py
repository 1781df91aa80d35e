"""Gathers settlements into batches and gets them into storage, however long that takes."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from relay.clock import Clock
from relay.domain.delivery import Settlement, lesser
from relay.domain.errors import Unavailable
from relay.domain.message import MessageId
from relay.engine.outage import Outage
from relay.ids import text_of
from relay.log import Log
from relay.metrics import Metrics
from storage.protocol import Rejected, Unstorable

#: One batch: as much as one transaction writes without keeping others waiting.
_BATCH = 1000
_BATCH_BYTES = 4 << 20
_FIRST_PAUSE_MS = 50
_LONGEST_PAUSE_MS = 500


class Settler:
    """One batch is on its way to storage at a time; whatever ends meanwhile forms the next one.

    There is no linger: an idle relay settles at once, and a busy one gathers by being busy. While storage is
    unavailable the settlements wait here (their number is bounded by what may be in flight) and their leases go
    on being renewed. A batch whose commit is uncertain is simply repeated: what had been written is refused the
    second time and changes nothing. `settle` writes a batch as `Work.settle` does.
    """

    def __init__(
        self,
        settle: Callable[[Sequence[Settlement]], Awaitable[Sequence[MessageId]]],
        *,
        clock: Clock,
        log: Log,
        metrics: Metrics,
        settled: Callable[[Sequence[Settlement]], None],
    ) -> None:
        self._write = settle
        self._clock = clock
        self._log = log
        self._metrics = metrics
        self._settled = settled
        self._outage = Outage("settler", clock=clock, log=log)
        #: Storage has refused the batch in hand. Until it takes it, nothing new should be claimed: leases that ran
        #: out meanwhile are most likely those of this very batch.
        self.is_held_up = False
        self._waiting: list[Settlement] = []
        self._arrived = asyncio.Event()
        self._hurry = asyncio.Event()

    def put(self, settlement: Settlement) -> None:
        self._waiting.append(settlement)
        self._arrived.set()

    async def run(self) -> None:
        """Settle for ever; cancel to stop, after `Engine.drain` has seen everything settled."""
        while True:
            await self._arrived.wait()
            batch = self._waiting[: _fitting(self._waiting)]
            del self._waiting[: len(batch)]
            if not self._waiting:
                self._arrived.clear()
            written: Sequence[Settlement] = batch
            try:
                refused = await self._settle(batch)
            except asyncio.CancelledError:
                raise
            except Exception as bug:
                # One settlement that storage cannot digest must not hold up its neighbours.
                written, refused = await self._settle_one_by_one(batch, bug)
            self._metrics.published.inc(_published(written, refused))
            if refused:
                self._metrics.refused_settlements.inc(len(refused))
                self._log.warning(
                    "settlement.refused", messages=[int(id) for id in refused][:20], count=len(refused)
                )
            self._settled(batch)

    async def _settle(self, batch: Sequence[Settlement]) -> Sequence[MessageId]:
        pause_ms = _FIRST_PAUSE_MS
        while True:
            try:
                refused = await self._write(batch)
                self.is_held_up = False
                self._outage.over()
                return refused
            except Unavailable as reason:
                self.is_held_up = True
                self._metrics.storage_errors.labels("settle").inc()
                self._outage.met(reason, settlements=len(batch))
                await self._clock.wait(self._hurry, self._clock.now() + pause_ms)
                pause_ms = min(2 * pause_ms, _LONGEST_PAUSE_MS)

    async def _settle_one_by_one(
        self, batch: Sequence[Settlement], bug: Exception
    ) -> tuple[Sequence[Settlement], Sequence[MessageId]]:
        """What could be written, and which of that storage refused. `bug` kept the batch from being written: it is
        told when none of the messages is to blame, since those tell for themselves."""
        written: list[Settlement] = []
        refused: list[MessageId] = []
        for settlement in batch:
            try:
                refused += await self._settle([settlement])
                written.append(settlement)
            except asyncio.CancelledError:
                raise
            except Exception as problem:
                less = await self._settle_less(settlement, problem)
                if less is not None:
                    written.append(less[0])
                    refused += less[1]
        if written == batch:
            self._log.error("settler.failed", exc=bug, settlements=len(batch))
        return written, refused

    async def _settle_less(
        self, settlement: Settlement, problem: Exception
    ) -> tuple[Settlement, Sequence[MessageId]] | None:
        """Write as much of a settlement as storage can hold: what was, and which of it was refused."""
        message = text_of("msg_", settlement.claim.message.id)
        # Tables that are not what they should be can be mended: nothing is given up.
        about_values = isinstance(problem, Unstorable) or not isinstance(problem, Rejected)
        for less in lesser(settlement) if about_values else ():
            try:
                refused = await self._settle([less])
            except asyncio.CancelledError:
                raise
            except Exception as another:
                if isinstance(another, Rejected) and not isinstance(another, Unstorable):
                    break
                continue
            self._metrics.cut_settlements.inc()
            self._log.error(
                "settlement.cut",
                exc=problem,
                message=message,
                outcome=settlement.change.name.lower(),
                callbacks_lost=len(settlement.publishes) - len(less.publishes),
                answer_lost=less.attempt != settlement.attempt,
            )
            return less, refused
        # Its lease runs out and it is claimed again. After some lost leases the endpoint is no longer called.
        self._log.error("settlement.failed", exc=problem, message=message)
        return None


def _published(batch: Sequence[Settlement], refused: Sequence[MessageId]) -> int:
    """How many callbacks were written with the batch."""
    return sum(
        len(settlement.publishes)
        for settlement in batch
        if settlement.publishes and settlement.claim.message.id not in refused
    )


def bytes_of(settlement: Settlement) -> int:
    """What a settlement holds in memory besides its claim: the answer, and the callbacks."""
    answer = 0 if settlement.attempt is None else len(settlement.attempt.body)
    return answer + sum([len(message.request.body) for message in settlement.publishes])


def _fitting(settlements: Sequence[Settlement]) -> int:
    """How many of the first make a batch; one at least."""
    total = 0
    for number, settlement in enumerate(settlements[:_BATCH], 1):
        total += bytes_of(settlement)
        if total >= _BATCH_BYTES:
            return number
    return min(len(settlements), _BATCH)
