"""Queues and flow-control keys: what waits, what passes, and that no limit is ever exceeded by one."""

import asyncio
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import ClassVar, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from relay.domain.delivery import Change, Claim, Settlement, State, released, settle
from relay.domain.gates import (
    KEY_LIFETIME_MS,
    Configure,
    Gate,
    GateChange,
    GateKind,
    Pin,
    ResetRate,
    Unpin,
)
from relay.domain.message import Callback, FlowControl, Message, MessageId
from relay.domain.publish import redrive
from relay.domain.selection import Selection
from relay.domain.tenant import Tenant, TenantLimits
from storage.protocol import ClaimTerms, FlowKey, Receipt, Retention, Storage
from tests.builders import NOW, OTHER_TENANT, TENANT, a_message, a_message_id, an_attempt, next_id
from tests.contract.conftest import BACKENDS
from tests.contract.steps import (
    EVERYTHING,
    LATER,
    LEASE_MS,
    TERMS,
    accept,
    ask_permits,
    graves,
    happenings,
    states,
    take,
)

T = TypeVar("T")

URL = "https://example.com/callback"
ONE_AT_A_TIME = FlowControl(key="k", parallelism=1)
TWO_A_SECOND = FlowControl(key="k", rate=2, period_ms=1000)


async def change(
    storage: Storage,
    change: GateChange,
    *,
    kind: GateKind = GateKind.QUEUE,
    name: str = "q",
    now: int = NOW,
    create: bool = True,
    limit: int | None = None,
) -> bool:
    return await storage.change_gate(TENANT, kind, name, change, create=create, limit=limit, now=now)


async def change_key(storage: Storage, what: GateChange, *, now: int = NOW) -> None:
    assert await change(storage, what, kind=GateKind.FLOW, name="k", now=now)


async def queue(storage: Storage, name: str = "q") -> Gate:
    found = await storage.queue(TENANT, name)
    assert found is not None
    return found


async def key(storage: Storage, *, now: int = NOW) -> FlowKey:
    found = await storage.flow_key(TENANT, "k", now=now)
    assert found is not None
    return found


async def end(storage: Storage, claims: Sequence[Claim], status: int, now: int) -> Sequence[MessageId]:
    """Settle attempts that took no time; the ids that were refused."""
    attempt = an_attempt(started_at=now, ended_at=now, status=status)
    return await storage.settle([settle(claim, attempt, next_id=next_id) for claim in claims])


async def deliver(storage: Storage, *claims: Claim, now: int = NOW) -> Sequence[MessageId]:
    return await end(storage, claims, 200, now)


async def fail(storage: Storage, *claims: Claim, now: int = NOW) -> Sequence[MessageId]:
    return await end(storage, claims, 500, now)


def messages_of(claims: Sequence[Claim]) -> Sequence[Message]:
    return [claim.message for claim in claims]


# --- what a settlement frees


def delivered(claim: Claim) -> Settlement:
    return settle(claim, an_attempt(started_at=NOW, ended_at=NOW), next_id=next_id)


async def test_a_claim_after_a_settlement_lets_the_next_in_line_have_its_permit(storage: Storage) -> None:
    first, second, third = (a_message(flow=ONE_AT_A_TIME) for _ in range(3))
    await accept(storage, first, second, third)
    (claim,) = await take(storage)
    claimed = await storage.claim(TERMS, now=NOW, after=[delivered(claim)])
    assert messages_of(claimed.claims) == [second]
    assert list(claimed.refused) == []
    assert await states(storage, first) == [State.CREATED, State.ACTIVE, State.DELIVERED]
    assert (await key(storage)).gate.held == 1
    assert await take(storage) == []


async def test_a_claim_after_a_settlement_lets_the_next_in_line_have_its_lane(storage: Storage) -> None:
    first, second, third = (a_message(queue="q") for _ in range(3))
    await accept(storage, first, second, third)
    (claim,) = await take(storage)
    claimed = await storage.claim(TERMS, now=NOW, after=[delivered(claim)])
    # Whoever has the lane is due, for this claim or the next.
    assert messages_of([*claimed.claims, *await take(storage)]) == [second]
    assert (await queue(storage)).held == 1


async def test_a_claim_after_settlements_leaves_alone_what_waits_for_nothing_they_free(
    storage: Storage,
) -> None:
    keyed, other = a_message(flow=ONE_AT_A_TIME), a_message()
    await accept(storage, keyed)
    (claim,) = await take(storage)
    await accept(storage, other)
    claimed = await storage.claim(TERMS, now=NOW, after=[delivered(claim)])
    assert list(claimed.claims) == []
    assert messages_of(await take(storage)) == [other]


async def test_a_settlement_that_is_refused_lets_nobody_pass(storage: Storage) -> None:
    first, second = a_message(flow=ONE_AT_A_TIME), a_message(flow=ONE_AT_A_TIME)
    await accept(storage, first, second)
    (lost,) = await take(storage)
    after_lease = NOW + LEASE_MS + 1
    # The claim that finds it puts it back in line.
    (current,) = [*await take(storage, now=after_lease), *await take(storage, now=after_lease)]
    claimed = await storage.claim(TERMS, now=after_lease, after=[delivered(lost)])
    assert list(claimed.refused) == [lost.message.id]
    assert list(claimed.claims) == []
    assert current.claim_no == lost.claim_no + 1


async def test_a_claim_after_settlements_takes_no_more_than_it_may(storage: Storage) -> None:
    limits = FlowControl(key="k", parallelism=2)
    messages = [a_message(flow=limits) for _ in range(4)]
    await accept(storage, *messages)
    claims = await take(storage)
    one = ClaimTerms(limit=1, lease_ms=LEASE_MS)
    claimed = await storage.claim(one, now=NOW, after=[delivered(claim) for claim in claims])
    assert messages_of(claimed.claims) == messages[2:3]
    assert claimed.next_due_at == NOW
    assert messages_of(await take(storage)) == messages[3:]


# --- queues


async def test_a_queue_hands_out_one_message_at_a_time_in_the_order_they_were_accepted(
    storage: Storage,
) -> None:
    messages = [a_message(queue="q") for _ in range(3)]
    await accept(storage, *messages[:2])
    await accept(storage, messages[2])
    for message in messages:
        (claim,) = await take(storage)
        assert claim.message == message
        assert await take(storage) == []
        assert await deliver(storage, claim) == []
    assert await storage.queue(TENANT, "q") is not None
    assert (await storage.claim(TERMS, now=LATER)).next_due_at is None


async def test_what_was_accepted_first_goes_first_whatever_its_id_says(storage: Storage) -> None:
    older_id, newer_id = a_message(queue="q"), a_message(queue="q")
    await accept(storage, newer_id)
    await accept(storage, older_id)
    (claim,) = await take(storage)
    assert claim.message == newer_id


async def test_a_message_with_a_gate_never_comes_back_claimed_from_its_publish(storage: Storage) -> None:
    plain = a_message()
    published = await storage.publish(
        [a_message(queue="q"), a_message(flow=ONE_AT_A_TIME), plain], now=NOW, claim=TERMS
    )
    assert messages_of(published.claims) == [plain]
    assert len(published.receipts) == 3


