"""Taking deliveries, and reporting what came of them."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from msgspec.structs import replace

from relay.domain.delivery import MAX_LOST_LEASES, Change, Claim, Lease, State, lost, released, settle
from relay.domain.message import Callback, MessageId, Redaction, SignedBy
from relay.domain.selection import Selection
from storage.protocol import ClaimTerms, Receipt, Stats, Storage
from tests.builders import NOW, OTHER_TENANT, TENANT, a_message, an_attempt, next_id
from tests.contract.steps import (
    EVERYTHING,
    LATER,
    LEASE_MS,
    TERMS,
    accept,
    deliver,
    fail,
    graves,
    happenings,
    start,
    states,
    take,
)


def lease(claim: Claim) -> Lease:
    return Lease(tenant=claim.message.tenant, message_id=claim.message.id, claim_no=claim.claim_no)


async def test_what_is_due_is_claimed_oldest_due_time_first(storage: Storage) -> None:
    late, early, middle = (
        a_message(not_before=NOW + 30),
        a_message(not_before=NOW + 10),
        a_message(not_before=NOW + 20),
    )
    future = a_message(not_before=NOW + 31)
    await accept(storage, late, early, middle, future)
    claimed = await storage.claim(TERMS, now=NOW + 30)
    assert [claim.message for claim in claimed.claims] == [early, middle, late]
    assert claimed.next_due_at == NOW + 31


async def test_a_message_is_not_due_a_millisecond_early(storage: Storage) -> None:
    await accept(storage, a_message(not_before=NOW + 10))
    claimed = await storage.claim(TERMS, now=NOW + 9)
    assert (list(claimed.claims), claimed.next_due_at) == ([], NOW + 10)


async def test_an_empty_storage_has_nothing_due_ever(storage: Storage) -> None:
    claimed = await storage.claim(TERMS, now=NOW)
    assert (list(claimed.claims), claimed.next_due_at) == ([], None)


async def test_no_more_is_claimed_than_was_asked_for_and_the_rest_is_announced(storage: Storage) -> None:
    await accept(storage, *(a_message() for _ in range(3)))
    claimed = await storage.claim(ClaimTerms(limit=2, lease_ms=LEASE_MS), now=NOW + 5)
    assert (len(claimed.claims), claimed.next_due_at) == (2, NOW)
    nothing = await storage.claim(ClaimTerms(limit=0, lease_ms=LEASE_MS), now=NOW + 5)
    assert (list(nothing.claims), nothing.next_due_at) == ([], NOW)


async def test_a_claim_ends_with_the_body_that_reaches_its_bound(storage: Storage) -> None:
    messages = [a_message(body=bytes(100)) for _ in range(4)]
    await accept(storage, *messages)
    for max_bytes, count in ((101, 2), (1, 1), (100, 1)):
        claimed = await storage.claim(
            ClaimTerms(limit=10, lease_ms=LEASE_MS, max_bytes=max_bytes), now=NOW + 5
        )
        assert [claim.message for claim in claimed.claims] == messages[:count]
        messages = messages[count:]
        assert claimed.next_due_at == (NOW if messages else NOW + 5 + LEASE_MS)


async def test_the_end_of_a_lease_is_announced_like_any_due_time(storage: Storage) -> None:
    await accept(storage, a_message(), a_message(not_before=NOW + LEASE_MS + 1))
    assert (await storage.claim(TERMS, now=NOW)).next_due_at == NOW + LEASE_MS


async def test_concurrent_claims_never_share_a_message(storage: Storage) -> None:
    messages = [a_message() for _ in range(100)]
    await accept(storage, *messages)
    claimed = await asyncio.gather(
        *(storage.claim(ClaimTerms(limit=7, lease_ms=LEASE_MS), now=NOW) for _ in range(20))
    )
    ids = [claim.message.id for one in claimed for claim in one.claims]
    assert sorted(ids) == [message.id for message in messages]


async def test_a_claim_is_in_the_history_when_it_is_handed_out(storage: Storage) -> None:
    message = a_message()
    await accept(storage, message)
    await take(storage, now=NOW + 3)
    (_, started) = await happenings(storage)
    assert (started.change, started.at, started.retried, started.error) == (Change.STARTED, NOW + 3, 0, None)


async def test_a_delivered_message_is_over_and_its_history_keeps_status_and_duration(
    storage: Storage,
) -> None:
    message = a_message()
    (claim,) = await start(storage, message)
    attempt = an_attempt(started_at=NOW, ended_at=NOW + 42, status=204, headers=(("A", "b"),), body=b"ok")
    assert await storage.settle([settle(claim, attempt, next_id=next_id)]) == []
    assert await states(storage, message) == [State.CREATED, State.ACTIVE, State.DELIVERED]
    event = (await happenings(storage))[-1]
    assert (event.at, event.status, event.duration_ms, event.error) == (NOW + 42, 204, 42, None)
    assert (event.response_headers, event.response_body) == ((), b"")
    claimed = await storage.claim(TERMS, now=LATER)
    assert (list(claimed.claims), claimed.next_due_at) == ([], None)
    assert (await storage.stats()).live == 0


async def test_a_failed_attempt_is_retried_when_it_is_due_again_and_not_before(storage: Storage) -> None:
    message = a_message()
    (claim,) = await start(storage, message)
    attempt = an_attempt(
        started_at=NOW, ended_at=NOW + 7, status=503, headers=(("X", "\udc80"),), body=b"\xff no", error=None
    )
    settlement = settle(claim, attempt, retry_after_ms=1000, next_id=next_id)
    await storage.settle([settlement])
    event = (await happenings(storage))[-1]
    assert event.change is Change.RETRIED
    assert (event.at, event.next_at, event.retried, event.duration_ms) == (NOW + 7, NOW + 1007, 0, 7)
    assert (event.status, event.response_headers, event.response_body) == (
        503,
        (("X", "\udc80"),),
        b"\xff no",
    )
    assert await take(storage, now=NOW + 1006) == []
    (again,) = await take(storage, now=NOW + 1007)
    assert (again.message, again.retried, again.claim_no, again.lost_leases) == (message, 1, 2, 0)


async def test_an_attempt_without_an_answer_keeps_its_reason(storage: Storage) -> None:
    claims = await start(storage, a_message())
    attempt = an_attempt(status=None, error="name \udc80 does not resolve")
    await storage.settle([settle(claims[0], attempt, next_id=next_id)])
    event = (await happenings(storage))[-1]
    assert (event.status, event.error) == (None, "name \\udc80 does not resolve")


async def test_the_last_failure_leaves_a_dead_letter_with_the_answer(storage: Storage) -> None:
    message = a_message(max_retries=1)
    await fail(storage, *await start(storage, message))
    (claim,) = await take(storage, now=LATER)
    attempt = an_attempt(
        started_at=LATER, ended_at=LATER + 9, status=404, headers=(("Content-Type", "t"),), body=b"\x00"
    )
    settlement = settle(claim, attempt, next_id=next_id)
    assert await storage.settle([settlement]) == []
    (letter,) = await graves(storage)
    assert (letter.message, letter.attempt, letter.retried) == (message, attempt, 1)
    assert letter.failed_at == LATER + 9
    assert letter.id == settlement.dead_letter_id
    assert (await states(storage, message))[-2:] == [State.ERROR, State.FAILED]
    stats = await storage.stats()
    assert (stats.live, stats.dead_letters) == (0, 1)


async def test_a_settlement_publishes_its_messages_in_the_same_commit(storage: Storage) -> None:
    source = a_message()
    (claim,) = await start(storage, source)
    callback = a_message(source=source.id, labels=("cb",))
    delayed = a_message(not_before=NOW + 100)
    settlement = settle(claim, an_attempt(), next_id=next_id)
    settlement = replace(settlement, publishes=(callback, delayed))
    await storage.settle([settlement])
    assert [one.message for one in await take(storage, now=settlement.at)] == [callback]
    assert [one.message for one in await take(storage, now=NOW + 100)] == [delayed]
    assert await states(storage, callback) == [State.CREATED, State.ACTIVE]


async def test_a_callback_is_stored_as_it_was_made_and_goes_the_way_of_every_message(
    storage: Storage,
) -> None:
    source = a_message(
        max_retries=0,
        redaction=Redaction(body=True),
        signed_by=SignedBy.STANDARD,
        failure_callback=Callback(
            url="https://example.com/failed",
            headers=(("X", "\udcff"),),
            failure_callback=Callback(url="https://example.com/worse"),
        ),
    )
    (claim,) = await start(storage, source)
    settlement = settle(claim, an_attempt(status=500, body=b"\xff"), next_id=next_id)
    await storage.settle([settlement])
    (taken,) = await take(storage, now=LATER)
    assert (taken.message,) == settlement.publishes
    assert taken.message.origin.source == source.id
    assert await storage.message(TENANT, taken.message.id) == taken.message
    await fail(storage, taken, now=LATER)
    (about_the_callback,) = await take(storage, now=LATER + 5)
    assert about_the_callback.message.request.url == "https://example.com/worse"
    assert [letter.message for letter in await graves(storage)] == [source, taken.message]


@pytest.mark.parametrize("status", [200, 500, 489])
async def test_a_settlement_that_is_repeated_calls_back_once(storage: Storage, status: int) -> None:
    callback = Callback(url="https://example.com/callback")
    (claim,) = await start(storage, a_message(callback=callback, failure_callback=callback))
    settlement = settle(
        claim, an_attempt(status=status, headers=(("Upstash-NonRetryable-Error", "true"),)), next_id=next_id
    )
    await asyncio.gather(*(storage.settle([settlement, settlement]) for _ in range(3)))
    again = settle(claim, an_attempt(status=status), next_id=next_id)
    assert await storage.settle([again]) == [claim.message.id]
    reports = [event.message.id for event in await happenings(storage) if event.message.origin.source]
    assert reports == [report.id for report in settlement.publishes]


async def test_a_failure_that_was_to_be_canceled_calls_nobody_back(storage: Storage) -> None:
    callback = Callback(url="https://example.com/callback")
    message = a_message(max_retries=0, callback=callback, failure_callback=callback)
    claims = await start(storage, message)
    assert await storage.cancel(TENANT, EVERYTHING, limit=None, now=NOW) == [message.id]
    assert await fail(storage, *claims) == []
    assert (await states(storage, message))[-1] is State.CANCELED
    assert (await take(storage, now=LATER), await graves(storage)) == ([], [])
    assert await storage.cancel(TENANT, EVERYTHING, limit=None, now=NOW) == []


async def test_a_message_that_waits_for_its_retry_is_canceled_apart_from_its_callbacks(
    storage: Storage,
) -> None:
    message = a_message(labels=("mine",), callback=Callback(url="https://example.com/callback"))
    await fail(storage, *await start(storage, message))
    cancelled = await storage.cancel(TENANT, Selection(labels=("mine",)), limit=None, now=NOW)
    assert cancelled == [message.id]
    (report,) = await take(storage, now=LATER)
    assert report.message.origin.source == message.id


async def test_a_settlement_under_a_lost_lease_is_refused_and_changes_nothing(storage: Storage) -> None:
    message = a_message(max_retries=0)
    (late,) = await start(storage, message)
    (current,) = await take(storage, now=NOW + LEASE_MS)
    before = await happenings(storage)
    follower = a_message()
    settlement = settle(late, an_attempt(status=500), next_id=next_id)
    settlement = replace(settlement, publishes=(follower,))
    assert await storage.settle([settlement]) == [message.id]
    assert await happenings(storage) == before
    assert await graves(storage) == []
    assert await storage.message(TENANT, follower.id) is None
    assert await deliver(storage, current) == []


@pytest.mark.parametrize("status", [200, 500, 489])
async def test_the_same_claim_is_settled_once(storage: Storage, status: int) -> None:
    message = a_message()
    (claim,) = await start(storage, message)
    settlement = settle(claim, an_attempt(status=status), next_id=next_id)
    assert await storage.settle([settlement, settlement]) == [message.id]
    assert await storage.settle([settlement]) == [message.id]
    assert len(await happenings(storage)) == 2


async def test_of_racing_settlements_of_one_claim_one_wins(storage: Storage) -> None:
    message = a_message()
    claims = await start(storage, message)
    refused = await asyncio.gather(*(deliver(storage, *claims) for _ in range(5)))
    assert sorted(map(len, refused)) == [0, 1, 1, 1, 1]
    assert await states(storage, message) == [State.CREATED, State.ACTIVE, State.DELIVERED]


async def test_good_settlements_go_through_beside_refused_ones(storage: Storage) -> None:
    messages = [a_message() for _ in range(150)]
    claims = await start(storage, *messages[:100])
    await accept(storage, *messages[100:])
    claims = [*claims, *await take(storage)]
    await deliver(storage, *claims[::3])
    refused = await asyncio.gather(*(deliver(storage, *claims[n : n + 50]) for n in (0, 50, 100)))
    assert [id_ for ids in refused for id_ in ids] == [claim.message.id for claim in claims[::3]]
    assert (await storage.stats()).live == 0


async def test_a_settlement_for_a_message_that_is_gone_is_refused(storage: Storage) -> None:
    message = a_message()
    claim = Claim(message=message, claim_no=1, claimed_at=NOW)
    assert await deliver(storage, claim) == [message.id]
    assert await happenings(storage) == []


async def test_one_settlement_that_cannot_be_written_does_not_hold_up_the_others(storage: Storage) -> None:
    good, bad = await start(storage, a_message(), a_message())
    twin = a_message()
    await accept(storage, a_message(id=twin.id, tenant=OTHER_TENANT))
    settlement = settle(bad, an_attempt(), next_id=next_id)
    settlement = replace(settlement, publishes=(twin,))
    outcomes = await asyncio.gather(
        storage.settle([settlement]), deliver(storage, good), return_exceptions=True
    )
    assert isinstance(outcomes[0], Exception)
    assert outcomes[1] == []
    assert await states(storage, bad.message) == [State.CREATED, State.ACTIVE]
    assert await deliver(storage, bad) == []


async def test_a_lease_that_ran_out_is_claimed_again_and_counted_as_lost(storage: Storage) -> None:
    message = a_message()
    (first,) = await start(storage, message)
    assert await take(storage, now=NOW + LEASE_MS - 1) == []
    (second,) = await take(storage, now=NOW + LEASE_MS)
    assert (second.message, second.claim_no, second.lost_leases, second.retried) == (message, 2, 1, 0)
    assert second.claim_no > first.claim_no
    event = (await happenings(storage))[-1]
    assert event.change is Change.STARTED
    assert event.error is not None
    assert "lost" in event.error


async def test_a_message_whose_workers_keep_dying_fails_after_the_fifth(storage: Storage) -> None:
    message = a_message(max_retries=0)
    (claim,) = await start(storage, message)
    now = NOW
    for count in range(1, MAX_LOST_LEASES + 1):
        assert lost(claim, now=now, next_id=next_id) is None
        now += LEASE_MS
        (claim,) = await take(storage, now=now)
        assert claim.lost_leases == count
    settlement = lost(claim, now=now, next_id=next_id)
    assert settlement is not None
    assert await storage.settle([settlement]) == []
    (letter,) = await graves(storage)
    assert letter.message == message
    assert (await storage.stats()).live == 0


async def test_a_worker_that_answers_ends_the_count_of_lost_leases(storage: Storage) -> None:
    await start(storage, a_message())
    claims = await take(storage, now=NOW + LEASE_MS)
    assert [claim.lost_leases for claim in claims] == [1]
    await fail(storage, *claims, now=NOW + LEASE_MS)
    assert [claim.lost_leases for claim in await take(storage, now=LATER)] == [0]


async def test_what_was_lost_survives_a_restart(
    storage: Storage, reopen: Callable[[], Awaitable[Storage]]
) -> None:
    message = a_message()
    (claim,) = await start(storage, message)
    again = await reopen()
    assert (await again.claim(TERMS, now=NOW)).next_due_at == NOW + LEASE_MS
    (taken,) = await take(again, now=NOW + LEASE_MS)
    assert (taken.message, taken.claim_no, taken.lost_leases) == (message, 2, 1)
    assert await deliver(again, claim) == [message.id]


async def test_a_released_claim_is_due_at_once_and_no_try_was_spent(storage: Storage) -> None:
    fresh, retrying = a_message(), a_message()
    (claim,) = await start(storage, retrying)
    await storage.settle([settle(claim, an_attempt(status=500), retry_after_ms=0, next_id=next_id)])
    await accept(storage, fresh)
    claims = await take(storage, now=NOW + 5)
    before = await happenings(storage)
    assert await storage.settle([released(claim, now=NOW + 6) for claim in claims]) == []
    assert await happenings(storage) == before
    assert (await storage.stats()).oldest_due_at == NOW + 6
    assert {
        (c.message.id, c.retried, c.claim_no, c.lost_leases) for c in await take(storage, now=NOW + 6)
    } == {
        (fresh.id, 0, 2, 0),
        (retrying.id, 1, 3, 0),
    }


async def test_handing_a_claim_back_unsent_forgives_no_lost_lease(storage: Storage) -> None:
    await start(storage, a_message())
    (claim,) = await take(storage, now=NOW + LEASE_MS)
    await storage.settle([released(claim, now=NOW + LEASE_MS)])
    assert [one.lost_leases for one in await take(storage, now=NOW + LEASE_MS)] == [1]


async def test_a_canceled_message_that_is_handed_back_unsent_is_never_sent(storage: Storage) -> None:
    message = a_message()
    (claim,) = await start(storage, message)
    await storage.cancel(TENANT, EVERYTHING, limit=None, now=NOW)
    assert await storage.settle([released(claim, now=NOW + 1)]) == []
    assert await take(storage, now=LATER) == []
    assert (await states(storage, message))[-1] is State.CANCELED
    assert (await storage.stats()).live == 0


async def test_a_canceled_message_whose_worker_was_lost_is_never_sent_again(storage: Storage) -> None:
    message, other = a_message(), a_message()
    await start(storage, message, other)
    await storage.cancel(TENANT, Selection(message_ids=(message.id,)), limit=None, now=NOW)
    assert [claim.message for claim in await take(storage, now=NOW + LEASE_MS)] == [other]
    assert (await states(storage, message))[-2:] == [State.ERROR, State.CANCELED]
    assert (await storage.stats()).live == 1


async def test_a_renewed_lease_holds_longer(storage: Storage) -> None:
    (claim,) = await start(storage, a_message())
    assert await storage.renew([lease(claim)], until=NOW + 3 * LEASE_MS) == []
    claimed = await storage.claim(TERMS, now=NOW + 3 * LEASE_MS - 1)
    assert (list(claimed.claims), claimed.next_due_at) == ([], NOW + 3 * LEASE_MS)
    assert len(await take(storage, now=NOW + 3 * LEASE_MS)) == 1


async def test_renewing_tells_which_leases_are_no_longer_held(storage: Storage) -> None:
    held, canceled, settled, lost_one = await start(storage, *(a_message() for _ in range(4)))
    await deliver(storage, settled)
    await storage.renew([lease(one) for one in (held, canceled)], until=NOW + 2 * LEASE_MS)
    await take(storage, now=NOW + LEASE_MS)
    await storage.cancel(TENANT, Selection(message_ids=(canceled.message.id,)), limit=None, now=NOW)
    stranger = Claim(message=a_message(), claim_no=1, claimed_at=NOW)
    leases = [lease(one) for one in (held, settled, canceled, lost_one, stranger)]
    assert await storage.renew(leases, until=NOW + 9 * LEASE_MS) == [
        settled.message.id,
        lost_one.message.id,
        stranger.message.id,
    ]
    assert [one.message.id for one in await take(storage, now=NOW + 9 * LEASE_MS - 1)] == [
        lost_one.message.id
    ]


async def test_a_waiting_delivery_has_no_lease_to_renew(storage: Storage) -> None:
    message = a_message()
    (claim,) = await start(storage, message)
    await fail(storage, claim)
    assert await storage.renew([lease(claim)], until=LATER) == [message.id]


async def test_the_worker_is_woken_when_something_nobody_holds_becomes_due(storage: Storage) -> None:
    woken: list[int] = []
    storage.on_work(woken.append)
    (claim,) = await start(storage, a_message())
    await storage.ping()
    assert woken == []
    await accept(storage, a_message(not_before=NOW + 50), a_message(not_before=NOW + 40))
    assert woken == [NOW + 40]
    await storage.settle([settle(claim, an_attempt(status=500), retry_after_ms=70, next_id=next_id)])
    assert woken == [NOW + 40, NOW + 75]
    (claim,) = await take(storage, now=NOW + 40)
    await storage.settle([released(claim, now=NOW + 41)])
    assert woken[2:] == [NOW + 41]


async def test_claims_whose_caller_has_gone_are_handed_back(storage: Storage) -> None:
    message = a_message()
    woken = asyncio.Event()
    storage.on_work(lambda due_at: woken.set())
    caller = asyncio.create_task(storage.publish([message], now=NOW, claim=TERMS))
    await asyncio.sleep(0)
    caller.cancel()
    await asyncio.wait([caller])
    assert caller.cancelled()
    async with asyncio.timeout(10):
        await woken.wait()
    (claim,) = await take(storage)
    assert (claim.message, claim.lost_leases) == (message, 0)


async def test_stats_tell_depths_and_the_longest_wait(storage: Storage) -> None:
    assert await storage.stats() == Stats(live=0, dead_letters=0, oldest_due_at=None)
    await start(storage, a_message(created_at=NOW - 1000))
    await accept(storage, a_message(not_before=NOW + 5), a_message(not_before=NOW + 3))
    stats = await storage.stats()
    assert (stats.live, stats.dead_letters, stats.oldest_due_at) == (3, 0, NOW + 3)


async def test_depths_are_right_again_after_a_restart(
    storage: Storage, reopen: Callable[[], Awaitable[Storage]]
) -> None:
    await fail(storage, *await start(storage, a_message(max_retries=0)))
    await accept(storage, a_message(), a_message())
    stats = await storage.stats()
    assert (stats.live, stats.dead_letters) == (2, 1)
    assert await (await reopen()).stats() == stats


async def test_ids_go_on_above_messages_and_dead_letters(
    storage: Storage, reopen: Callable[[], Awaitable[Storage]]
) -> None:
    message = a_message(max_retries=0)
    await fail(storage, *await start(storage, message), now=LATER)
    (letter,) = await graves(storage)
    assert letter.id > message.id
    assert (await reopen()).last_id == letter.id
    newer = a_message(id=MessageId(letter.id + 1))
    await accept(storage := await reopen(), newer)
    assert (await reopen()).last_id == newer.id


async def test_history_goes_on_above_what_is_stored_when_the_clock_was_set_back(
    storage: Storage, reopen: Callable[[], Awaitable[Storage]]
) -> None:
    await accept(storage, a_message())
    again = await reopen()
    past = NOW - 86_400_000
    late = a_message(created_at=past)
    assert (await accept(again, late, now=past)).receipts == [Receipt(message_id=late.id)]
    assert [event.at for event in await happenings(again)] == [NOW, past]
