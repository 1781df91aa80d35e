"""Accepting and withdrawing messages."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from relay.domain.delivery import Change, State
from relay.domain.message import Callback, FlowControl, Redaction, SignedBy
from relay.domain.selection import Selection
from storage.protocol import DEDUP_WINDOW_MS, ClaimTerms, Receipt, Storage
from tests.builders import NOW, OTHER_TENANT, TENANT, a_message, a_message_id
from tests.contract.steps import (
    EVERYTHING,
    LATER,
    LEASE_MS,
    TERMS,
    accept,
    deliver,
    fail,
    happenings,
    start,
    states,
    take,
)

KEY = b"k" * 16


async def test_an_accepted_message_reads_back_exactly_as_it_was_given(storage: Storage) -> None:
    plain = a_message(headers=(), body=b"", url="http://[not-an-address/" + "long" * 300)
    full = a_message(
        not_before=NOW + 5,
        url="https://user@Example.com:8443/päth?q=ü#f",
        method="PATCH",
        headers=(("X-A", "ä, b"), ("x-a", ""), ("X-Raw", "\udcff\udc80"), ("X-Nul", "a\tb")),
        body=bytes(range(256)),
        timeout_ms=1500,
        max_retries=0,
        retry_delay="pow(2, retried) * 1000",
        caller_ip="2001:db8::1",
        url_group="group",
        endpoint="one",
        schedule_id="scd_1",
        queue="q",
        source=a_message_id(),
        labels=("b", "a", "b", "ünï"),
        flow=FlowControl(key="key", parallelism=2, rate=3, period_ms=5000),
        callback=Callback(
            url="https://example.com/cb",
            headers=(("A", "\udc80"),),
            failure_callback=Callback(url="https://example.com/nested", max_retries=1),
        ),
        failure_callback=Callback(url="https://example.com/fcb", flow=FlowControl(key="other")),
        redaction=Redaction(body=True, header_names=("authorization",)),
        signed_by=SignedBy.BOTH,
        dedup_key=KEY,
    )
    signed = a_message(signed_by=SignedBy.STANDARD, not_before=NOW + 5)
    published = await accept(storage, plain, full, signed)
    assert published.receipts == [Receipt(message_id=message.id) for message in (plain, full, signed)]
    assert await storage.message(TENANT, plain.id) == plain
    assert await storage.message(TENANT, signed.id) == signed
    assert await storage.message(TENANT, full.id) == full
    assert [claim.message for claim in await take(storage, now=NOW + 5)] == [plain, signed, full]


async def test_what_was_accepted_survives_a_restart(
    storage: Storage, reopen: Callable[[], Awaitable[Storage]]
) -> None:
    due, later, running = a_message(), a_message(not_before=NOW + 1000), a_message(dedup_key=KEY)
    await start(storage, running)
    await accept(storage, due, later)
    again = await reopen()
    assert again.last_id == running.id
    assert [claim.message for claim in await take(again)] == [due]
    assert [claim.message for claim in await take(again, now=NOW + 1000)] == [later]
    assert await states(again, running) == [State.CREATED, State.ACTIVE]
    duplicate = await accept(again, a_message(dedup_key=KEY))
    assert duplicate.receipts == [Receipt(message_id=running.id, deduplicated=True)]
    assert (await again.stats()).live == 3


async def test_publishing_nothing_changes_nothing(storage: Storage) -> None:
    published = await storage.publish([], now=NOW, claim=TERMS)
    assert (list(published.receipts), list(published.claims)) == ([], [])
    assert (await storage.stats()).live == 0


async def test_due_messages_come_back_claimed_up_to_the_limit_and_are_not_due_again(
    storage: Storage,
) -> None:
    first, delayed, second, third = a_message(), a_message(not_before=NOW + 1), a_message(), a_message()
    published = await storage.publish(
        [first, delayed, second, third], now=NOW, claim=ClaimTerms(limit=2, lease_ms=LEASE_MS)
    )
    assert [claim.message for claim in published.claims] == [first, second]
    assert {
        (claim.claim_no, claim.claimed_at, claim.retried, claim.lost_leases) for claim in published.claims
    } == {(1, NOW, 0, 0)}
    assert [claim.message for claim in await take(storage)] == [third]
    assert [claim.message for claim in await take(storage, now=NOW + 1)] == [delayed]


async def test_history_begins_with_creation_and_says_when_a_delayed_message_is_due(storage: Storage) -> None:
    at_once, waiting, delayed = a_message(), a_message(), a_message(not_before=NOW + 7000)
    await start(storage, at_once)
    await accept(storage, waiting, delayed)
    events = await happenings(storage)
    assert [(event.message.id, event.change, event.at, event.next_at) for event in events] == [
        (at_once.id, Change.STARTED_AT_ONCE, NOW, None),
        (waiting.id, Change.CREATED, NOW, None),
        (delayed.id, Change.CREATED, NOW, NOW + 7000),
    ]
    assert [event.position for event in events] == sorted({event.position for event in events})


async def test_a_duplicate_inside_the_window_stores_nothing_and_names_the_earlier_message(
    storage: Storage,
) -> None:
    original, duplicate, other = (
        a_message(dedup_key=KEY),
        a_message(dedup_key=KEY),
        a_message(dedup_key=b"o" * 16),
    )
    await accept(storage, original)
    published = await storage.publish([duplicate, other], now=NOW + DEDUP_WINDOW_MS - 1, claim=TERMS)
    assert published.receipts == [
        Receipt(message_id=original.id, deduplicated=True),
        Receipt(message_id=other.id),
    ]
    assert [claim.message for claim in published.claims] == [other]
    assert await storage.message(TENANT, duplicate.id) is None
    assert [event.message.id for event in await happenings(storage)] == [original.id, other.id]
    assert (await storage.stats()).live == 2


async def test_two_messages_of_one_call_with_one_key_are_one_message(storage: Storage) -> None:
    first, second = a_message(dedup_key=KEY), a_message(dedup_key=KEY)
    published = await accept(storage, first, second)
    assert published.receipts == [
        Receipt(message_id=first.id),
        Receipt(message_id=first.id, deduplicated=True),
    ]
    assert (await storage.stats()).live == 1


async def test_of_many_simultaneous_publishes_with_one_key_exactly_one_is_stored(storage: Storage) -> None:
    messages = [a_message(dedup_key=KEY) for _ in range(50)]
    published = await asyncio.gather(*(accept(storage, message) for message in messages))
    receipts = [receipt for one in published for receipt in one.receipts]
    assert len({receipt.message_id for receipt in receipts}) == 1
    assert [receipt.deduplicated for receipt in receipts].count(False) == 1
    assert (await storage.stats()).live == 1


async def test_a_key_holds_until_its_window_ends_even_when_its_message_was_delivered(
    storage: Storage,
) -> None:
    original = a_message(dedup_key=KEY)
    await deliver(storage, *await start(storage, original))
    held = await accept(storage, a_message(dedup_key=KEY), now=NOW + DEDUP_WINDOW_MS - 1)
    assert held.receipts == [Receipt(message_id=original.id, deduplicated=True)]
    fresh = a_message(dedup_key=KEY)
    after = await accept(storage, fresh, now=NOW + DEDUP_WINDOW_MS)
    assert after.receipts == [Receipt(message_id=fresh.id)]
    again = await accept(storage, a_message(dedup_key=KEY), now=NOW + DEDUP_WINDOW_MS + 1)
    assert again.receipts == [Receipt(message_id=fresh.id, deduplicated=True)]


async def test_a_key_is_free_again_when_its_message_failed_for_good(storage: Storage) -> None:
    await fail(storage, *await start(storage, a_message(dedup_key=KEY, max_retries=0)))
    fresh = a_message(dedup_key=KEY)
    assert (await accept(storage, fresh)).receipts == [Receipt(message_id=fresh.id)]


async def test_a_key_is_kept_while_its_message_is_retried(storage: Storage) -> None:
    original = a_message(dedup_key=KEY, max_retries=1)
    await fail(storage, *await start(storage, original))
    published = await accept(storage, a_message(dedup_key=KEY))
    assert published.receipts == [Receipt(message_id=original.id, deduplicated=True)]


async def test_a_key_is_free_again_when_its_message_was_canceled(storage: Storage) -> None:
    await accept(storage, a_message(dedup_key=KEY))
    await storage.cancel(TENANT, EVERYTHING, limit=None, now=NOW)
    fresh = a_message(dedup_key=KEY)
    assert (await accept(storage, fresh)).receipts == [Receipt(message_id=fresh.id)]


async def test_a_key_is_free_again_when_its_message_was_canceled_in_flight_and_then_failed(
    storage: Storage,
) -> None:
    original = a_message(dedup_key=KEY)
    claims = await start(storage, original)
    await storage.cancel(TENANT, EVERYTHING, limit=None, now=NOW)
    held = await accept(storage, a_message(dedup_key=KEY))
    assert held.receipts == [Receipt(message_id=original.id, deduplicated=True)]
    await fail(storage, *claims)
    fresh = a_message(dedup_key=KEY)
    assert (await accept(storage, fresh)).receipts == [Receipt(message_id=fresh.id)]


async def test_the_end_of_an_old_message_does_not_free_the_key_of_its_successor(storage: Storage) -> None:
    old, successor = a_message(dedup_key=KEY, max_retries=0), a_message(dedup_key=KEY)
    claims = await start(storage, old)
    await accept(storage, successor, now=NOW + DEDUP_WINDOW_MS)
    await fail(storage, *claims, now=NOW + DEDUP_WINDOW_MS)
    published = await accept(storage, a_message(dedup_key=KEY), now=NOW + DEDUP_WINDOW_MS)
    assert published.receipts == [Receipt(message_id=successor.id, deduplicated=True)]


async def test_keys_of_different_tenants_do_not_meet(storage: Storage) -> None:
    mine, theirs = a_message(dedup_key=KEY), a_message(dedup_key=KEY, tenant=OTHER_TENANT)
    published = await accept(storage, mine, theirs)
    assert published.receipts == [Receipt(message_id=mine.id), Receipt(message_id=theirs.id)]


async def test_repeating_a_publish_stores_nothing_twice(storage: Storage) -> None:
    known, keyed, fresh = a_message(), a_message(dedup_key=KEY), a_message()
    await accept(storage, known, keyed)
    again = await storage.publish([known, keyed, fresh], now=NOW + 1, claim=TERMS)
    assert again.receipts == [
        Receipt(message_id=known.id),
        Receipt(message_id=keyed.id),
        Receipt(message_id=fresh.id),
    ]
    assert [claim.message for claim in again.claims] == [fresh]
    assert (await storage.stats()).live == 3
    assert await states(storage, known) == [State.CREATED]


async def test_a_message_that_cannot_be_stored_spoils_neither_its_neighbours_nor_the_call_of_others(
    storage: Storage,
) -> None:
    good = [a_message() for _ in range(20)]
    poison = a_message(url="https://example.com/\udc80")
    companion = a_message()
    outcomes = await asyncio.gather(
        *(accept(storage, message) for message in good[:10]),
        accept(storage, companion, poison),
        *(accept(storage, message) for message in good[10:]),
        return_exceptions=True,
    )
    assert [outcome for outcome in outcomes if isinstance(outcome, BaseException)] == [outcomes[10]]
    assert isinstance(outcomes[10], Exception)
    assert [claim.message.id for claim in await take(storage)] == [message.id for message in good]
    assert await storage.message(TENANT, companion.id) is None
    assert (await storage.stats()).live == 20


async def test_many_large_messages_at_once_are_all_accepted(storage: Storage) -> None:
    messages = [a_message(body=bytes([n]) * 300_000) for n in range(120)]
    await asyncio.gather(*(accept(storage, message) for message in messages))
    for message in (messages[0], messages[60], messages[119]):
        assert await storage.message(TENANT, message.id) == message
    assert (await storage.stats()).live == 120


async def test_a_waiting_message_is_canceled_at_once(storage: Storage) -> None:
    retrying, created = a_message(), a_message()
    await fail(storage, *await start(storage, retrying))
    await accept(storage, created)
    cancelled = await storage.cancel(TENANT, EVERYTHING, limit=None, now=NOW + 1)
    assert cancelled == [retrying.id, created.id]
    assert await take(storage, now=LATER) == []
    assert await states(storage, created) == [State.CREATED, State.CANCEL_REQUESTED, State.CANCELED]
    assert (await states(storage, retrying))[-3:] == [State.RETRY, State.CANCEL_REQUESTED, State.CANCELED]
    assert (await storage.stats()).live == 0
    assert await storage.cancel(TENANT, EVERYTHING, limit=None, now=NOW + 1) == []


async def test_a_message_canceled_in_flight_is_not_retried_when_it_fails(storage: Storage) -> None:
    message = a_message()
    claims = await start(storage, message)
    assert await storage.cancel(TENANT, EVERYTHING, limit=None, now=NOW) == [message.id]
    assert await fail(storage, *claims) == []
    assert await states(storage, message) == [
        State.CREATED,
        State.ACTIVE,
        State.CANCEL_REQUESTED,
        State.ERROR,
        State.CANCELED,
    ]
    assert await take(storage, now=LATER) == []
    assert (await storage.stats()).live == 0


async def test_a_message_canceled_in_flight_makes_no_dead_letter_when_it_fails_for_good(
    storage: Storage,
) -> None:
    claims = await start(storage, a_message(max_retries=0))
    await storage.cancel(TENANT, EVERYTHING, limit=None, now=NOW)
    await fail(storage, *claims)
    assert (await storage.stats()).dead_letters == 0


async def test_a_message_canceled_in_flight_that_succeeds_was_delivered(storage: Storage) -> None:
    message = a_message()
    claims = await start(storage, message)
    await storage.cancel(TENANT, EVERYTHING, limit=None, now=NOW)
    await deliver(storage, *claims)
    assert (await states(storage, message))[-2:] == [State.CANCEL_REQUESTED, State.DELIVERED]


async def test_a_second_cancellation_does_not_count_what_the_first_one_marked(storage: Storage) -> None:
    message = a_message()
    await start(storage, message)
    assert await storage.cancel(TENANT, EVERYTHING, limit=None, now=NOW) == [message.id]
    assert await storage.cancel(TENANT, EVERYTHING, limit=None, now=NOW) == []
    assert await storage.cancel(TENANT, Selection(message_ids=(message.id,)), limit=None, now=NOW) == []
    assert (await states(storage, message)).count(State.CANCEL_REQUESTED) == 1


async def test_racing_cancellations_count_each_message_once(storage: Storage) -> None:
    messages = [a_message() for _ in range(30)]
    await start(storage, *messages[:10])
    await accept(storage, *messages[10:])
    outcomes = await asyncio.gather(
        *(storage.cancel(TENANT, EVERYTHING, limit=None, now=NOW) for _ in range(4))
    )
    assert sorted(id_ for ids in outcomes for id_ in ids) == [message.id for message in messages]


async def test_a_delivered_or_unknown_message_cannot_be_canceled(storage: Storage) -> None:
    delivered = a_message()
    await deliver(storage, *await start(storage, delivered))
    selection = Selection(message_ids=(delivered.id, a_message_id()))
    assert await storage.cancel(TENANT, selection, limit=None, now=NOW) == []


async def test_given_message_ids_other_filters_do_not_count(storage: Storage) -> None:
    one, two = a_message(), a_message()
    await accept(storage, one, two)
    selection = Selection(message_ids=(two.id, two.id), urls=("https://elsewhere.example/",))
    assert await storage.cancel(TENANT, selection, limit=None, now=NOW) == [two.id]
    assert await storage.cancel(TENANT, Selection(message_ids=()), limit=None, now=NOW) == []
    assert [claim.message.id for claim in await take(storage)] == [one.id]


@pytest.mark.parametrize(
    "selection",
    [
        Selection(urls=("https://a.example:8443/p/q?x=1", "https://z.example/")),
        Selection(hosts=("A.Example",)),
        Selection(paths=("/p/q",)),
        Selection(labels=("blue", "unused")),
        Selection(url_groups=("group",)),
        Selection(queues=("queue",)),
        Selection(schedule_ids=("scd_1",)),
        Selection(flow_keys=("flow",)),
        Selection(caller_ips=("10.1.1.1",)),
        Selection(from_at=NOW, to_at=NOW),
        Selection(labels=("red", "blue"), queues=("queue",), from_at=NOW - 1),
    ],
    ids=lambda selection: ",".join(
        name for name in selection.__struct_fields__ if getattr(selection, name) not in ((), None)
    ),
)
async def test_each_filter_selects_what_is_canceled(storage: Storage, selection: Selection) -> None:
    meant = a_message(
        url="https://a.example:8443/p/q?x=1",
        labels=("red", "blue"),
        url_group="group",
        queue="queue",
        schedule_id="scd_1",
        flow=FlowControl(key="flow"),
        caller_ip="10.1.1.1",
    )
    others = [
        a_message(created_at=NOW - 1, url="https://b.example/p/q/r", labels=("green",)),
        a_message(created_at=NOW + 1, url="https://c.example/?/p/q", queue="Queue", url_group="groups"),
    ]
    await accept(storage, meant, *others)
    assert await storage.cancel(TENANT, selection, limit=None, now=NOW) == [meant.id]
    assert {claim.message.id for claim in await take(storage, now=LATER)} == {other.id for other in others}


async def test_cancellation_stops_at_its_limit_oldest_first(storage: Storage) -> None:
    messages = [a_message() for _ in range(5)]
    await accept(storage, *messages)
    assert await storage.cancel(TENANT, EVERYTHING, limit=2, now=NOW) == [messages[0].id, messages[1].id]
    ids = tuple(message.id for message in messages)
    unknown = tuple(a_message_id() for _ in range(600))
    selection = Selection(message_ids=(*ids, *unknown))
    assert await storage.cancel(TENANT, selection, limit=2, now=NOW) == [
        messages[2].id,
        messages[3].id,
    ]


async def test_without_a_limit_everything_selected_is_canceled_however_much(storage: Storage) -> None:
    messages = [a_message(queue="q", not_before=NOW + 1) for _ in range(1203)]
    spared = a_message()
    await accept(storage, spared, *messages)
    cancelled = await storage.cancel(TENANT, Selection(queues=("q",)), limit=None, now=NOW)
    assert cancelled == [message.id for message in messages]
    assert (await storage.stats()).live == 1
    many = tuple(message.id for message in messages)
    assert await storage.cancel(TENANT, Selection(message_ids=(*many, spared.id)), limit=None, now=NOW) == [
        spared.id
    ]


async def test_a_tenant_cannot_cancel_or_read_what_belongs_to_another(storage: Storage) -> None:
    theirs = a_message(tenant=OTHER_TENANT, labels=("l",))
    await accept(storage, theirs)
    for selection in (EVERYTHING, Selection(message_ids=(theirs.id,)), Selection(labels=("l",))):
        assert await storage.cancel(TENANT, selection, limit=None, now=NOW) == []
    assert await storage.message(TENANT, theirs.id) is None
    assert await states(storage, theirs) == [State.CREATED]