async def test_a_queue_waits_for_the_retries_of_its_head(storage: Storage) -> None:
    first, second = a_message(queue="q", max_retries=1), a_message(queue="q")
    await accept(storage, first, second)
    (claim,) = await take(storage)
    await storage.settle([settle(claim, an_attempt(status=500), retry_after_ms=1000, next_id=next_id)])
    assert await take(storage, now=NOW + 1004) == []
    (claim,) = await take(storage, now=NOW + 1005)
    assert (claim.message, claim.retried) == (first, 1)
    assert await take(storage, now=NOW + 1005) == []
    await fail(storage, claim, now=NOW + 1005)
    assert len(await graves(storage)) == 1
    assert messages_of(await take(storage, now=NOW + 1010)) == [second]


async def test_a_delayed_message_blocks_its_lane(storage: Storage) -> None:
    late, early = a_message(queue="q", not_before=NOW + 5000), a_message(queue="q")
    await accept(storage, late, early)
    claimed = await storage.claim(TERMS, now=NOW)
    assert (list(claimed.claims), claimed.next_due_at) == ([], NOW + 5000)
    (claim,) = await take(storage, now=NOW + 5000)
    assert claim.message == late
    await deliver(storage, claim, now=NOW + 5000)
    assert messages_of(await take(storage, now=NOW + 5000)) == [early]


async def test_a_queue_with_two_lanes_hands_out_two(storage: Storage) -> None:
    await change(storage, Configure(parallelism=2))
    late, first, second = a_message(queue="q", not_before=LATER), a_message(queue="q"), a_message(queue="q")
    await accept(storage, late, first, second)
    (claim,) = await take(storage)
    assert claim.message == first
    await deliver(storage, claim)
    assert messages_of(await take(storage)) == [second]


async def test_a_paused_queue_accepts_and_holds_and_resumes_at_once(storage: Storage) -> None:
    await change(storage, Configure(paused=True))
    woken: list[int] = []
    storage.on_work(woken.append)
    message = a_message(queue="q")
    await accept(storage, message)
    claimed = await storage.claim(TERMS, now=LATER)
    assert (list(claimed.claims), claimed.next_due_at, woken) == ([], None, [])
    assert (await queue(storage)).paused
    await change(storage, Configure(paused=False), now=NOW + 7)
    assert woken == [NOW + 7]
    assert messages_of(await take(storage, now=NOW + 7)) == [message]
    assert not (await queue(storage)).paused


async def test_pausing_holds_what_has_a_lane_and_was_never_attempted(storage: Storage) -> None:
    await change(storage, Configure(parallelism=2))
    late, behind = a_message(queue="q", not_before=NOW + 10), a_message(queue="q", flow=ONE_AT_A_TIME)
    await change_key(storage, Configure(paused=True))
    await accept(storage, late, behind)
    assert await take(storage) == []
    assert (await queue(storage)).held == 2
    await change(storage, Configure(paused=True))
    await change_key(storage, Configure(paused=False))
    assert (await queue(storage)).held == 0
    claimed = await storage.claim(TERMS, now=LATER)
    assert (list(claimed.claims), claimed.next_due_at) == ([], None)
    await change(storage, Configure(paused=False, parallelism=1))
    (claim,) = await take(storage, now=NOW + 10)
    assert claim.message == late
    await deliver(storage, claim, now=NOW + 10)
    assert messages_of(await take(storage, now=NOW + 10)) == [behind]


async def test_what_has_begun_goes_on_while_its_queue_is_paused(storage: Storage) -> None:
    message = a_message(queue="q")
    await accept(storage, message, a_message(queue="q"))
    (claim,) = await take(storage)
    await change(storage, Configure(paused=True))
    await storage.settle([settle(claim, an_attempt(status=500), retry_after_ms=0, next_id=next_id)])
    (claim,) = await take(storage, now=LATER)
    assert (claim.message, claim.retried) == (message, 1)
    await deliver(storage, claim, now=LATER)
    assert await take(storage, now=LATER) == []
    assert (await queue(storage)).held == 0


async def test_lowered_parallelism_holds_until_enough_have_finished(storage: Storage) -> None:
    await change(storage, Configure(parallelism=3))
    await accept(storage, *(a_message(queue="q") for _ in range(5)))
    claims = await take(storage)
    assert len(claims) == 3
    await change(storage, Configure(parallelism=1))
    await deliver(storage, *claims[:2])
    assert await take(storage) == []
    await deliver(storage, claims[2])
    assert len(await take(storage)) == 1


async def test_the_lag_is_what_is_not_finished(storage: Storage) -> None:
    await accept(storage, *(a_message(queue="q") for _ in range(4)), a_message(queue="other"))
    assert (await queue(storage)).members == 4
    (claim, _) = await take(storage)
    assert (await queue(storage)).members == 4
    await storage.settle([settle(claim, an_attempt(status=500), retry_after_ms=0, next_id=next_id)])
    assert (await queue(storage)).members == 4
    (claim,) = await take(storage, now=NOW + 5)
    await deliver(storage, claim)
    assert (await queue(storage)).members == 3
    assert len(await storage.cancel(TENANT, Selection(queues=("q",)), limit=None, now=NOW)) == 3
    assert (await queue(storage)).members == 0
    assert [gate.name for gate in await storage.queues(TENANT)] == ["other", "q"]


async def test_cancelling_the_head_lets_the_next_one_pass(storage: Storage) -> None:
    head, behind, last = (
        a_message(queue="q", not_before=NOW + 50),
        a_message(queue="q"),
        a_message(queue="q"),
    )
    await accept(storage, head, behind, last)
    assert await take(storage) == []
    woken: list[int] = []
    storage.on_work(woken.append)
    await storage.cancel(TENANT, Selection(message_ids=(head.id, behind.id)), limit=None, now=NOW)
    assert woken == [NOW]
    assert messages_of(await take(storage)) == [last]


async def test_a_lost_worker_keeps_the_lane_and_its_message_is_taken_again(storage: Storage) -> None:
    message = a_message(queue="q")
    await accept(storage, message, a_message(queue="q"))
    (late,) = await take(storage)
    (claim,) = await take(storage, now=NOW + LEASE_MS)
    assert (claim.message, claim.lost_leases) == (message, 1)
    assert (await queue(storage)).held == 1
    assert await deliver(storage, late) == [message.id]
    assert (await queue(storage)).held == 1
    assert await deliver(storage, claim) == []
    assert (await queue(storage)).held == 0


async def test_a_message_handed_back_unsent_keeps_its_lane(storage: Storage) -> None:
    message = a_message(queue="q")
    await accept(storage, message, a_message(queue="q"))
    (claim,) = await take(storage)
    await storage.settle([released(claim, now=NOW + 5)])
    (claim,) = await take(storage, now=NOW + 5)
    assert (claim.message, claim.retried) == (message, 0)


