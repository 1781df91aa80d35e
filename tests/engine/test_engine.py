"""The engine against real storage, with a destination that does what each test says."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import ClassVar, cast

import pytest

from relay.clock import FakeClock
from relay.config import Config
from relay.domain.delivery import MAX_LOST_LEASES, Attempt, Change, Settlement, State, settle
from relay.domain.errors import Unavailable
from relay.domain.message import Callback, FlowControl, Headers, Message, MessageId, TenantId
from relay.domain.selection import Order, Selection
from relay.engine.engine import KEPT_ANSWER_BYTES, Engine, Signs, Store
from relay.engine.settler import Settler
from relay.ids import Ids, dead_letter_text, text_of
from relay.metrics import Metrics
from relay.wire.outbound import Outgoing
from storage.protocol import ClaimTerms, Storage
from tests.builders import NOW, TENANT, a_claim, a_message, an_attempt, next_id
from tests.engine.stepped import Faulty, Lines, WithHint, storage_is_away

_PATIENCE_S = 20


class Destination:
    """Stands where the network is: `answer` decides what each request gets; `requests` are those that came."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self.requests: list[Outgoing] = []
        self.status = 200
        self.headers: tuple[tuple[str, str], ...] = ()
        self.body = b""
        self.answer: Callable[[], Awaitable[None]] = self._at_once

    async def send(self, outgoing: Outgoing, *, timeout_ms: int, keep_bytes: int | None = None) -> Attempt:
        self.requests.append(outgoing)
        started_at = self._clock.now()
        await self.answer()
        return Attempt(
            started_at=started_at,
            ended_at=self._clock.now(),
            status=self.status,
            headers=self.headers,
            body=self.body,
        )

    async def _at_once(self) -> None:
        pass


class Unsigned:
    def __init__(self) -> None:
        #: When what is claimed is to be looked at again, instead of being sent.
        self.held: int | None = None

    async def held_until(self, tenant: TenantId) -> int | None:
        return self.held

    async def is_limited(self, tenant: TenantId) -> bool:
        return False

    async def sign(self, message: Message) -> Headers:
        return (("Upstash-Signature", "signature"),)


class SignsAfter(Unsigned):
    """A signer whose storage is away for so many signatures."""

    def __init__(self, failures: int) -> None:
        super().__init__()
        self._failures = failures

    async def sign(self, message: Message) -> Headers:
        self._failures -= 1
        if self._failures >= 0:
            raise Unavailable("the database is locked")
        return (("Upstash-Signature", "signature"),)


