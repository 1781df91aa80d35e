"""The delivery engine: claim what is due, attempt it, settle what came of it.

Everything that is in flight is known here and nothing that waits is: memory is bounded by the slots and the byte
budget, whatever storage holds. What a crash does: a delivery in flight keeps its row, leased to nobody alive; the
lease runs out and any claim takes it over, so the endpoint may see it a second time and never misses it.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

from msgspec.structs import replace

from relay.clock import Clock
from relay.domain.delivery import Attempt, Claim, Lease, Settlement, is_last_chance, lost, released, settle
from relay.domain.errors import Unavailable
from relay.domain.fairness import Crowd, crowd_of
from relay.domain.gates import is_gated, moves_gates
from relay.domain.message import Headers, Message, MessageId, TenantId
from relay.engine.outage import Outage
from relay.engine.permits import Answer, Permits
from relay.engine.room import Room
from relay.engine.settler import Settler, bytes_of
from relay.ids import Ids, text_of
from relay.log import Log
from relay.metrics import Metrics
from relay.wire.outbound import Outgoing, outgoing
from relay.wire.retry_after import retry_after_ms
from storage.protocol import Claimed, ClaimTerms, Inbox, Receipt, Work

#: The loop looks at storage at least this often, whatever it believes: wake-ups are hints.
_POLL_MS = 1_000
#: A claim takes at most this many at once, so that one transaction stays short.
_CLAIM_BATCH = 500
#: While slots free up one by one, wait this long for a batch worth claiming.
_GATHER_MS = 3
_ERROR_PAUSE_MS = 250
_IN_OTHER_HANDS_MS = 20
#: What is due may have its share of the room: then it is the end of an attempt that wakes the loop.
_PASSED_OVER_MS = 250
#: Deliveries on their last chance are attempted one at a time. The others come back after this, one by one.
_LAST_CHANCE_TAKEN_MS = 5_000
_LAST_CHANCES_APART_MS = 1_000
#: When a delivery that could not be signed, because storage did not answer, is due again.
_POSTPONED_PAUSE_MS = 1_000
#: When a message that has the permit of a key, and could have none of its tenant, tries again.
_NO_PERMIT_PAUSE_MS = 1_000
#: Bookkeeping of one claim besides its body, for the byte budget.
_CLAIM_OVERHEAD_BYTES = 2_048
#: After the deadline of a shutdown, how long storage has to take back what was cut short.
_HAND_BACK_MS = 5_000
#: How much of what is due is looked through at once for more of a crowd that exceeds its share.
_SIFTED = 5_000
#: How much of a failed attempt's answer is kept in history and with a dead letter.
KEPT_ANSWER_BYTES = 64 << 10


class Store(Inbox, Work, Protocol):
    """What the engine needs of storage."""


class Sends(Protocol):
    """Makes one attempt; whatever happens on the network is a value."""

    async def send(
        self, outgoing: Outgoing, *, timeout_ms: int, keep_bytes: int | None = None
    ) -> Attempt: ...


class Signs(Protocol):
    """Makes the headers that sign one attempt, with the key that is current now, unless deliveries are held."""

    async def held_until(self, tenant: TenantId) -> int | None: ...

    async def is_limited(self, tenant: TenantId) -> bool: ...

    async def sign(self, message: Message) -> Headers: ...


class EngineSettings(Protocol):
    """The part of the configuration the engine reads."""

    @property
    def max_in_flight(self) -> int: ...
    @property
    def max_in_flight_bytes(self) -> int: ...
    @property
    def lease_ms(self) -> int: ...
    @property
    def default_timeout_ms(self) -> int: ...
    @property
    def max_message_bytes(self) -> int: ...
    @property
    def region(self) -> str: ...


class _Flight:
    """A claim this process is working on."""

    __slots__ = ("attempt", "claim", "crowd", "is_ours", "leased_until")

    def __init__(self, claim: Claim, crowd: Crowd, leased_until: int, attempt: asyncio.Task[None]) -> None:
        self.claim = claim
        self.crowd = crowd
        self.leased_until = leased_until
        #: Not known to have been taken over.
        self.is_ours = True
        self.attempt = attempt


class Engine:
    """Owns every delivery in flight in this process."""

    def __init__(
        self,
        storage: Store,
        *,
        sender: Sends,
        signer: Signs,
        settings: EngineSettings,
        clock: Clock,
        ids: Ids,
        log: Log,
        metrics: Metrics,
    ) -> None:
        self._storage = storage
        self._sender = sender
        self._signer = signer
        self._settings = settings
        self._clock = clock
        self._ids = ids
        self._log = log
        self._metrics = metrics
        self._settler = Settler(self._settle, clock=clock, log=log, metrics=metrics, settled=self._free)
        self._permits = Permits(storage, clock=clock)
        #: By message and claim number: a delivery taken over from ourselves, after a long stop, is two flights.
        self._flights: dict[tuple[MessageId, int], _Flight] = {}
        self._room = Room(slots=settings.max_in_flight, max_bytes=settings.max_in_flight_bytes)
        #: Crowds that have their share of the room were passed over: more can be taken when something ends.
        self._passed_over = False
        #: How often something ended: whether more may be taken than when storage was asked.
        self._endings = 0
        #: Something due is left in storage: new messages queue up behind it instead of overtaking.
        self._behind = True
        self._draining = False
        self._cutting_short = False
        self._wake = asyncio.Event()
        self._slots_freed = asyncio.Event()
        self._emptied = asyncio.Event()
        self._emptied.set()
        self._sleeping_until = 0
        self.last_progress_at = clock.now()
        #: When whatever was in flight had two thirds of its lease left, or more.
        self._kept_at = clock.now()
        #: When a publish was refused last, and why; None once one has gone through since.
        self.refused: tuple[int, str] | None = None
        #: Whether storage has answered a claim since the start.
        self.has_looked = False
        #: That storage refuses claims.
        self.outage = Outage("engine", clock=clock, log=log)
        storage.on_work(self.wake)

    # --- the way in -------------------------------------------------------------------------------------------

    async def publish(self, messages: Sequence[Message]) -> Sequence[Receipt]:
        """Store the messages and, where there are free slots, start what is due in the same breath.

        The inserting transaction leases them, so nothing that was just written is read back. Raises
        `Unavailable` when storage cannot commit; then nothing was accepted.
        """
        now = self._clock.now()
        terms = self._terms_for(messages, now)
        try:
            published = await self._storage.publish(messages, now=now, claim=terms)
            self.refused = None
            for claim in published.claims:
                self._start(claim, now)
        except Unavailable as reason:
            self.refused = (self._clock.now(), str(reason))
            self._metrics.storage_errors.labels("publish").inc()
            raise
        finally:
            if terms is not None:
                self._give_back(terms.limit)
        if terms is not None and terms.aside:
            self._metrics.set_aside.inc(len(terms.aside))
        duplicates = sum(1 for receipt in published.receipts if receipt.deduplicated)
        if duplicates:
            self._metrics.deduplicated.inc(duplicates)
        self._metrics.published.inc(len(published.receipts) - duplicates)
        return published.receipts

    def wake(self, due_at: int) -> None:
        """Something will be due at `due_at`: look no later than then. A hint, safe to give at any time."""
        if due_at < self._sleeping_until or not self._sleeping_until:
            self._wake.set()
        if due_at <= self._clock.now():
            self._behind = True

    # --- the loops --------------------------------------------------------------------------------------------

    async def claim_loop(self) -> None:
        """Claim as many as there is room for, start each, sleep until something is due, until drained."""
        while not self._draining:
            room = await self._wait_for_room()
            self.last_progress_at = self._clock.now()
            if room == 0:
                continue
            self._wake.clear()
            if self._settler.is_held_up:
                await self._sleep(self._clock.now() + _ERROR_PAUSE_MS)
                continue
            now = self._clock.now()
            if self._may_lose(now) and not await self._renew(now):
                # The clock was set, or this process stood still: what is its own must not look lost to it.
                await self._sleep(self._clock.now() + _ERROR_PAUSE_MS)
                continue
            endings = self._endings
            try:
                claimed, surplus = await self._claim(min(room, _CLAIM_BATCH))
                now = claimed.at
                await self._set_aside(surplus, now)
            except Unavailable as reason:
                self._metrics.storage_errors.labels("claim").inc()
                self.outage.met(reason)
                await self._sleep(self._clock.now() + _ERROR_PAUSE_MS)
                continue
            self.has_looked = True
            self.outage.over()
            self._passed_over = claimed.passed_over
            next_at = claimed.next_due_at or now + _POLL_MS
            self._behind = next_at <= now and bool(claimed.claims)
            if not self._behind and not (claimed.passed_over and self._endings > endings):
                # Due, and yet not ours: another process has it in hand at this very moment.
                pause_ms = _PASSED_OVER_MS if claimed.passed_over else _IN_OTHER_HANDS_MS
                look_at = next_at if next_at > now else now + pause_ms
                await self._sleep(min(look_at, now + _POLL_MS))

    async def settle_loop(self) -> None:
        await self._settler.run()

    async def renew_loop(self) -> None:
        """Renew the leases of whatever is in flight for long, in one statement a round.

        A round comes every sixth of a lease and renews what has less than two thirds left, so that storage may
        be away for half a lease before anything is lost.
        """
        lease_ms = self._settings.lease_ms
        never = asyncio.Event()
        while True:
            await self._clock.wait(never, self._clock.now() + lease_ms // 6)
            await self._renew(self._clock.now())

    def _may_lose(self, now: int) -> bool:
        """Whether a lease of what is in flight here may look lost soon: then a round comes before anything else."""
        return now - self._kept_at > self._settings.lease_ms // 2

    def _safe_now(self) -> Callable[[], int]:
        """The clock for a claim that may have to wait, no later than own leases are known to hold."""
        until = self._kept_at + self._settings.lease_ms * 2 // 3 - 1
        return lambda: min(self._clock.now(), until)

    async def _renew(self, now: int) -> bool:
        """One round; False when storage was not available, and what is in flight may be lost."""
        lease_ms = self._settings.lease_ms
        ageing = [
            flight
            for flight in self._flights.values()
            if flight.is_ours and flight.leased_until - now < lease_ms * 2 // 3
        ]
        if ageing:
            leases = [_lease_of(flight.claim) for flight in ageing]
            try:
                refused = set(await self._storage.renew(leases, until=now + lease_ms))
            except Unavailable as reason:
                self._metrics.storage_errors.labels("renew").inc()
                self._log.warning("leases.not_renewed", count=len(leases), reason=str(reason))
                return False
            for flight in ageing:
                # Refused: settled meanwhile, or taken over. The settlement's fence decides, not this loop.
                flight.is_ours = flight.claim.message.id not in refused
                flight.leased_until = now + lease_ms
        self._kept_at = now
        return True

    # --- the way out ------------------------------------------------------------------------------------------

    async def drain(self, until: int) -> None:
        """Claim nothing more, let attempts finish until the instant `until`, hand the rest back unspent."""
        self._draining = True
        self._wake.set()
        self._slots_freed.set()
        await self._clock.wait(self._emptied, until)
        self._cutting_short = True
        # A task that has not run yet could not say that it was cancelled.
        await asyncio.sleep(0)
        for flight in list(self._flights.values()):
            flight.attempt.cancel()
        await self._clock.wait(self._emptied, max(until, self._clock.now()) + _HAND_BACK_MS)

    @property
    def in_flight(self) -> int:
        """Deliveries claimed and not yet settled."""
        return len(self._flights)

    @property
    def is_full(self) -> bool:
        """Whether nothing more could be attempted at the moment, so that storage is not asked for it either."""
        return self._room.is_full

    @property
    def is_behind(self) -> bool:
        """Whether something that is due may be waiting in storage."""
        return self._behind

    # --- one attempt ------------------------------------------------------------------------------------------

    def _terms_for(self, messages: Sequence[Message], now: int) -> ClaimTerms | None:
        """How much of a publish can be started at once, whose slots are reserved, and which of the messages are to
        wait in their crowds because those have their share of the room.

        While more is due than was claimed, only a crowd of which hardly anything is in flight starts at once: what
        is due may be anybody's, but hardly its own.
        """
        if self._draining:
            return None
        limit = 0
        free = self._room.free
        if self._behind and not all(self._room.is_light(crowd_of(message)) for message in messages):
            free = 0
        aside: set[MessageId] = set()
        #: How many more of each crowd may start; None when only the others keep it out.
        left: dict[Crowd, int | None] = {}
        for message in messages:
            if message.not_before > now or is_gated(message):
                continue
            crowd = crowd_of(message)
            if crowd not in left:
                left[crowd] = self._room.left_for(crowd) or (0 if self._room.is_full_for(crowd) else None)
            share = left[crowd]
            if share:
                left[crowd] = share - 1
                limit += limit < free
            elif share == 0:
                aside.add(message.id)
        if not limit and not aside:
            return None
        self._reserve(limit)
        return ClaimTerms(limit=limit, lease_ms=self._settings.lease_ms, aside=aside)

    async def _claim(
        self, limit: int, *, after: Sequence[Settlement] = ()
    ) -> tuple[Claimed, Mapping[Crowd, Sequence[Claim]]]:
        """Claim at most so many, and start them; what exceeds the shares of its crowds is returned besides."""
        terms = ClaimTerms(
            limit=limit,
            lease_ms=self._settings.lease_ms,
            max_bytes=self._room.bytes_left,
            shares=self._room.shares(),
        )
        self._reserve(limit)
        try:
            claimed = await self._storage.claim(terms, now=self._safe_now(), after=after)
        except BaseException:
            self._give_back(limit)
            raise
        # What was reserved is what is about to be taken: it must not count against anybody's share.
        self._room.give_back(limit)
        surplus = self._take(claimed.claims, claimed.at, more=len(claimed.claims) == limit)
        self._slots_freed.set()
        if not surplus:
            self._see_whether_empty()
        return claimed, surplus

    async def _settle(self, settlements: Sequence[Settlement]) -> Sequence[MessageId]:
        """Write settlements; whoever waits for what they free is claimed in the same commit, and starts with it.

        Otherwise a lane would stand empty from the end of that commit to the end of another one.
        """
        limit = self._successors(settlements)
        if not limit:
            return await self._storage.settle(settlements)
        try:
            claimed, surplus = await self._claim(limit, after=settlements)
        except Unavailable:
            raise
        except Exception as bug:
            # What cannot be claimed must not keep what has ended from being written. What cannot be written itself
            # is the settler's to report.
            refused = await self._storage.settle(settlements)
            self._log.error("settlements.alone", exc=bug, settlements=len(settlements))
            return refused
        for claims in surplus.values():
            for claim in claims:
                self._start(claim, claimed.at, postponed_to=claimed.at)
        self._passed_over = self._passed_over or claimed.passed_over
        if claimed.next_due_at is not None:
            self.wake(claimed.next_due_at)
        return claimed.refused

    def _successors(self, settlements: Sequence[Settlement]) -> int:
        """How many are to be claimed with these settlements: one for each that may let somebody pass a gate.

        None where the loop claims anyway, or a crowd might find that its share is still taken by what is over.
        """
        if self._draining or self._behind or self._settler.is_held_up or self._may_lose(self._clock.now()):
            return 0
        crowds = Counter(crowd_of(one.claim.message) for one in settlements if moves_gates(one.claim))
        if any(self._room.left_for(crowd) < count for crowd, count in crowds.items()):
            return 0
        return min(crowds.total(), self._room.free)

    def _take(self, claims: Sequence[Claim], now: int, *, more: bool) -> Mapping[Crowd, Sequence[Claim]]:
        """Start what was claimed, as far as the shares of the crowds allow; the rest is returned.

        When there is `more` to be had, crowds that have most of their shares are returned, too: so is much of that.

        Of those on their last chance only one is started at a time.

        Who dies of a message takes everything in flight along, time after time. Before that is held against a
        delivery it is attempted without another suspect beside it, so that a message that kills its worker takes no
        innocent one into the dead-letter queue. The others are handed back.
        """
        self._metrics.lost_leases.inc(sum(1 for claim in claims if claim.lost_leases))
        taken = any(map(is_last_chance, claims)) and self._suspects() > 0
        due_at = now + _LAST_CHANCE_TAKEN_MS
        surplus: dict[Crowd, list[Claim]] = {}
        for claim in claims:
            crowd = crowd_of(claim.message)
            if taken and is_last_chance(claim):
                self._start(claim, now, postponed_to=due_at)
                due_at += _LAST_CHANCES_APART_MS
            elif claim.message.flow or claim.permit or self._room.left_for(crowd):
                # Who has a permit uses it now: it counts from now.
                taken = taken or is_last_chance(claim)
                self._start(claim, now)
            else:
                surplus.setdefault(crowd, []).append(claim)
        if more:
            for crowd in {crowd_of(claim.message) for claim in claims if not is_gated(claim.message)}:
                if self._room.is_heavy(crowd):
                    surplus.setdefault(crowd, [])
        return surplus

    async def _set_aside(self, surplus: Mapping[Crowd, Sequence[Claim]], now: int) -> None:
        """Let what exceeds the share of its crowd wait there, and with it what else of the crowd is next in line.

        What cannot be moved is handed back like anything that cannot be attempted now.
        """
        if not surplus:
            return
        claims = [claim for claims in surplus.values() for claim in claims]
        # For a drain to wait for.
        self._reserve(1)
        leases: Mapping[Crowd, Sequence[Lease]] = {
            crowd: [_lease_of(claim) for claim in some] for crowd, some in surplus.items()
        }
        stayed: Collection[MessageId] = {claim.message.id for claim in claims}
        try:
            aside = await self._storage.set_aside(leases, now=now, limit=_SIFTED)
            stayed = aside.stayed
            self._metrics.set_aside.inc(len(claims) - len(stayed) + aside.sifted)
            # As long as hardly anything else stands first in line, a claim would only bring more of the same.
            while aside.sifted > _SIFTED * 3 // 4 and not self._draining:
                aside = await self._storage.set_aside(dict.fromkeys(surplus, ()), now=now, limit=_SIFTED)
                self._metrics.set_aside.inc(aside.sifted)
        except Unavailable as reason:
            self._metrics.storage_errors.labels("set_aside").inc()
            self._log.warning("crowds.not_set_aside", count=len(stayed), reason=str(reason))
        else:
            hosts = sorted({crowd.host for crowd in surplus})
            self._log.info("crowds.set_aside", hosts=hosts[:20], crowds=len(surplus))
        finally:
            self._give_back(1)
        for claim in claims:
            if claim.message.id in stayed:
                self._start(claim, now, postponed_to=now)

    def _suspects(self) -> int:
        return sum(1 for flight in self._flights.values() if is_last_chance(flight.claim))

    async def _until_alone(self) -> None:
        """Wait until storage has taken back the other suspects: what comes now is the doing of one."""
        while self._suspects() > 1:
            self._slots_freed.clear()
            await self._clock.wait(self._slots_freed, self._clock.now() + _POLL_MS)

    def _start(self, claim: Claim, now: int, *, postponed_to: int | None = None) -> None:
        message = claim.message
        if self._cutting_short:
            postponed_to = now
        crowd = crowd_of(message)
        self._room.enter(crowd, _bytes_of(claim))
        self._emptied.clear()
        self._flights[message.id, claim.claim_no] = _Flight(
            claim,
            crowd,
            now + self._settings.lease_ms,
            asyncio.get_running_loop().create_task(
                self._attempt(claim) if postponed_to is None else self._postpone(claim, postponed_to)
            ),
        )

    async def _postpone(self, claim: Claim, due_at: int) -> None:
        self._log.info("delivery.postponed", message=text_of("msg_", claim.message.id), due_at=due_at)
        self._put(released(claim, now=self._clock.now(), due_at=due_at))

    async def _attempt(self, claim: Claim) -> None:
        """Build, send, decide, hand over. Nothing that goes wrong in here can leave the message without a
        settlement: a bug counts as a failed attempt, so it ends in the dead-letter queue and not in a loop.
        That storage does not answer is not the message's fault: it is handed back and costs no try. Who has to wait
        for a permit of its tenant does so in storage, and is nobody's here any more."""
        started_at = self._clock.now()
        try:
            settlement = lost(claim, now=started_at, next_id=self._ids.next)
            if (
                settlement is None
                and not claim.permit
                and await self._signer.is_limited(claim.message.tenant)
            ):
                # From now on: it may be given, and the answer may not be heard.
                claim = replace(claim, permit=True)
                answer = await self._permits.ask(_lease_of(claim))
                if answer is Answer.WAITS:
                    self._leave(claim, _bytes_of(claim))
                    self._left()
                    return
                if answer is Answer.STAYS:
                    now = self._clock.now()
                    settlement = released(claim, now=now, due_at=now + _NO_PERMIT_PAUSE_MS)
            settlement = settlement or await self._deliver(claim)
        except asyncio.CancelledError:
            settlement = released(claim, now=self._clock.now())
        except Unavailable as reason:
            self._metrics.postponed.inc()
            self._log.warning(
                "delivery.postponed", message=text_of("msg_", claim.message.id), reason=str(reason)
            )
            now = self._clock.now()
            settlement = released(claim, now=now, due_at=now + _POSTPONED_PAUSE_MS)
        except Exception as bug:
            self._log.error("delivery.broke", exc=bug, message=text_of("msg_", claim.message.id))
            attempt = Attempt(
                started_at=started_at,
                ended_at=self._clock.now(),
                error=f"the relay could not make this request: {type(bug).__name__}",
            )
            settlement = self._decide(claim, attempt)
        self._put(settlement)

    def _put(self, settlement: Settlement) -> None:
        """Hand over what came of an attempt; the answer and the callbacks are held until they are in storage."""
        self._room.grow(crowd_of(settlement.claim.message), bytes_of(settlement))
        self._settler.put(settlement)
        self._report(settlement)

    async def _deliver(self, claim: Claim) -> Settlement:
        message = claim.message
        held_until = await self._signer.held_until(message.tenant)
        if held_until is not None:
            self._log.info("delivery.held", message=text_of("msg_", message.id), due_at=held_until)
            return released(claim, now=self._clock.now(), due_at=held_until)
        if is_last_chance(claim):
            await self._until_alone()
        request = message.request
        signatures = await self._signer.sign(message)
        now = self._clock.now()
        flight = self._flights[message.id, claim.claim_no]
        if not flight.is_ours or flight.leased_until <= now:
            # Somebody else may be about to send it. If nobody has it, it is due again.
            self._log.warning("delivery.too_late", message=text_of("msg_", message.id))
            return released(claim, now=now)
        attempt = await self._sender.send(
            outgoing(claim, signatures, region=self._settings.region),
            timeout_ms=request.timeout_ms or self._settings.default_timeout_ms,
            # A callback reports the whole answer; history keeps the beginning of it.
            keep_bytes=None if message.callback or message.failure_callback else KEPT_ANSWER_BYTES,
        )
        return self._decide(claim, attempt)

    def _decide(self, claim: Claim, attempt: Attempt) -> Settlement:
        asked_ms = None if attempt.succeeded else retry_after_ms(attempt.headers, attempt.ended_at)
        settlement = settle(
            claim,
            attempt,
            next_id=self._ids.next,
            retry_after_ms=asked_ms,
            max_report_bytes=self._settings.max_message_bytes,
        )
        kept_bytes = 0 if attempt.succeeded else KEPT_ANSWER_BYTES
        if len(attempt.body) <= kept_bytes:
            return settlement
        return replace(settlement, attempt=replace(attempt, body=attempt.body[:kept_bytes]))

    def _report(self, settlement: Settlement) -> None:
        claim = settlement.claim
        message = claim.message
        attempt = settlement.attempt
        outcome = settlement.change.name.lower()
        self._metrics.attempts.labels(outcome).inc()
        if attempt is None:
            return
        duration_ms = attempt.ended_at - attempt.started_at
        self._metrics.attempt_seconds.observe(duration_ms / 1000)
        if claim.retried == 0:
            self._metrics.lag_seconds.observe(max(0, attempt.started_at - message.not_before) / 1000)
        (self._log.warning if outcome == "failed" else self._log.info)(
            "delivery.attempted",
            message=text_of("msg_", message.id),
            tenant=message.tenant,
            outcome=outcome,
            retried=claim.retried,
            status=attempt.status,
            error=attempt.error,
            duration_ms=duration_ms,
            next_at=settlement.due_at,
        )

    def _free(self, batch: Sequence[Settlement]) -> None:
        """The settlements are in storage (or refused): their slots are free."""
        for settlement in batch:
            self._leave(settlement.claim, _bytes_of(settlement.claim) + bytes_of(settlement))
        self._left()

    def _leave(self, claim: Claim, size: int) -> None:
        flight = self._flights.pop((claim.message.id, claim.claim_no))
        self._room.leave(flight.crowd, size)

    def _left(self) -> None:
        self._endings += 1
        if self._passed_over:
            self._wake.set()
        self._see_whether_empty()
        self._slots_freed.set()

    # --- room -------------------------------------------------------------------------------------------------

    def _reserve(self, slots: int) -> None:
        """Slots for what storage is about to hand over; a drain waits for it like for what is in flight."""
        self._room.reserve(slots)
        self._emptied.clear()

    def _give_back(self, slots: int) -> None:
        self._room.give_back(slots)
        self._see_whether_empty()
        self._slots_freed.set()

    def _see_whether_empty(self) -> None:
        if self._room.is_empty:
            self._emptied.set()

    async def _wait_for_room(self) -> int:
        """Room for a batch worth a transaction; after `_GATHER_MS`, or when no more will come, for anything."""
        worth = max(1, min(_CLAIM_BATCH, self._settings.max_in_flight) // 4)
        room = self._room.free
        if room >= worth:
            return room
        gather_until = self._clock.now() + _GATHER_MS
        while room < worth and (self._flights or not room) and not self._draining:
            self._slots_freed.clear()
            freed = await self._clock.wait(
                self._slots_freed, gather_until if room else self._clock.now() + _POLL_MS
            )
            room = self._room.free
            if not freed:
                break
        return room

    async def _sleep(self, until: int) -> None:
        self._sleeping_until = until
        await self._clock.wait(self._wake, until)
        self._sleeping_until = 0


def _lease_of(claim: Claim) -> Lease:
    message = claim.message
    return Lease(tenant=message.tenant, message_id=message.id, claim_no=claim.claim_no)


def _bytes_of(claim: Claim) -> int:
    return len(claim.message.request.body) + _CLAIM_OVERHEAD_BYTES