async def test_a_queue_is_made_by_its_first_message_and_keeps_what_was_configured(storage: Storage) -> None:
    await accept(storage, a_message(queue="q"), now=NOW + 3)
    fresh = await queue(storage)
    assert (fresh.parallelism, fresh.paused, fresh.created_at, fresh.updated_at) == (
        1,
        False,
        NOW + 3,
        NOW + 3,
    )
    await change(storage, Configure(parallelism=4, paused=True), now=NOW + 9)
    await accept(storage, a_message(queue="q"))
    gate = await queue(storage)
    assert (gate.parallelism, gate.paused, gate.created_at, gate.updated_at) == (4, True, NOW + 3, NOW + 9)


async def test_no_more_queues_are_made_than_allowed(storage: Storage) -> None:
    assert await change(storage, Configure(), name="a", limit=1)
    assert not await change(storage, Configure(), name="b", limit=1)
    assert await change(storage, Configure(parallelism=3), name="a", limit=1)
    assert [gate.name for gate in await storage.queues(TENANT)] == ["a"]


async def test_a_gate_that_is_not_there_is_only_made_when_asked_to(storage: Storage) -> None:
    assert not await change(storage, Configure(paused=False), create=False)
    assert await storage.queue(TENANT, "q") is None


async def test_deleting_a_queue_cancels_what_waits_and_ends_what_is_in_flight(storage: Storage) -> None:
    await change(storage, Configure(parallelism=2))
    flying, retrying, *waiting = [a_message(queue="q") for _ in range(1203)]
    await accept(storage, flying, retrying, *waiting)
    first, second = await take(storage)
    await storage.settle([settle(second, an_attempt(status=500), retry_after_ms=60_000, next_id=next_id)])
    assert await storage.delete_queue(TENANT, "q", now=NOW + 10)
    assert await storage.queue(TENANT, "q") is None
    assert await storage.queues(TENANT) == []
    assert (await states(storage, retrying))[-1] is State.CANCELED
    assert (await states(storage, waiting[-1]))[-1] is State.CANCELED
    assert (await storage.stats()).live == 1
    again = a_message(queue="q")
    await accept(storage, again)
    assert (await queue(storage)).members == 1
    await fail(storage, first)
    assert (await states(storage, flying))[-1] is State.CANCELED
    assert messages_of(await take(storage, now=LATER)) == [again]
    assert not await storage.delete_queue(TENANT, "nothing", now=NOW)


async def test_an_interrupted_deletion_is_finished_by_pruning(
    storage: Storage, reopen: Callable[[], Awaitable[Storage]]
) -> None:
    await accept(storage, *(a_message(queue="q") for _ in range(1500)))
    deleting = asyncio.create_task(storage.delete_queue(TENANT, "q", now=NOW))
    while await storage.queue(TENANT, "q") is not None:
        await asyncio.sleep(0)
    deleting.cancel()
    await asyncio.wait([deleting])
    again = await reopen()
    retention = Retention(events_before=0, dead_letters_before=0)
    while await again.prune(retention, now=NOW, limit=400):
        assert await take(again, now=LATER) == []
    assert (await again.stats()).live == 0


# --- queues and callbacks


async def a_head_that_reports(storage: Storage, *callbacks: Callback) -> tuple[Message, Sequence[Message]]:
    """A queue whose head was delivered and has these callbacks to wait for: who is next, and the callbacks."""
    head = a_message(queue="q", callback=callbacks[0], failure_callback=(*callbacks, None)[1], max_retries=0)
    second = a_message(queue="q")
    await accept(storage, head, second)
    (claim,) = await take(storage)
    settlement = settle(claim, an_attempt(status=500 if len(callbacks) > 1 else 200), next_id=next_id)
    assert await storage.settle([settlement]) == []
    return second, settlement.publishes


async def test_a_queue_waits_for_the_callback_of_its_head(storage: Storage) -> None:
    second, (report,) = await a_head_that_reports(storage, Callback(url=URL, max_retries=1))
    assert (await queue(storage)).members == 2
    (claim,) = await take(storage, now=NOW + 5)
    assert claim.message == report
    assert await take(storage, now=NOW + 5) == []
    await storage.settle([settle(claim, an_attempt(status=500), retry_after_ms=1000, next_id=next_id)])
    assert await take(storage, now=NOW + 6) == []
    (claim,) = await take(storage, now=NOW + 1005)
    assert (claim.message, claim.retried) == (report, 1)
    await fail(storage, claim, now=NOW + 1005)
    assert messages_of(await take(storage, now=NOW + 1005)) == [second]
    assert (await queue(storage)).members == 1


async def test_a_queue_waits_for_callback_and_failure_callback(storage: Storage) -> None:
    second, reports = await a_head_that_reports(storage, Callback(url=URL), Callback(url=URL))
    claims = await take(storage, now=NOW + 5)
    assert {claim.message.id for claim in claims} == {report.id for report in reports}
    await deliver(storage, claims[0], now=NOW + 5)
    assert await take(storage, now=NOW + 5) == []
    await deliver(storage, claims[1], now=NOW + 5)
    assert messages_of(await take(storage, now=NOW + 5)) == [second]


async def test_callbacks_that_end_in_one_settlement_free_their_lane_once(storage: Storage) -> None:
    second, reports = await a_head_that_reports(storage, Callback(url=URL), Callback(url=URL))
    assert len(reports) == 2
    assert await deliver(storage, *await take(storage, now=NOW + 5), now=NOW + 5) == []
    assert messages_of(await take(storage, now=NOW + 5)) == [second]
    assert ((await queue(storage)).held, (await queue(storage)).members) == (1, 1)


async def test_a_message_cancelled_between_its_attempts_keeps_its_lane_for_the_callback_it_has(
    storage: Storage,
) -> None:
    head, second = a_message(queue="q", callback=Callback(url=URL)), a_message(queue="q")
    await accept(storage, head, second)
    (claim,) = await take(storage)
    await storage.settle([settle(claim, an_attempt(status=500), retry_after_ms=60_000, next_id=next_id)])
    assert await storage.cancel(TENANT, Selection(message_ids=(head.id,)), limit=None, now=NOW + 5)
    (report,) = await take(storage, now=NOW + 5)
    assert report.message.lane_of == head.id
    await deliver(storage, report, now=NOW + 5)
    assert messages_of(await take(storage, now=NOW + 5)) == [second]


async def test_cancelling_a_callback_that_waits_frees_the_lane_it_kept(storage: Storage) -> None:
    second, (report,) = await a_head_that_reports(storage, Callback(url=URL))
    assert await storage.cancel(TENANT, Selection(message_ids=(report.id,)), limit=None, now=NOW + 5)
    assert messages_of(await take(storage, now=NOW + 5)) == [second]


async def test_cancelling_a_callback_in_flight_frees_the_lane_when_it_has_ended(storage: Storage) -> None:
    second, (report,) = await a_head_that_reports(storage, Callback(url=URL))
    (claim,) = await take(storage, now=NOW + 5)
    assert await storage.cancel(TENANT, Selection(message_ids=(report.id,)), limit=None, now=NOW + 6)
    assert await take(storage, now=NOW + 6) == []
    await fail(storage, claim, now=NOW + 7)
    assert messages_of(await take(storage, now=NOW + 7)) == [second]