class Rig:
    """One engine on a clock that stands still until told."""

    def __init__(
        self,
        storage: object,
        config: Config | None = None,
        *,
        signer: Signs | None = None,
        destination: Callable[[FakeClock], Destination] = Destination,
    ) -> None:
        self.storage = cast(Storage, storage)
        self.clock = FakeClock(NOW)
        self.destination = destination(self.clock)
        self.lines = Lines()
        self.metrics = Metrics()
        self.engine = Engine(
            cast(Store, storage),
            sender=self.destination,
            signer=signer or Unsigned(),
            settings=config or Config(),
            clock=self.clock,
            ids=Ids(),
            log=self.lines,
            metrics=self.metrics,
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        loops = [
            asyncio.create_task(loop())
            for loop in (self.engine.claim_loop, self.engine.settle_loop, self.engine.renew_loop)
        ]
        try:
            await self.until(lambda: not self.engine.is_behind)
            yield
        finally:
            for loop in loops:
                loop.cancel()
            await asyncio.gather(*loops, return_exceptions=True)

    async def until(self, true: Callable[[], bool]) -> None:
        """Wait until it is true, letting everything else run."""
        async with asyncio.timeout(_PATIENCE_S):
            while not true():
                await asyncio.sleep(0)

    async def pass_time_until(self, true: Callable[[], bool], *, step_ms: int) -> None:
        """Let time pass, a step and then whatever it sets off, until it is true."""
        async with asyncio.timeout(_PATIENCE_S):
            while not true():
                self.clock.advance(step_ms)
                await _let_loops_run()

    async def settled(self) -> None:
        await self.until(lambda: self.engine.in_flight == 0)

    async def states(self, id: MessageId) -> list[State]:
        """The message's log, oldest first."""
        history = await self.storage.events(
            TENANT, Selection(message_ids=(id,)), order=Order.EARLIEST_FIRST, start=None, limit=100
        )
        return [state for event in history.events for state in event.change.states]

    async def until_state(self, id: MessageId, state: State) -> list[State]:
        async with asyncio.timeout(_PATIENCE_S):
            while state not in (states := await self.states(id)):
                await asyncio.sleep(0)
        return states


@pytest.fixture
def rig(storage: Storage) -> Rig:
    return Rig(storage)


async def test_a_message_that_is_due_is_delivered_with_its_publish(rig: Rig) -> None:
    async with rig.running():
        message = a_message()
        (receipt,) = await rig.engine.publish([message])
        assert receipt.message_id == message.id
        await rig.settled()
        assert await rig.states(message.id) == [State.CREATED, State.ACTIVE, State.DELIVERED]
    assert len(rig.destination.requests) == 1


async def test_a_delayed_message_is_delivered_when_it_is_due_and_not_before(rig: Rig) -> None:
    async with rig.running():
        message = a_message(not_before=NOW + 60_000)
        await rig.engine.publish([message])
        rig.clock.advance(59_999)
        other = a_message()
        await rig.engine.publish([other])
        await rig.until_state(other.id, State.DELIVERED)
        assert await rig.states(message.id) == [State.CREATED]
        rig.clock.advance(1)
        await rig.until_state(message.id, State.DELIVERED)


async def test_a_failure_is_retried_after_its_delay_and_ends_in_a_dead_letter(rig: Rig) -> None:
    rig.destination.status = 500
    async with rig.running():
        message = a_message(max_retries=1, retry_delay="5000")
        await rig.engine.publish([message])
        await rig.settled()
        assert await rig.states(message.id) == [State.CREATED, State.ACTIVE, State.ERROR, State.RETRY]
        rig.clock.advance(5_000)
        states = await rig.until_state(message.id, State.FAILED)
        assert states[-3:] == [State.ACTIVE, State.ERROR, State.FAILED]
    (dead,) = await rig.storage.dead_letters(
        TENANT, Selection(), order=Order.EARLIEST_FIRST, start=None, limit=10
    )
    assert (dead.message.id, dead.attempt.status, dead.retried) == (message.id, 500, 1)


async def test_the_destination_decides_when_it_is_asked_again(rig: Rig) -> None:
    rig.destination.status = 429
    rig.destination.headers = (("Retry-After", "30"),)
    async with rig.running():
        message = a_message(retry_delay="5000")
        await rig.engine.publish([message])
        await rig.settled()
    history = await rig.storage.events(TENANT, Selection(), order=Order.EARLIEST_FIRST, start=None, limit=10)
    (retried,) = [event for event in history.events if event.change is Change.RETRIED]
    assert retried.next_at == NOW + 30_000


async def test_the_outcome_of_every_attempt_is_delivered_to_the_callback(rig: Rig) -> None:
    rig.destination.status = 500
    message = a_message(
        max_retries=1,
        retry_delay="5000",
        callback=Callback(url="https://example.com/callback", max_retries=0),
        failure_callback=Callback(url="https://example.com/failed", max_retries=0),
    )
    async with rig.running():
        await rig.engine.publish([message])
        await rig.until(lambda: len(rig.destination.requests) == 2)
        await rig.settled()
        rig.clock.advance(5_000)
        await rig.until(lambda: len(rig.destination.requests) == 5)
        await rig.settled()
    paths = [request.head.split(b" ")[1] for request in rig.destination.requests]
    assert paths == [b"/hook", b"/callback", b"/hook", b"/callback", b"/failed"]
    told = [json.loads(request.head.partition(b"\r\n\r\n")[2]) for request in rig.destination.requests[1::3]]
    assert [report["sourceMessageId"] for report in told] == [text_of("msg_", message.id)] * 2
    letters = await rig.storage.dead_letters(
        TENANT, Selection(message_ids=(message.id,)), order=Order.EARLIEST_FIRST, start=None, limit=10
    )
    assert [dead_letter_text(letter.id) for letter in letters] == [told[1]["dlqId"]]
    assert rig.metrics.registry.get_sample_value("relay_messages_published_total") == 4


async def test_no_callback_holds_more_of_a_body_than_a_message_may_have(storage: Storage) -> None:
    rig = Rig(storage, Config(max_message_bytes=3))
    message = a_message(body=b"hello", callback=Callback(url="https://example.com/callback"))
    async with rig.running():
        await rig.engine.publish([message])
        await rig.until(lambda: len(rig.destination.requests) == 2)
        await rig.settled()
    assert b'"sourceBody":"aGVs"' in rig.destination.requests[1].head


async def test_callbacks_outlive_a_storage_that_is_away_and_come_once(storage: Storage) -> None:
    faulty = Faulty(storage)
    rig = Rig(WithHint(faulty, storage))
    async with rig.running():
        # The commit goes through, the answer is lost: the settlement is repeated.
        faulty.after = _only("settle", storage_is_away)
        await rig.engine.publish([a_message(callback=Callback(url="https://example.com/callback"))])
        await rig.until(lambda: len(rig.lines.named("settler.waiting")) > 0)
        faulty.after = _nothing_wrong
        while len(rig.destination.requests) < 2 or rig.engine.in_flight:
            rig.clock.advance(100)
            await _let_loops_run()
    assert len(rig.destination.requests) == 2
    (refused,) = rig.lines.named("settlement.refused")
    assert refused["count"] == 1


async def test_what_waits_is_not_overtaken_by_what_is_published_later(storage: Storage) -> None:
    rig = Rig(storage, Config(max_in_flight=1))
    release = asyncio.Event()
    rig.destination.answer = lambda: _wait(release)
    messages = [a_message(created_at=NOW + n, not_before=NOW) for n in range(5)]
    async with rig.running():
        for message in messages:
            await rig.engine.publish([message])
        assert rig.engine.in_flight == 1
        release.set()
        for message in messages:
            await rig.until_state(message.id, State.DELIVERED)
    assert [_message_id(request) for request in rig.destination.requests] == [
        _text(message) for message in messages
    ]


async def test_no_more_bodies_are_held_than_the_budget_allows(storage: Storage) -> None:
    body = b"x" * 100_000
    rig = Rig(storage, Config(max_in_flight_bytes=4 * len(body)))
    release = asyncio.Event()
    rig.destination.answer = lambda: _wait(release)
    messages = [a_message(url=f"https://{number}.example/", body=body) for number in range(20)]
    async with rig.running():
        for message in messages:
            await rig.engine.publish([message])
        await rig.until(lambda: len(rig.destination.requests) >= 3)
        assert rig.engine.in_flight <= 5
        release.set()
        for message in messages:
            await rig.until_state(message.id, State.DELIVERED)


async def test_a_lease_is_renewed_for_as_long_as_the_attempt_takes(rig: Rig) -> None:
    release = asyncio.Event()
    rig.destination.answer = lambda: _wait(release)
    async with rig.running():
        message = a_message()
        await rig.engine.publish([message])
        await rig.until(lambda: len(rig.destination.requests) == 1)
        lease_ms = Config().lease_ms
        for _ in range(12):
            # Another process would take it over if it were not renewed.
            rig.clock.advance(lease_ms // 6)
            await _let_loops_run()
            stolen = await rig.storage.claim(ClaimTerms(limit=10, lease_ms=1), now=rig.clock.now())
            assert stolen.claims == []
        release.set()
        await rig.until_state(message.id, State.DELIVERED)


async def test_an_outcome_that_comes_after_its_lease_was_taken_over_is_refused(rig: Rig) -> None:
    release = asyncio.Event()
    rig.destination.answer = lambda: _wait(release)
    async with rig.running():
        message = a_message()
        await rig.engine.publish([message])
        await rig.until(lambda: len(rig.destination.requests) == 1)
        taken = await rig.storage.claim(ClaimTerms(limit=1, lease_ms=60_000), now=NOW + Config().lease_ms + 1)
        assert [claim.claim_no for claim in taken.claims] == [2]
        release.set()
        await rig.settled()
        assert State.DELIVERED not in await rig.states(message.id)
        assert len(rig.lines.named("settlement.refused")) == 1


async def test_a_message_whose_workers_keep_dying_ends_in_a_dead_letter_without_being_sent_again(
    rig: Rig,
) -> None:
    message = a_message(max_retries=0)
    await rig.storage.publish([message], now=NOW)
    for n in range(MAX_LOST_LEASES):
        claimed = await rig.storage.claim(ClaimTerms(limit=1, lease_ms=1_000), now=NOW + n * 2_000)
        assert len(claimed.claims) == 1
    rig.clock.advance(MAX_LOST_LEASES * 2_000)
    async with rig.running():
        states = await rig.until_state(message.id, State.FAILED)
    assert states[-2:] == [State.ERROR, State.FAILED]
    assert rig.destination.requests == []


async def test_deliveries_on_their_last_chance_are_attempted_one_at_a_time(rig: Rig) -> None:
    suspects = [a_message(), a_message(), a_message()]
    await rig.storage.publish(suspects, now=NOW)
    for n in range(MAX_LOST_LEASES - 1):
        claimed = await rig.storage.claim(ClaimTerms(limit=10, lease_ms=1_000), now=NOW + n * 2_000)
        assert len(claimed.claims) == len(suspects)
    rig.clock.advance(MAX_LOST_LEASES * 2_000)
    release = asyncio.Event()
    others_due_at: list[int | None] = []

    async def answer() -> None:
        others_due_at.append((await rig.storage.stats()).oldest_due_at)
        await release.wait()

    rig.destination.answer = answer
    async with rig.running():
        # The first is sent once the others are handed back; they come again, and find it in flight.
        await rig.until(lambda: len(others_due_at) == 1)
        assert others_due_at == [rig.clock.now() + 5_000]
        await rig.pass_time_until(lambda: len(rig.lines.named("delivery.postponed")) >= 8, step_ms=50)
        assert len(rig.destination.requests) == 1
        innocent = a_message()
        await rig.engine.publish([innocent])
        await rig.until(lambda: len(rig.destination.requests) == 2)
        release.set()
        await rig.pass_time_until(lambda: len(rig.destination.requests) == 4, step_ms=50)
        await rig.settled()
    for message in (*suspects, innocent):
        assert (await rig.states(message.id))[-2:] == [State.ACTIVE, State.DELIVERED]


async def test_a_delivery_that_cannot_be_signed_for_want_of_storage_is_handed_back_and_costs_no_try(
    storage: Storage,
) -> None:
    signer = SignsAfter(2)
    rig = Rig(storage, signer=signer)
    async with rig.running():
        message = a_message(max_retries=0)
        await rig.engine.publish([message])
        await rig.pass_time_until(lambda: len(rig.destination.requests) == 1, step_ms=500)
        await rig.settled()
        states = await rig.states(message.id)
    assert states == [State.CREATED, *[State.ACTIVE] * 3, State.DELIVERED]
    assert len(rig.lines.named("delivery.postponed")) == 2


async def test_what_is_held_is_not_sent_costs_no_try_and_comes_again_when_it_was_said_to(
    storage: Storage,
) -> None:
    signer = Unsigned()
    rig = Rig(storage, signer=signer)
    signer.held = NOW + 10_000
    async with rig.running():
        message = a_message(max_retries=0)
        await rig.engine.publish([message])
        await rig.settled()
        signer.held = None
        rig.clock.advance(9_000)
        await rig.engine.publish([other := a_message()])
        await rig.settled()
        assert State.DELIVERED in await rig.states(other.id)
        assert State.DELIVERED not in await rig.states(message.id)
        await rig.pass_time_until(lambda: len(rig.destination.requests) == 2, step_ms=100)
        assert rig.clock.now() >= NOW + 10_000
        await rig.settled()
        assert (await rig.states(message.id))[-1] is State.DELIVERED


async def test_a_bug_while_sending_is_a_failed_attempt_and_not_a_stuck_message(rig: Rig) -> None:
    rig.destination.answer = _raise_zero_division
    async with rig.running():
        message = a_message(max_retries=0)
        await rig.engine.publish([message])
        await rig.until_state(message.id, State.FAILED)
    (broke,) = rig.lines.named("delivery.broke")
    assert isinstance(broke["exc"], ZeroDivisionError)


async def test_it_is_known_why_nothing_is_claimed_until_something_is(storage: Storage) -> None:
    faulty = Faulty(storage)
    rig = Rig(WithHint(faulty, storage))
    async with rig.running():
        assert rig.engine.outage.reason is None
        faulty.before = _only("claim", storage_is_away)
        await rig.pass_time_until(lambda: rig.engine.outage.lasted_ms >= 10_000, step_ms=250)
        assert rig.engine.outage.reason == "the disk is full"
        assert len(rig.lines.named("engine.waiting")) == 4
        faulty.before = _nothing_wrong
        await rig.pass_time_until(lambda: rig.engine.outage.reason is None, step_ms=250)
        (resumed,) = rig.lines.named("engine.resumed")
        assert cast(int, resumed["waited_ms"]) >= 10_000


async def test_outcomes_wait_for_storage_to_come_back(storage: Storage) -> None:
    faulty = Faulty(storage)
    rig = Rig(WithHint(faulty, storage))
    async with rig.running():
        message = a_message()
        await rig.engine.publish([message])
        faulty.before = _only("settle", storage_is_away)
        await rig.until(lambda: len(rig.lines.named("settler.waiting")) > 0)
        assert rig.engine.in_flight == 1
        faulty.before = _nothing_wrong
        while not (
            await rig.storage.events(
                TENANT, Selection(states=(State.DELIVERED,)), order=Order.LATEST_FIRST, start=None, limit=1
            )
        ).events:
            rig.clock.advance(100)
            await _let_loops_run()
        await rig.settled()


async def test_a_publish_that_storage_cannot_commit_is_not_accepted_and_leaks_no_slot(
    storage: Storage,
) -> None:
    faulty = Faulty(storage)
    rig = Rig(WithHint(faulty, storage), Config(max_in_flight=1))
    async with rig.running():
        faulty.before = _only("publish", storage_is_away)
        for _ in range(3):
            with pytest.raises(Unavailable):
                await rig.engine.publish([a_message()])
        faulty.before = _nothing_wrong
        message = a_message()
        await rig.engine.publish([message])
        await rig.until_state(message.id, State.DELIVERED)


async def test_a_drain_waits_for_what_is_in_flight(rig: Rig) -> None:
    release = asyncio.Event()
    rig.destination.answer = lambda: _wait(release)
    async with rig.running():
        message = a_message()
        await rig.engine.publish([message])
        drained = asyncio.create_task(rig.engine.drain(NOW + 10_000))
        await _let_loops_run()
        assert not drained.done()
        release.set()
        await drained
        assert await rig.states(message.id) == [State.CREATED, State.ACTIVE, State.DELIVERED]


@pytest.mark.parametrize("verb", ["publish", "claim"])
async def test_a_drain_waits_for_leases_that_are_on_their_way_from_storage(
    storage: Storage, verb: str
) -> None:
    faulty = Faulty(storage)
    rig = Rig(WithHint(faulty, storage))
    committed, release = asyncio.Event(), asyncio.Event()

    async def hold(called: str, *args: object) -> None:
        if called == verb:
            committed.set()
            await release.wait()

    async with rig.running():
        message = a_message()
        faulty.after = hold
        publishing = None
        if verb == "publish":
            publishing = asyncio.create_task(rig.engine.publish([message]))
        else:
            await storage.publish([message], now=NOW)
        await committed.wait()
        drained = asyncio.create_task(rig.engine.drain(NOW + 10_000))
        await _let_loops_run()
        assert not drained.done()
        release.set()
        await drained
        if publishing is not None:
            await publishing
        assert await rig.states(message.id) == [State.CREATED, State.ACTIVE, State.DELIVERED]


async def test_what_a_drain_cuts_short_is_handed_back_due_at_once_without_spending_a_try(rig: Rig) -> None:
    rig.destination.answer = lambda: _wait(asyncio.Event())
    async with rig.running():
        message = a_message(max_retries=0)
        await rig.engine.publish([message])
        await rig.until(lambda: len(rig.destination.requests) == 1)
        drained = asyncio.create_task(rig.engine.drain(NOW + 10_000))
        await _let_loops_run()
        rig.clock.advance(10_000)
        await drained
    again = await rig.storage.claim(ClaimTerms(limit=1, lease_ms=1_000), now=rig.clock.now())
    (claim,) = again.claims
    assert (claim.message.id, claim.retried, claim.lost_leases) == (message.id, 0, 0)


async def test_what_storage_hands_over_after_the_deadline_is_handed_back(storage: Storage) -> None:
    faulty = Faulty(storage)
    rig = Rig(WithHint(faulty, storage))
    committed, go_on = asyncio.Event(), asyncio.Event()

    async def hold(verb: str, *args: object) -> None:
        if verb == "publish":
            committed.set()
            await go_on.wait()

    async with rig.running():
        faulty.after = hold
        message = a_message()
        publishing = asyncio.create_task(rig.engine.publish([message]))
        await committed.wait()
        drained = asyncio.create_task(rig.engine.drain(NOW))
        await _let_loops_run()
        go_on.set()
        await publishing
        await drained
    assert rig.destination.requests == []
    again = await rig.storage.claim(ClaimTerms(limit=1, lease_ms=1_000), now=rig.clock.now())
    assert [claim.message.id for claim in again.claims] == [message.id]


async def test_a_drain_at_once_hands_back_what_has_not_begun(rig: Rig) -> None:
    async with rig.running():
        message = a_message()
        await rig.engine.publish([message])
        await rig.engine.drain(NOW)
        assert rig.engine.in_flight == 0


async def test_of_an_answer_history_keeps_the_beginning_of_a_failure_and_nothing_of_a_success(
    storage: Storage,
) -> None:
    rig = Rig(storage, Config(max_in_flight_bytes=1 << 20))
    rig.destination.body = b"x" * (KEPT_ANSWER_BYTES + 1)
    async with rig.running():
        delivered = a_message()
        await rig.engine.publish([delivered])
        await rig.settled()
        rig.destination.status = 500
        for _ in range(30):
            await rig.engine.publish([a_message(max_retries=0)])
        await rig.settled()
    dead = await rig.storage.dead_letters(
        TENANT, Selection(), order=Order.EARLIEST_FIRST, start=None, limit=100
    )
    assert {len(letter.attempt.body) for letter in dead} == {KEPT_ANSWER_BYTES}
    assert len(dead) == 30


async def test_nothing_is_claimed_while_outcomes_cannot_be_written(storage: Storage) -> None:
    faulty = Faulty(storage)
    rig = Rig(WithHint(faulty, storage))
    async with rig.running():
        message = a_message()
        faulty.before = _only("settle", storage_is_away)
        await rig.engine.publish([message])
        await rig.until(lambda: len(rig.lines.named("settler.waiting")) > 0)
        # Longer than a lease: a claim would take the message over from ourselves and send it again.
        await rig.pass_time_until(lambda: rig.clock.now() > NOW + 2 * Config().lease_ms, step_ms=1_000)
        faulty.before = _nothing_wrong
        await rig.pass_time_until(lambda: rig.engine.in_flight == 0, step_ms=50)
        assert (await rig.states(message.id))[-1] is State.DELIVERED
    assert len(rig.destination.requests) == 1


async def test_a_draining_engine_still_accepts_but_starts_nothing(rig: Rig) -> None:
    async with rig.running():
        await rig.engine.drain(NOW + 1_000)
        message = a_message()
        await rig.engine.publish([message])
        assert await rig.states(message.id) == [State.CREATED]


async def test_a_queue_goes_on_behind_an_outcome_that_cannot_be_stored_whole_and_the_log_says_so_once(
    rig: Rig,
) -> None:
    too_much = FlowControl(key="key", parallelism=1 << 70)
    head = a_message(queue="q", callback=Callback(url="https://example.com/report", flow=too_much))
    behind = a_message(queue="q")
    async with rig.running():
        await rig.engine.publish([head, behind])
        await rig.until_state(behind.id, State.DELIVERED)
        await rig.settled()
        assert await rig.states(head.id) == [State.CREATED, State.ACTIVE, State.DELIVERED]
    assert len(rig.destination.requests) == 2
    assert [event for level, event, _ in rig.lines.all if level == "error"] == ["settlement.cut"]
    assert (await rig.storage.stats()).live == 0


async def test_one_settlement_that_storage_cannot_digest_does_not_hold_up_its_neighbours(rig: Rig) -> None:
    poison, good = (settle(a_claim(), an_attempt(), next_id=next_id) for _ in range(2))

    class Indigestible:
        written: ClassVar[list[Settlement]] = []

        async def settle(self, settlements: Sequence[Settlement]) -> Sequence[MessageId]:
            if poison in settlements:
                raise ValueError("cannot be written")
            self.written.extend(settlements)
            return []

    freed: list[Settlement] = []
    storage = Indigestible()
    settler = Settler(storage.settle, clock=rig.clock, log=rig.lines, metrics=Metrics(), settled=freed.extend)
    for settlement in (good, poison):
        settler.put(settlement)
    loop = asyncio.create_task(settler.run())
    await rig.until(lambda: len(freed) == 2)
    loop.cancel()
    assert storage.written == [good]
    assert len(rig.lines.named("settlement.failed")) == 1


def _only(verb: str, trouble: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    async def before(called: str, *args: object) -> None:
        if called == verb:
            await trouble(called, *args)

    return before


async def _nothing_wrong(verb: str, *args: object) -> None:
    pass


async def _wait(event: asyncio.Event) -> None:
    await event.wait()


async def _raise_zero_division() -> None:
    raise ZeroDivisionError


async def _let_loops_run() -> None:
    for _ in range(200):
        await asyncio.sleep(0)


def _text(message: Message) -> bytes:
    return text_of("msg_", message.id).encode()


def _message_id(request: Outgoing) -> bytes:
    return request.head.partition(b"Upstash-Message-Id: ")[2].partition(b"\r\n")[0]