async def test_a_callback_whose_worker_was_lost_goes_on_keeping_the_lane(storage: Storage) -> None:
    second, (report,) = await a_head_that_reports(storage, Callback(url=URL))
    (ghost,) = await take(storage, now=NOW + 5)
    (claim,) = await take(storage, now=LATER)
    assert claim.message == report
    assert await deliver(storage, ghost, now=LATER) == [report.id]
    assert await take(storage, now=LATER) == []
    await deliver(storage, claim, now=LATER)
    assert messages_of(await take(storage, now=LATER)) == [second]


async def test_nobody_waits_for_the_callbacks_of_callbacks(storage: Storage) -> None:
    nesting = Callback(url=URL, callback=Callback(url=URL))
    second, (report,) = await a_head_that_reports(storage, nesting)
    await deliver(storage, *await take(storage, now=NOW + 5), now=NOW + 5)
    claims = await take(storage, now=NOW + 10)
    assert {claim.message.origin.source for claim in claims} == {report.id, None}
    assert second in messages_of(claims)


async def test_a_callback_sent_again_keeps_no_lane(storage: Storage) -> None:
    second, (report,) = await a_head_that_reports(storage, Callback(url=URL))
    await fail(storage, *await take(storage, now=NOW + 5), now=NOW + 5)
    (letter,) = await graves(storage)
    assert letter.message == report
    again = redrive(report, id=a_message_id(NOW + 6), now=NOW + 6, override=lambda message: message)
    await storage.redrive(TENANT, [(letter.id, again)], now=NOW + 6)
    third = a_message(queue="q", created_at=NOW + 6)
    await accept(storage, third, now=NOW + 6)
    claims = await take(storage, now=NOW + 6)
    assert {claim.message.id for claim in claims} == {second.id, again.id}
    await deliver(storage, *(claim for claim in claims if claim.message == again), now=NOW + 6)
    assert await take(storage, now=NOW + 6) == []


async def test_one_lane_waiting_for_a_callback_does_not_stop_the_other(storage: Storage) -> None:
    await change_key(storage, Configure(paused=True))
    second, _ = await a_head_that_reports(storage, Callback(url=URL, flow=ONE_AT_A_TIME))
    await change(storage, Configure(parallelism=2))
    third, fourth = a_message(queue="q"), a_message(queue="q")
    await accept(storage, third, fourth)
    for message in (second, third, fourth):
        (claim,) = await take(storage)
        assert claim.message == message
        await deliver(storage, claim)


async def test_a_callback_waits_at_its_key_and_the_queue_for_the_callback(storage: Storage) -> None:
    await change_key(storage, Configure(paused=True))
    second, (report,) = await a_head_that_reports(storage, Callback(url=URL, flow=TWO_A_SECOND))
    assert ((await key(storage)).gate.rate, (await key(storage, now=NOW + 5)).waiting) == (2, 1)
    assert await take(storage, now=NOW + 5) == []
    await change_key(storage, Configure(paused=False), now=NOW + 6)
    (claim,) = await take(storage, now=NOW + 6)
    assert claim.message == report
    assert await take(storage, now=NOW + 6) == []
    await deliver(storage, claim, now=NOW + 6)
    assert messages_of(await take(storage, now=NOW + 6)) == [second]
    assert (await key(storage, now=NOW + 6)).gate.members == 0


async def test_a_lane_is_kept_for_a_callback_across_a_restart(
    storage: Storage, reopen: Callable[[], Awaitable[Storage]]
) -> None:
    second, (report,) = await a_head_that_reports(storage, Callback(url=URL))
    again = await reopen()
    (claim,) = await take(again, now=NOW + 5)
    assert claim.message == report
    await deliver(again, claim, now=NOW + 5)
    assert messages_of(await take(again, now=NOW + 5)) == [second]


async def test_a_deleted_queue_is_gone_when_the_callbacks_of_its_messages_are(storage: Storage) -> None:
    second, (report,) = await a_head_that_reports(storage, Callback(url=URL))
    assert await storage.delete_queue(TENANT, "q", now=NOW + 5)
    assert (await states(storage, second))[-1] is State.CANCELED
    again = a_message(queue="q")
    await accept(storage, again, now=NOW + 5)
    claims = await take(storage, now=NOW + 5)
    assert {claim.message.id for claim in claims} == {report.id, again.id}
    assert await deliver(storage, *claims, now=NOW + 5) == []
    assert (await queue(storage)).members == 0
    assert (await storage.stats()).live == 0


async def test_a_deletion_that_waits_for_callbacks_keeps_no_other_from_being_finished(
    storage: Storage, reopen: Callable[[], Awaitable[Storage]]
) -> None:
    await a_head_that_reports(storage, Callback(url=URL))
    assert await storage.delete_queue(TENANT, "q", now=NOW + 5)
    await accept(storage, *(a_message(queue="q") for _ in range(1500)))
    deleting = asyncio.create_task(storage.delete_queue(TENANT, "q", now=NOW))
    while await storage.queue(TENANT, "q") is not None:
        await asyncio.sleep(0)
    deleting.cancel()
    await asyncio.wait([deleting])
    again = await reopen()
    retention = Retention(events_before=0, dead_letters_before=0)
    while await again.prune(retention, now=NOW, limit=400):
        pass
    assert (await again.stats()).live == 1


# --- flow control


async def test_a_key_exists_as_soon_as_its_message_was_accepted(storage: Storage) -> None:
    await accept(storage, a_message(flow=FlowControl(key="k", parallelism=3, rate=5, period_ms=60_000)))
    found = await key(storage)
    gate = found.gate
    assert (gate.parallelism, gate.rate, gate.period_ms, gate.paused) == (3, 5, 60_000, False)
    assert (gate.held, gate.members, found.waiting) == (0, 1, 1)


async def test_a_key_never_has_more_attempts_in_flight_than_its_parallelism(storage: Storage) -> None:
    messages = [a_message(flow=FlowControl(key="k", parallelism=2)) for _ in range(5)]
    await accept(storage, *messages)
    claims = await take(storage)
    assert messages_of(claims) == messages[:2]
    found = await key(storage)
    assert (found.gate.held, found.waiting) == (2, 3)
    assert await take(storage) == []
    await deliver(storage, claims[1])
    assert messages_of(await take(storage)) == [messages[2]]


async def test_a_retry_stands_in_line_again_when_it_is_due(storage: Storage) -> None:
    retrying, other = a_message(flow=ONE_AT_A_TIME), a_message(flow=ONE_AT_A_TIME)
    await accept(storage, retrying, other)
    (claim,) = await take(storage)
    await storage.settle([settle(claim, an_attempt(status=500), retry_after_ms=1000, next_id=next_id)])
    (second,) = await take(storage, now=NOW + 5)
    assert second.message == other
    assert (await storage.claim(TERMS, now=NOW + 2000)).claims == []
    await deliver(storage, second, now=NOW + 2000)
    (claim,) = await take(storage, now=NOW + 2000)
    assert (claim.message, claim.retried) == (retrying, 1)


async def test_no_window_has_more_starts_than_the_rate_and_the_next_begins_with_its_first(
    storage: Storage,
) -> None:
    await accept(storage, *(a_message(flow=TWO_A_SECOND) for _ in range(5)))
    claimed = await storage.claim(TERMS, now=NOW + 100)
    assert (len(claimed.claims), (await key(storage)).gate.window_at) == (2, NOW + 100)
    await deliver(storage, *claimed.claims, now=NOW + 100)
    claimed = await storage.claim(TERMS, now=NOW + 1099)
    assert (list(claimed.claims), claimed.next_due_at) == ([], NOW + 1100)
    assert len(await take(storage, now=NOW + 1150)) == 2
    gate = (await key(storage)).gate
    assert (gate.window_at, gate.window_count) == (NOW + 1150, 2)
    assert await take(storage, now=NOW + 2149) == []
    assert len(await take(storage, now=NOW + 2150)) == 1


async def test_a_retry_counts_as_a_start(storage: Storage) -> None:
    await accept(storage, a_message(flow=TWO_A_SECOND))
    for attempt in (1, 2):
        (claim,) = await take(storage, now=NOW + 10 * attempt)
        await storage.settle(
            [settle(claim, an_attempt(started_at=NOW, status=500), retry_after_ms=0, next_id=next_id)]
        )
    assert (await key(storage)).gate.window_count == 2
    claimed = await storage.claim(TERMS, now=NOW + 30)
    assert (list(claimed.claims), claimed.next_due_at) == ([], NOW + 1010)


async def test_limits_change_for_what_already_waits(storage: Storage) -> None:
    await accept(storage, *(a_message(flow=ONE_AT_A_TIME) for _ in range(4)))
    (claim,) = await take(storage)
    await accept(storage, a_message(flow=FlowControl(key="k", parallelism=3)))
    assert len(await take(storage)) == 2
    await accept(storage, a_message(flow=ONE_AT_A_TIME))
    await deliver(storage, claim)
    assert await take(storage) == []


async def test_a_delayed_message_does_not_stop_those_behind_it_at_a_key(storage: Storage) -> None:
    late, early = a_message(flow=ONE_AT_A_TIME, not_before=NOW + 9), a_message(flow=ONE_AT_A_TIME)
    await accept(storage, late, early)
    assert (await key(storage)).waiting == 1
    (claim,) = await take(storage)
    assert claim.message == early
    await deliver(storage, claim)
    assert (await storage.claim(TERMS, now=NOW)).next_due_at == NOW + 9
    assert messages_of(await take(storage, now=NOW + 9)) == [late]


async def test_a_paused_key_holds_first_attempts_and_retries_and_resumes_in_order(storage: Storage) -> None:
    messages = [a_message(flow=TWO_A_SECOND) for _ in range(3)]
    await accept(storage, *messages)
    first, second = await take(storage)
    await change_key(storage, Configure(paused=True))
    await storage.settle([settle(first, an_attempt(status=500), retry_after_ms=0, next_id=next_id)])
    await deliver(storage, second)
    claimed = await storage.claim(TERMS, now=LATER)
    assert (list(claimed.claims), claimed.next_due_at) == ([], None)
    await change_key(storage, Configure(paused=False), now=NOW + 500)
    assert (await storage.claim(TERMS, now=NOW + 500)).next_due_at == NOW + 1000
    assert messages_of(await take(storage, now=NOW + 1000)) == [messages[2], messages[0]]


async def test_pinned_limits_hold_against_messages_and_the_rate_can_be_reset(storage: Storage) -> None:
    await change_key(storage, Pin(parallelism=5, rate=1, period_ms=60_000))
    await accept(storage, *(a_message(flow=FlowControl(key="k", parallelism=9, rate=9)) for _ in range(3)))
    gate = (await key(storage)).gate
    assert (gate.parallelism, gate.rate, gate.period_ms) == (5, 1, 60_000)
    assert (gate.parallelism_pinned, gate.rate_pinned) == (True, True)
    assert len(await take(storage)) == 1
    await change_key(storage, ResetRate(), now=NOW + 5)
    assert (await key(storage)).gate.window_count == 0
    assert len(await take(storage, now=NOW + 5)) == 1
    assert await take(storage, now=NOW + 6) == []
    await change_key(storage, Unpin(parallelism=True, rate=True), now=NOW + 7)
    assert await take(storage, now=NOW + 7) == []
    await accept(storage, a_message(flow=FlowControl(key="k", parallelism=9, rate=9)), now=NOW + 8)
    assert len(await take(storage, now=NOW + 8)) == 2


async def test_a_lost_worker_gives_its_slot_back_once_and_the_new_attempt_asks_again(
    storage: Storage,
) -> None:
    message = a_message(flow=FlowControl(key="k", parallelism=1, rate=2, period_ms=10 * LEASE_MS))
    await accept(storage, message, a_message(flow=FlowControl(key="k")))
    (late,) = await take(storage)
    claimed = await storage.claim(TERMS, now=NOW + LEASE_MS)
    claims = claimed.claims or await take(storage, now=NOW + LEASE_MS)
    (claim,) = claims
    assert (claim.message, claim.lost_leases, claim.claim_no) == (message, 1, 2)
    gate = (await key(storage)).gate
    assert (gate.held, gate.window_count) == (1, 2)
    assert await deliver(storage, late) == [message.id]
    assert (await key(storage)).gate.held == 1
    event = (await happenings(storage, Selection(message_ids=(message.id,))))[-1]
    assert event.change is Change.STARTED
    assert event.error is not None
    await deliver(storage, claim)
    gate = (await key(storage)).gate
    assert (gate.held, gate.members) == (0, 1)
    assert await take(storage, now=NOW + 2 * LEASE_MS) == []


async def test_a_message_whose_worker_was_lost_stays_put_while_its_key_is_paused(storage: Storage) -> None:
    await accept(storage, a_message(flow=ONE_AT_A_TIME))
    (late,) = await take(storage)
    await change_key(storage, Configure(paused=True))
    assert await take(storage, now=NOW + LEASE_MS) == []
    assert (await key(storage)).gate.held == 0
    assert (await storage.claim(TERMS, now=LATER)).next_due_at is None
    assert await deliver(storage, late) == [late.message.id]
    await change_key(storage, Configure(paused=False))
    assert len(await take(storage, now=NOW + LEASE_MS)) == 1


async def test_a_canceled_message_whose_worker_was_lost_gives_back_what_it_held(storage: Storage) -> None:
    message = a_message(queue="q", flow=ONE_AT_A_TIME)
    await accept(storage, message)
    await take(storage)
    await storage.cancel(TENANT, EVERYTHING, limit=None, now=NOW)
    assert await take(storage, now=NOW + LEASE_MS) == []
    assert (await states(storage, message))[-1] is State.CANCELED
    assert ((await queue(storage)).held, (await queue(storage)).members) == (0, 0)
    gate = (await key(storage)).gate
    assert (gate.held, gate.members) == (0, 0)


async def test_an_attempt_handed_back_frees_its_slot_and_counts_as_a_start(storage: Storage) -> None:
    await accept(storage, a_message(flow=FlowControl(key="k", parallelism=1, rate=5, period_ms=60_000)))
    (claim,) = await take(storage)
    await storage.settle([released(claim, now=NOW + 1)])
    gate = (await key(storage)).gate
    assert (gate.held, gate.window_count, gate.members) == (0, 1, 1)
    (again,) = await take(storage, now=NOW + 1)
    assert (again.retried, again.lost_leases) == (0, 0)


async def test_keys_of_one_name_are_one_for_each_tenant(storage: Storage) -> None:
    mine = a_message(flow=ONE_AT_A_TIME)
    theirs = a_message(flow=ONE_AT_A_TIME, tenant=OTHER_TENANT)
    await accept(storage, mine, theirs)
    assert messages_of(await take(storage)) == [mine, theirs]
    assert (await key(storage)).gate.held == 1


async def test_keys_are_listed_by_name_and_found_by_part_of_it(storage: Storage) -> None:
    names = ["b-%_", "a key", "B"]
    await accept(storage, *(a_message(flow=FlowControl(key=name, rate=1)) for name in names))
    await accept(storage, a_message(flow=FlowControl(key="b", rate=1), tenant=OTHER_TENANT))

    async def listed(search: str, limit: int = 10) -> list[str | None]:
        found = await storage.flow_keys(TENANT, search=search, limit=limit, now=NOW)
        return [one.gate.name for one in found]

    assert await listed("") == ["B", "a key", "b-%_"]
    assert await listed("", 2) == ["B", "a key"]
    assert await listed("key") == ["a key"]
    assert await listed("%_") == ["b-%_"]
    assert await listed("b") == ["b-%_"]
    assert await listed("*") == []


async def test_an_unused_key_is_forgotten_after_an_hour_unless_somebody_set_it(storage: Storage) -> None:
    names = ["unused", "paused", "pinned", "waiting", "fresh"]
    for name in names:
        await accept(storage, a_message(flow=FlowControl(key=name, parallelism=1)))
    claims = await take(storage)
    await deliver(
        storage, *(claim for claim in claims if claim.message.flow and claim.message.flow.key != "waiting")
    )
    await change(storage, Configure(paused=True), kind=GateKind.FLOW, name="paused")
    await change(storage, Pin(parallelism=1), kind=GateKind.FLOW, name="pinned")
    await accept(storage, a_message(flow=FlowControl(key="fresh", parallelism=1)), now=NOW + 60_000)
    await storage.cancel(TENANT, Selection(flow_keys=("fresh",)), limit=None, now=NOW + 60_000)
    retention = Retention(events_before=0, dead_letters_before=0)
    due = NOW + KEY_LIFETIME_MS + 5
    assert await storage.prune(retention, now=NOW + KEY_LIFETIME_MS - 1, limit=100) == 0
    assert await storage.prune(retention, now=due, limit=100) == 1
    found = await storage.flow_keys(TENANT, search="", limit=10, now=due)
    assert [one.gate.name for one in found] == ["fresh", "paused", "pinned", "waiting"]


async def test_attempts_in_flight_are_counted_for_each_tenant(storage: Storage) -> None:
    await accept(storage, a_message(queue="q"), a_message(flow=ONE_AT_A_TIME), a_message())
    await accept(storage, a_message(tenant=OTHER_TENANT), a_message(not_before=LATER))
    assert await storage.in_flight(TENANT, now=NOW) == 0
    claims = await take(storage)
    assert len(claims) == 4
    assert await storage.in_flight(TENANT, now=NOW) == 3
    await deliver(storage, *claims)
    assert await storage.in_flight(TENANT, now=NOW) == 0


# --- both, and in general


async def test_the_head_of_a_queue_needs_the_permit_of_its_key_and_nobody_overtakes_it(
    storage: Storage,
) -> None:
    alone = a_message(flow=ONE_AT_A_TIME)
    head, behind = a_message(queue="q", flow=ONE_AT_A_TIME), a_message(queue="q")
    await accept(storage, alone)
    await accept(storage, head, behind)
    (claim,) = await take(storage)
    assert claim.message == alone
    assert await take(storage) == []
    await deliver(storage, claim)
    (claim,) = await take(storage)
    assert claim.message == head
    await storage.settle([settle(claim, an_attempt(status=500), retry_after_ms=100, next_id=next_id)])
    assert await take(storage, now=NOW + 50) == []
    (claim,) = await take(storage, now=NOW + 105)
    assert claim.message == head
    await deliver(storage, claim)
    assert messages_of(await take(storage, now=NOW + 105)) == [behind]


async def test_what_waits_at_a_gate_survives_a_restart(
    storage: Storage, reopen: Callable[[], Awaitable[Storage]]
) -> None:
    first, second = a_message(queue="q", flow=ONE_AT_A_TIME), a_message(queue="q")
    await accept(storage, first, second)
    await take(storage)
    before = (await queue(storage), await key(storage))
    again = await reopen()
    assert (await queue(again), await key(again)) == before
    (claim,) = await take(again, now=NOW + LEASE_MS) or await take(again, now=NOW + LEASE_MS)
    assert claim.message == first


async def test_repeating_a_publish_and_a_duplicate_count_nothing_twice(storage: Storage) -> None:
    message = a_message(flow=FlowControl(key="k", rate=1), dedup_key=b"d" * 16)
    await accept(storage, message)
    published = await accept(storage, message)
    assert published.receipts == [Receipt(message_id=message.id)]
    twin = await accept(storage, a_message(flow=FlowControl(key="k", rate=9), dedup_key=b"d" * 16))
    assert twin.receipts[0].deduplicated
    gate = (await key(storage)).gate
    assert (gate.members, gate.rate) == (1, 1)


async def test_a_claim_takes_no_more_than_its_limit_and_shares_it_fairly(storage: Storage) -> None:
    plain = [a_message() for _ in range(20)]
    keyed = [a_message(flow=FlowControl(key=name, parallelism=50)) for name in "ab" for _ in range(20)]
    await accept(storage, *plain, *keyed)
    claimed = await storage.claim(ClaimTerms(limit=8, lease_ms=LEASE_MS), now=NOW)
    by_key = [claim.message.flow.key if claim.message.flow else "" for claim in claimed.claims]
    assert sorted(by_key) == ["", "", "", "", "a", "a", "b", "b"]
    assert claimed.next_due_at == NOW
    taken: list[int] = [claim.message.id for claim in claimed.claims]
    for turn in range(60):
        claimed = await storage.claim(ClaimTerms(limit=1, lease_ms=LEASE_MS), now=NOW + 1 + turn // 3)
        taken += [claim.message.id for claim in claimed.claims]
    assert len(taken) == len(set(taken)) == 60


async def test_a_claim_reads_no_more_bytes_than_it_was_allowed(storage: Storage) -> None:
    await accept(storage, *(a_message(flow=FlowControl(key="k", rate=9), body=b"x" * 400) for _ in range(5)))
    await accept(storage, a_message(body=b"x" * 400))
    terms = ClaimTerms(limit=10, lease_ms=LEASE_MS, max_bytes=1000)
    assert len((await storage.claim(terms, now=NOW)).claims) == 3
    assert (await key(storage)).gate.window_count == 3
    assert len((await storage.claim(terms, now=NOW)).claims) == 3


async def test_concurrent_claims_never_exceed_a_limit(storage: Storage) -> None:
    await accept(storage, *(a_message(flow=FlowControl(key="k", parallelism=7)) for _ in range(50)))
    claimed = await asyncio.gather(
        *(storage.claim(ClaimTerms(limit=3, lease_ms=LEASE_MS), now=NOW) for _ in range(20))
    )
    assert sum(len(one.claims) for one in claimed) == 7


async def test_a_queue_of_thousands_drains_in_order(storage: Storage) -> None:
    messages = [a_message(queue="q", body=b"") for _ in range(2000)]
    await accept(storage, *messages)
    for message in messages:
        (claim,) = await take(storage)
        assert claim.message.id == message.id
        await deliver(storage, claim)
    assert (await queue(storage)).members == 0


async def test_redriven_and_scheduled_messages_pass_the_same_gates(storage: Storage) -> None:
    await accept(storage, a_message(queue="q", max_retries=0))
    await fail(storage, *await take(storage))
    (letter,) = await graves(storage)
    ahead, again = a_message(queue="q"), a_message(queue="q")
    await accept(storage, ahead)
    await storage.redrive(TENANT, [(letter.id, again)], now=NOW)
    (claim,) = await take(storage)
    assert claim.message == ahead
    await deliver(storage, claim)
    assert messages_of(await take(storage)) == [again]


# --- every interleaving


class Machine(RuleBasedStateMachine):
    """Messages with every mix of gates, workers that answer, hand back, or vanish, and settings that change.

    Whatever happens no limit is exceeded, every count is true, and in the end everybody was served.
    """

    backend: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.directory = tempfile.TemporaryDirectory()
        self.open: Callable[[], Awaitable[Storage]] = BACKENDS[self.backend](Path(self.directory.name))
        self.storage = self.wait(self.open())
        self.now = NOW
        self.living: dict[int, Message] = {}
        #: Order of acceptance of what has not begun, for the queue.
        self.begun: set[int] = set()
        #: Claims whose lease has not run out, and those that vanished workers still hold.
        self.claims: dict[int, tuple[Claim, int]] = {}
        self.stale: list[Claim] = []
        #: What the tenant may have in flight.
        self.limit: int | None = None
        tenant = Tenant(id=TENANT, user_id="t", current_key="a", next_key="b")
        self.wait(self.storage.put_tenant(tenant, now=self.now))

    def teardown(self) -> None:
        try:
            self.everybody_is_served()
        finally:
            self.wait(self.storage.close())
            self.runner.close()
            self.directory.cleanup()

    def wait(self, awaitable: Awaitable[T]) -> T:
        async def wait() -> T:
            return await awaitable

        return self.runner.run(wait())

    @rule(
        queued=st.booleans(),
        keyed=st.booleans(),
        delay=st.sampled_from([0, 0, 0, 500, LEASE_MS]),
        parallelism=st.sampled_from([None, 1, 2]),
        rate=st.sampled_from([None, 1, 3]),
        count=st.integers(1, 3),
        reporting=st.sampled_from([None, None, "plain", "keyed"]),
    )
    def publish(
        self,
        queued: bool,
        keyed: bool,
        delay: int,
        parallelism: int | None,
        rate: int | None,
        count: int,
        reporting: str | None,
    ) -> None:
        callback = Callback(url=URL, flow=FlowControl(key="k") if reporting == "keyed" else None)
        flow = FlowControl(key="k", parallelism=parallelism, rate=rate) if keyed else None
        messages = [
            a_message(
                created_at=self.now,
                not_before=self.now + delay,
                queue="q" if queued else None,
                flow=flow,
                callback=callback if reporting is not None else None,
                failure_callback=callback if reporting is not None else None,
                max_retries=1,
            )
            for _ in range(count)
        ]
        published = self.wait(
            self.storage.publish(messages, now=self.now, claim=ClaimTerms(limit=1, lease_ms=LEASE_MS))
        )
        assert all(c.message.flow is None and c.message.origin.queue is None for c in published.claims)
        self.living.update((message.id, message) for message in messages)
        self.hold(self.permitted(published.claims))

    @rule(limit=st.sampled_from([1, 2, 10]))
    def claim(self, limit: int) -> None:
        self.take(limit)

    def take(self, limit: int, *, after: Sequence[Settlement] = ()) -> None:
        queue = self.wait(self.storage.queue(TENANT, "q"))
        terms = ClaimTerms(limit=limit, lease_ms=LEASE_MS)
        claimed = self.wait(self.storage.claim(terms, now=self.now, after=after))
        assert list(claimed.refused) == []
        assert len(claimed.claims) <= limit
        # Callbacks that were published with it bring the limits of their keys.
        key = self.wait(self.storage.flow_key(TENANT, "k", now=self.now))
        self.lapse()
        self.hold(self.permitted(claimed.claims))
        keyed = [c for c in claimed.claims if c.message.flow is not None]
        if keyed:
            assert key is not None
            gate = key.gate
            assert not gate.paused
            assert gate.parallelism is None or len(self.flying("k")) <= gate.parallelism
            assert gate.rate is None or gate.window_count <= gate.rate
        new = [
            c.message.id for c in claimed.claims if c.message.origin.queue and c.message.id not in self.begun
        ]
        if new:
            assert queue is not None
            assert not queue.paused
            unfinished = self.begun & self.in_the_queue()
            assert queue.parallelism is not None
            assert len(unfinished) + len(new) <= queue.parallelism
        self.begun.update(c.message.id for c in claimed.claims)

    def permitted(self, claims: Sequence[Claim]) -> Sequence[Claim]:
        """Those that the limit of the tenant lets be attempted; who stays as he is is handed back."""
        if self.limit is None:
            return claims
        held = self.wait(self.storage.in_flight(TENANT, now=self.now))
        granted, staying = self.wait(ask_permits(self.storage, claims, now=self.now, sift=2))
        assert self.wait(self.storage.in_flight(TENANT, now=self.now)) <= max(held, self.limit)
        back = [released(claim, now=self.now, due_at=self.now + 200) for claim in staying]
        assert self.wait(self.storage.settle(back)) == []
        return granted

    @rule(limit=st.sampled_from([None, 1, 2, 3]))
    def limit_the_tenant(self, limit: int | None) -> None:
        self.limit = limit
        limits = TenantLimits(max_parallelism=limit)
        assert self.wait(self.storage.put_limits(TENANT, limits, now=self.now))

    def in_the_queue(self) -> set[int]:
        """Unfinished messages, and finished ones with unfinished callbacks."""
        unfinished = {m.id for m in self.living.values() if m.origin.queue is not None}
        return unfinished | {m.lane_of for m in self.living.values() if m.lane_of is not None}

    def hold(self, claims: Sequence[Claim]) -> None:
        for claim in claims:
            assert claim.message.id not in self.claims, "claimed twice"
            self.claims[claim.message.id] = (claim, self.now + LEASE_MS)

    def lapse(self) -> None:
        for id_, (claim, until) in list(self.claims.items()):
            if until <= self.now:
                del self.claims[id_]
                self.stale.append(claim)

    def flying(self, key: str) -> list[Claim]:
        return [
            c for c, _ in self.claims.values() if c.message.flow is not None and c.message.flow.key == key
        ]

    @rule(nth=st.integers(0, 9), outcome=st.sampled_from(["200", "500", "489", "back"]),
          successors=st.sampled_from([0, 1, 10]))  # fmt: skip
    def settle(self, nth: int, outcome: str, successors: int) -> None:
        if not self.claims:
            return
        id_ = sorted(self.claims)[nth % len(self.claims)]
        claim, until = self.claims[id_]
        if until <= self.now:
            return
        del self.claims[id_]
        if outcome == "back":
            settlement = released(claim, now=self.now)
        else:
            attempt = an_attempt(
                started_at=self.now, ended_at=self.now, status=int(outcome),
                headers=(("Upstash-NonRetryable-Error", "true"),),
            )  # fmt: skip
            settlement = settle(claim, attempt, retry_after_ms=300, next_id=next_id)
            if outcome != "500" or claim.retried:
                del self.living[id_]
        self.living.update((message.id, message) for message in settlement.publishes)
        if successors:
            self.take(successors, after=[settlement])
        else:
            assert self.wait(self.storage.settle([settlement])) == []

    @rule()
    def a_ghost_answers(self) -> None:
        for claim in self.stale:
            settlement = settle(claim, an_attempt(started_at=self.now), next_id=next_id)
            if self.wait(self.storage.settle([settlement])) == []:
                # Nobody had noticed yet that its lease ran out.
                self.living.pop(claim.message.id, None)
                self.living.update((message.id, message) for message in settlement.publishes)
        self.stale.clear()

    @rule(paused=st.sampled_from([None, True, False, False]), parallelism=st.sampled_from([None, 1, 2]))
    def configure(self, paused: bool | None, parallelism: int | None) -> None:
        what = Configure(paused=paused, parallelism=parallelism)
        self.wait(change(self.storage, what, now=self.now))

    @rule(what=st.sampled_from([Configure(paused=True), Configure(paused=False), Pin(parallelism=1), Pin(rate=2),
                                Unpin(parallelism=True, rate=True), ResetRate()]))  # fmt: skip
    def change_the_key(self, what: GateChange) -> None:
        self.wait(change_key(self.storage, what, now=self.now))

    @rule(nth=st.integers(0, 9))
    def cancel(self, nth: int) -> None:
        waiting = [id_ for id_ in sorted(self.living) if id_ not in self.claims and not self.ghostly(id_)]
        if waiting:
            id_ = waiting[nth % len(waiting)]
            selection = Selection(message_ids=(id_,))
            assert self.wait(self.storage.cancel(TENANT, selection, limit=None, now=self.now)) == [id_]
            del self.living[id_]

    def ghostly(self, id_: int) -> bool:
        return any(claim.message.id == id_ for claim in self.stale)

    @rule(ms=st.sampled_from([1, 300, 1000, LEASE_MS]))
    def time_passes(self, ms: int) -> None:
        self.now += ms

    @rule()
    def restart(self) -> None:
        self.wait(self.storage.close())
        self.storage = self.wait(self.open())

    @invariant()
    def the_counts_are_true(self) -> None:
        queue = self.wait(self.storage.queue(TENANT, "q"))
        assert (0 if queue is None else queue.members) == len(self.in_the_queue())
        key = self.wait(self.storage.flow_key(TENANT, "k", now=self.now))
        keyed = [m for m in self.living.values() if m.flow is not None]
        assert (0 if key is None else key.gate.members) == len(keyed)
        if key is not None:
            # A lease that ran out counts until somebody notices.
            unnoticed = [c for c in self.stale if c.message.flow is not None]
            assert len(self.flying("k")) <= key.gate.held <= len(self.flying("k")) + len(unnoticed)

    @invariant()
    def no_permit_is_lost_or_held_in_secret(self) -> None:
        if self.limit is None:
            return
        held = self.wait(self.storage.in_flight(TENANT, now=self.now))
        flying = [claim for claim, _ in self.claims.values()]
        # Who took over a lost lease without asking may have what came with it.
        unsure = [claim for claim in flying if claim.lost_leases and not claim.permit]
        sure = sum(claim.permit for claim in flying)
        assert sure <= held <= sure + len(unsure) + len(self.stale)

    def everybody_is_served(self) -> None:
        """From any state on: open the gates, answer whatever is handed out, and look when storage says to."""
        self.now += LEASE_MS
        self.claims.clear()
        self.wait(change(self.storage, Configure(paused=False), now=self.now))
        self.wait(change_key(self.storage, Configure(paused=False), now=self.now))
        in_order: list[int] = []
        while True:
            claimed = self.wait(self.storage.claim(ClaimTerms(limit=100, lease_ms=LEASE_MS), now=self.now))
            claims = self.permitted(claimed.claims)
            for claim in claims:
                if claim.message.origin.queue and claim.message.id not in self.begun:
                    in_order.append(claim.message.id)
                self.living.pop(claim.message.id, None)
            attempt = an_attempt(started_at=self.now, ended_at=self.now)
            settlements = [settle(c, attempt, next_id=next_id) for c in claims]
            assert self.wait(self.storage.settle(settlements)) == []
            self.living.update((one.id, one) for settled in settlements for one in settled.publishes)
            if claimed.claims:
                continue
            if claimed.next_due_at is None:
                break
            assert claimed.next_due_at > self.now or in_order or self.living
            self.now = max(self.now, claimed.next_due_at)
        assert self.living == {}
        assert self.wait(self.storage.stats()).live == 0
        assert self.wait(self.storage.in_flight(TENANT, now=self.now)) == 0
        assert self.wait(self.storage.count_rows("gated")) == 0


@pytest.mark.parametrize("backend", list(BACKENDS))
def test_no_interleaving_exceeds_a_limit_or_forgets_anybody(backend: str) -> None:
    run_state_machine_as_test(
        type("Machine", (Machine,), {"backend": backend}),
        settings=settings(
            max_examples=40,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


async def test_a_message_that_waits_at_its_key_while_its_callback_is_out_can_be_canceled(
    storage: Storage,
) -> None:
    message = a_message(queue="q", flow=ONE_AT_A_TIME, callback=Callback(url=URL))
    await accept(storage, message)
    (claim,) = await take(storage)
    attempt = an_attempt(started_at=NOW, status=500)
    assert await storage.settle([settle(claim, attempt, next_id=next_id)]) == []
    assert await storage.cancel(TENANT, Selection(message_ids=(message.id,)), limit=None, now=NOW) == [
        message.id
    ]
    assert (await queue(storage)).held == 1
    assert (await key(storage)).gate.members == 0
    (report,) = await take(storage, now=NOW + 10)
    assert report.message.origin.source == message.id
    assert await end(storage, [report], 200, NOW) == []
    gate = await queue(storage)
    assert (gate.held, gate.members) == (0, 0)
