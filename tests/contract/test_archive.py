"""What happened, what is left over, and what is forgotten."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from relay.domain.dead_letter import DeadLetterId
from relay.domain.delivery import Change, State, settle
from relay.domain.event import Event
from relay.domain.message import FlowControl, Message
from relay.domain.selection import Order, Selection
from storage.protocol import DEDUP_WINDOW_MS, Receipt, Retention, Storage
from tests.builders import NOW, OTHER_TENANT, TENANT, a_message, a_message_id, an_attempt, next_id
from tests.contract.steps import (
    EVERYTHING,
    LATER,
    accept,
    bury,
    deliver,
    fail,
    graves,
    happenings,
    start,
    states,
    take,
)

DAY_MS = 86_400_000


def name_of(selection: Selection) -> str:
    fields = selection.__struct_fields__
    return ",".join(name for name in fields if getattr(selection, name) not in ((), None))


def a_described_message(*, max_retries: int = 3) -> Message:
    """The one that every filter below means."""
    return a_message(
        url="https://a.example:8443/p/q?x=1",
        labels=("red", "blue"),
        url_group="group",
        queue="queue",
        schedule_id="scd_1",
        flow=FlowControl(key="flow"),
        caller_ip="10.1.1.1",
        max_retries=max_retries,
    )


FILTERS = [
    Selection(urls=("https://a.example:8443/p/q?x=1", "https://z.example/")),
    Selection(hosts=("A.Example",)),
    Selection(paths=("/p/q",)),
    Selection(labels=("blue", "unused")),
    Selection(url_groups=("group",)),
    Selection(queues=("queue", "none")),
    Selection(schedule_ids=("scd_1",)),
    Selection(flow_keys=("flow",)),
    Selection(caller_ips=("10.1.1.1",)),
    Selection(labels=("red", "blue"), queues=("queue",), hosts=("a.example",)),
]


@pytest.mark.parametrize("selection", FILTERS, ids=name_of)
async def test_each_filter_of_the_message_selects_history(storage: Storage, selection: Selection) -> None:
    meant = a_described_message()
    await start(storage, a_message(url="https://b.example/p/q/r", labels=("green",)), meant)
    await accept(storage, a_message(url="https://c.example/?/p/q", queue="Queue", url_group="groups"))
    assert [event.message for event in await happenings(storage, selection)] == [meant, meant]


@pytest.mark.parametrize("selection", FILTERS, ids=name_of)
async def test_each_filter_of_the_message_selects_dead_letters(
    storage: Storage, selection: Selection
) -> None:
    letter = await bury(storage, a_described_message(max_retries=0))
    await bury(storage, a_message(url="https://b.example/p/q/r", labels=("green",), max_retries=0))
    await bury(storage, a_message(url="https://c.example/?/p/q", queue="Queue", max_retries=0))
    assert await graves(storage, selection) == [letter]


async def test_a_filter_that_most_messages_pass_still_selects_exactly_those(storage: Storage) -> None:
    messages = [a_message(labels=("common",), queue="q") for _ in range(1100)]
    other = a_message(labels=("rare",))
    await accept(storage, *messages[:550], other, *messages[550:])
    newest = await happenings(storage, Selection(labels=("common",)), order=Order.LATEST_FIRST, limit=2)
    assert [event.message.id for event in newest] == [messages[-1].id, messages[-2].id]
    assert len(await happenings(storage, Selection(queues=("q",)), limit=2000)) == 1100
    both = await happenings(storage, Selection(labels=("common", "rare")), limit=2000)
    assert len(both) == 1101
    assert [event.message.id for event in await happenings(storage, Selection(labels=("rare",)))] == [
        other.id
    ]


async def test_history_is_selected_by_message(storage: Storage) -> None:
    one, two, three = a_message(), a_message(), a_message()
    await accept(storage, one, two, three)
    await deliver(storage, *await take(storage))
    selection = Selection(message_ids=(three.id, one.id, a_message_id()))
    found = [(event.message.id, event.change) for event in await happenings(storage, selection)]
    assert found == [
        (one.id, Change.CREATED),
        (three.id, Change.CREATED),
        (one.id, Change.STARTED),
        (three.id, Change.STARTED),
        (one.id, Change.DELIVERED),
        (three.id, Change.DELIVERED),
    ]
    assert await happenings(storage, Selection(message_ids=())) == []


@pytest.mark.parametrize(
    ("state", "changes"),
    [
        (State.CREATED, [Change.CREATED, Change.STARTED_AT_ONCE]),
        (State.ACTIVE, [Change.STARTED_AT_ONCE, Change.STARTED]),
        (State.ERROR, [Change.RETRIED, Change.FAILED]),
        (State.RETRY, [Change.RETRIED]),
        (State.FAILED, [Change.FAILED]),
        (State.DELIVERED, [Change.DELIVERED]),
        (State.CANCEL_REQUESTED, [Change.CANCELED]),
        (State.CANCELED, [Change.CANCELED]),
    ],
)
async def test_history_is_selected_by_state(storage: Storage, state: State, changes: list[Change]) -> None:
    canceled = a_message(not_before=LATER)
    await accept(storage, canceled)
    await storage.cancel(TENANT, EVERYTHING, limit=None, now=NOW)
    await accept(storage, a_message())
    claims = await start(storage, a_message(), a_message(max_retries=0))
    await fail(storage, *claims)
    await deliver(storage, *await take(storage))
    found = {event.change for event in await happenings(storage, Selection(states=(state,)))}
    assert found == set(changes)


async def test_states_are_alternatives(storage: Storage) -> None:
    await deliver(storage, *await start(storage, a_message()))
    await fail(storage, *await start(storage, a_message(max_retries=0)))
    selection = Selection(states=(State.DELIVERED, State.FAILED))
    assert [event.change for event in await happenings(storage, selection)] == [
        Change.DELIVERED,
        Change.FAILED,
    ]


async def test_history_and_dead_letters_are_selected_by_status(storage: Storage) -> None:
    await bury(storage, a_message(max_retries=0), status=500)
    wanted = await bury(storage, a_message(max_retries=0), status=404)
    await deliver(storage, *await start(storage, a_message()))
    assert await graves(storage, Selection(response_statuses=(404, 405))) == [wanted]
    events = await happenings(storage, Selection(response_statuses=(404, 200)))
    assert [event.status for event in events] == [404, 200]


async def test_an_attempt_without_an_answer_has_status_0(storage: Storage) -> None:
    await bury(storage, a_message(max_retries=0), status=500)
    claims = await start(storage, a_message(max_retries=0))
    await storage.settle([settle(claims[0], an_attempt(status=None, error="no answer"), next_id=next_id)])
    unanswered = Selection(response_statuses=(0,))
    assert [letter.message for letter in await graves(storage, unanswered)] == [claims[0].message]
    assert [event.error for event in await happenings(storage, unanswered)] == ["no answer"]


async def test_instants_beyond_all_time_are_no_obstacle(storage: Storage) -> None:
    letter = await bury(storage, a_message(max_retries=0))
    everything = Selection(from_at=-(10**15), to_at=10**15)
    assert await graves(storage, everything) == [letter]
    assert len(await happenings(storage, everything)) == 2
    nothing = Selection(from_at=10**15)
    assert (await graves(storage, nothing), await happenings(storage, nothing)) == ([], [])
    assert await happenings(storage, start=10**30) == []
    assert await storage.cancel(TENANT, nothing, limit=None, now=NOW) == []


async def test_instants_are_inclusive(storage: Storage) -> None:
    for at in range(NOW, NOW + 5):
        await accept(storage, a_message(created_at=at), now=at)
    events = await happenings(storage, Selection(from_at=NOW + 1, to_at=NOW + 3))
    assert [event.at for event in events] == [NOW + 1, NOW + 2, NOW + 3]


async def test_dead_letters_are_selected_by_the_time_of_failure(storage: Storage) -> None:
    letters = []
    for now in (NOW, NOW + 1000, NOW + 2000):
        claims = await start(storage, a_message(max_retries=0), now=NOW)
        await fail(storage, *claims, now=now)
        letters.append((await graves(storage))[-1])
    middle = letters[1].failed_at
    assert await graves(storage, Selection(from_at=middle, to_at=middle)) == [letters[1]]
    assert await graves(storage, Selection(from_at=middle + 1)) == [letters[2]]
    assert await graves(storage, Selection(to_at=middle - 1)) == [letters[0]]


async def test_an_event_told_late_is_found_at_its_own_time(storage: Storage) -> None:
    claims = await start(storage, a_message())
    await accept(storage, a_message(), now=NOW + 3_600_000)
    await deliver(storage, *claims, now=NOW)
    events = await happenings(storage, Selection(from_at=NOW, to_at=NOW + 10))
    assert [event.change for event in events] == [Change.STARTED_AT_ONCE, Change.DELIVERED]


async def test_a_tenant_with_a_retention_of_its_own_forgets_by_that(storage: Storage) -> None:
    ours = await bury(storage, a_message(max_retries=0))
    theirs = await bury(storage, a_message(max_retries=0, tenant=OTHER_TENANT))
    own = Retention(events_before=NOW, dead_letters_before=NOW)
    everybody = NOW + DAY_MS

    for own_of, stay in ((OTHER_TENANT, [theirs]), (TENANT, [])):
        retention = Retention(events_before=everybody, dead_letters_before=everybody, own={own_of: own})
        while await storage.prune(retention, now=NOW, limit=100):
            pass
        assert await graves(storage, tenant=OTHER_TENANT) == stay
        assert await graves(storage) == []
        assert (await storage.message(OTHER_TENANT, theirs.message.id) is not None) == bool(stay)
    assert await storage.message(TENANT, ours.message.id) is None


@pytest.mark.parametrize("order", list(Order))
async def test_pages_of_history_follow_each_other_without_gap_or_overlap(
    storage: Storage, order: Order
) -> None:
    await deliver(storage, *await start(storage, *(a_message() for _ in range(5))))
    everything = await happenings(storage, order=order)
    assert [event.position for event in everything] == sorted(
        (event.position for event in everything), reverse=order is Order.LATEST_FIRST
    )
    pages: list[Event] = []
    start_at: int | None = None
    while page := await happenings(storage, order=order, start=start_at, limit=4):
        pages += page[:3]
        if len(page) < 4:
            break
        start_at = page[3].position
    assert pages == everything
    assert len(everything) == 10


@pytest.mark.parametrize("order", Order)
@pytest.mark.parametrize(
    "selection",
    [
        Selection(urls=("https://example.com/sought",)),
        Selection(hosts=("example.com",), states=(State.CREATED,)),
        Selection(paths=("/sought",), from_at=NOW, to_at=NOW + 100),
        Selection(states=(State.DELIVERED,)),
        Selection(states=(State.FAILED,)),
        Selection(response_statuses=(500,)),
    ],
    ids=name_of,
)
async def test_a_search_that_walks_ends_early_and_goes_on_where_it_ended(
    storage: Storage, order: Order, selection: Selection
) -> None:
    for number in range(4):
        now = NOW + 10 * number
        await deliver(
            storage, *await start(storage, a_message(url="https://example.org/other"), now=now), now=now
        )
        await bury(storage, a_message(url="https://example.com/sought", max_retries=0), now=now)
    whole = await happenings(storage, selection, order=order)
    assert whole
    found: list[Event] = []
    stretches = 0
    at: int | None = None
    while True:
        history = await storage.events(TENANT, selection, order=order, start=at, limit=100, walk=3)
        assert len(history.events) <= 3
        found += history.events
        stretches += 1
        if history.next_position is None:
            break
        at = history.next_position
    assert found == whole
    assert stretches > 1


async def test_a_search_that_ends_early_may_have_found_nothing_yet(storage: Storage) -> None:
    await deliver(storage, *await start(storage, a_message(url="https://example.com/sought")))
    for _ in range(5):
        await accept(storage, a_message(url="https://example.com/other"))
    sought = Selection(urls=("https://example.com/sought",))
    history = await storage.events(TENANT, sought, order=Order.LATEST_FIRST, start=None, limit=10, walk=4)
    assert history.events == []
    assert history.next_position is not None
    rest = await storage.events(
        TENANT, sought, order=Order.LATEST_FIRST, start=history.next_position, limit=10, walk=4
    )
    assert len(rest.events) == 2
    assert rest.next_position is None


async def test_what_an_index_finds_is_found_however_little_may_be_walked(storage: Storage) -> None:
    message = a_message(labels=("sought",))
    await accept(storage, message)
    for _ in range(5):
        await accept(storage, a_message())
    for selection in (Selection(labels=("sought",)), Selection(message_ids=(message.id,))):
        history = await storage.events(
            TENANT, selection, order=Order.LATEST_FIRST, start=None, limit=10, walk=1
        )
        assert [event.message for event in history.events] == [message]
        assert history.next_position is None


@pytest.mark.parametrize("order", list(Order))
async def test_pages_of_dead_letters_follow_each_other(storage: Storage, order: Order) -> None:
    letters = [await bury(storage, a_message(max_retries=0)) for _ in range(4)]
    if order is Order.LATEST_FIRST:
        letters.reverse()
    assert await graves(storage, order=order, limit=2) == letters[:2]
    assert await graves(storage, order=order, start=letters[2].id, limit=5) == letters[2:]
    by_id = Selection(dead_letter_ids=tuple(letter.id for letter in letters), urls=("https://no.example/",))
    assert await graves(storage, by_id, order=order, limit=2) == letters[:2]
    assert await graves(storage, by_id, order=order, start=letters[3].id) == letters[3:]


async def test_given_dead_letter_ids_other_filters_do_not_count(storage: Storage) -> None:
    letters = [await bury(storage, a_message(max_retries=0)) for _ in range(3)]
    ids = (letters[2].id, 5, letters[0].id)
    assert await graves(storage, Selection(dead_letter_ids=ids, labels=("none",))) == [letters[0], letters[2]]
    assert await graves(storage, Selection(dead_letter_ids=())) == []


async def test_a_dead_letter_is_read_by_its_id(storage: Storage) -> None:
    letter = await bury(storage, a_message(max_retries=0, labels=("l",)))
    assert await storage.dead_letter(TENANT, letter.id) == letter
    assert await storage.dead_letter(TENANT, DeadLetterId(letter.id + 1)) is None


async def test_deleting_dead_letters_tells_which_existed(storage: Storage) -> None:
    one = await bury(storage, a_message(max_retries=0))
    two = await bury(storage, a_message(max_retries=0))
    unknown = DeadLetterId(7)
    deleted = await storage.delete_dead_letters(TENANT, [two.id, unknown, two.id])
    assert list(deleted) == [two.id]
    assert await storage.delete_dead_letters(TENANT, [two.id]) == []
    assert await graves(storage) == [one]
    assert (await storage.stats()).dead_letters == 1
    assert await storage.message(TENANT, two.message.id) == two.message
    assert await states(storage, two.message) != []


async def test_a_redriven_dead_letter_is_gone_and_its_new_message_is_due(storage: Storage) -> None:
    letter = await bury(storage, a_message(max_retries=0))
    woken: list[int] = []
    storage.on_work(woken.append)
    fresh, useless = a_message(), a_message()
    ids = await storage.redrive(TENANT, [(letter.id, fresh), (DeadLetterId(9), useless)], now=NOW + 5)
    assert ids == [fresh.id]
    assert woken == [NOW + 5]
    assert await graves(storage) == []
    assert [claim.message for claim in await take(storage, now=NOW + 5)] == [fresh]
    assert await storage.message(TENANT, useless.id) is None
    stats = await storage.stats()
    assert (stats.live, stats.dead_letters) == (1, 0)


async def test_of_racing_redrives_of_one_dead_letter_one_publishes(storage: Storage) -> None:
    letter = await bury(storage, a_message(max_retries=0))
    messages = [a_message() for _ in range(5)]
    outcomes = await asyncio.gather(
        *(storage.redrive(TENANT, [(letter.id, message)], now=NOW) for message in messages),
        storage.redrive(TENANT, [(letter.id, a_message()), (letter.id, a_message())], now=NOW),
    )
    assert sorted(map(len, outcomes)) == [0, 0, 0, 0, 0, 1]
    assert len(await take(storage)) == 1


async def test_dead_letters_survive_a_restart(
    storage: Storage, reopen: Callable[[], Awaitable[Storage]]
) -> None:
    letter = await bury(storage, a_message(max_retries=0, labels=("l",)))
    assert await graves(await reopen()) == [letter]


async def test_a_tenant_sees_and_touches_only_its_own(storage: Storage) -> None:
    theirs = a_message(tenant=OTHER_TENANT, labels=("l",), queue="q", max_retries=0)
    letter = await bury(storage, theirs)
    selections = (
        EVERYTHING,
        Selection(message_ids=(theirs.id,)),
        Selection(dead_letter_ids=(letter.id,)),
        Selection(labels=("l",)),
        Selection(queues=("q",)),
        Selection(states=(State.FAILED,)),
    )
    for selection in selections:
        assert await graves(storage, selection) == []
        assert await happenings(storage, selection) == []
    assert await storage.dead_letter(TENANT, letter.id) is None
    assert await storage.message(TENANT, theirs.id) is None
    assert await storage.delete_dead_letters(TENANT, [letter.id]) == []
    assert await storage.redrive(TENANT, [(letter.id, a_message())], now=NOW) == []
    assert await graves(storage, tenant=OTHER_TENANT) == [letter]
    assert len(await happenings(storage, tenant=OTHER_TENANT)) == 3


async def prune_all(storage: Storage, *, events: int, letters: int, now: int = NOW) -> int:
    retention = Retention(events_before=events, dead_letters_before=letters)
    total = 0
    while count := await storage.prune(retention, now=now, limit=100):
        total += count
    return total


async def test_nothing_young_enough_is_forgotten(storage: Storage) -> None:
    message = a_message()
    await deliver(storage, *await start(storage, message))
    await bury(storage, a_message(max_retries=0))
    assert await prune_all(storage, events=NOW, letters=NOW) == 0
    assert await storage.message(TENANT, message.id) == message


async def test_a_finished_message_is_forgotten_with_its_last_event(storage: Storage) -> None:
    message, labelled = a_message(), a_message(labels=("l",))
    await deliver(storage, *await start(storage, message, labelled))
    young = a_message(created_at=NOW + DAY_MS)
    await deliver(storage, *await start(storage, young, now=NOW + DAY_MS), now=NOW + DAY_MS)
    assert await prune_all(storage, events=NOW + DAY_MS, letters=NOW) == 6
    assert await storage.message(TENANT, message.id) is None
    assert [event.message for event in await happenings(storage)] == [young, young]
    assert await happenings(storage, Selection(labels=("l",))) == []


async def test_a_message_keeps_its_content_while_any_of_its_end_is_remembered(storage: Storage) -> None:
    message = a_message()
    claims = await start(storage, message)
    await deliver(storage, *claims, now=NOW + DAY_MS)
    assert await prune_all(storage, events=NOW + 1, letters=NOW) == 1
    assert await states(storage, message) == [State.DELIVERED]
    assert await storage.message(TENANT, message.id) == message


async def test_old_events_of_a_living_message_may_go_but_never_the_message(storage: Storage) -> None:
    waiting, running = a_message(not_before=NOW + 30 * DAY_MS), a_message()
    await accept(storage, waiting)
    claims = await start(storage, running)
    assert await prune_all(storage, events=NOW + DAY_MS, letters=NOW + DAY_MS) == 2
    assert await storage.message(TENANT, waiting.id) == waiting
    await deliver(storage, *claims, now=NOW + 2 * DAY_MS)
    assert await states(storage, running) == [State.DELIVERED]
    (claim,) = await take(storage, now=NOW + 30 * DAY_MS)
    assert claim.message == waiting


async def test_a_dead_letter_keeps_its_message_when_the_history_is_gone(storage: Storage) -> None:
    letter = await bury(storage, a_message(max_retries=0, labels=("l",)))
    assert await prune_all(storage, events=NOW + DAY_MS, letters=NOW) == 2
    assert await happenings(storage) == []
    assert await graves(storage, Selection(labels=("l",))) == [letter]
    assert await prune_all(storage, events=NOW, letters=NOW + DAY_MS) == 2
    assert await graves(storage) == []
    assert await storage.message(TENANT, letter.message.id) is None
    assert (await storage.stats()).dead_letters == 0


async def test_a_deleted_or_redriven_dead_letter_takes_its_forgotten_message_along(storage: Storage) -> None:
    deleted = await bury(storage, a_message(max_retries=0))
    redriven = await bury(storage, a_message(max_retries=0))
    await prune_all(storage, events=NOW + DAY_MS, letters=NOW)
    await storage.delete_dead_letters(TENANT, [deleted.id])
    await storage.redrive(TENANT, [(redriven.id, a_message())], now=NOW)
    assert await storage.message(TENANT, deleted.message.id) is None
    assert await storage.message(TENANT, redriven.message.id) is None


async def test_an_expired_dead_letter_leaves_its_message_to_its_history(storage: Storage) -> None:
    letter = await bury(storage, a_message(max_retries=0))
    assert await prune_all(storage, events=NOW, letters=NOW + DAY_MS) == 1
    assert await storage.message(TENANT, letter.message.id) == letter.message
    assert await prune_all(storage, events=NOW + DAY_MS, letters=NOW + DAY_MS) == 3
    assert await storage.message(TENANT, letter.message.id) is None


async def test_forgetting_is_bounded_and_reaches_every_tenant(storage: Storage) -> None:
    for tenant in (TENANT, OTHER_TENANT):
        claims = await start(storage, *(a_message(tenant=tenant) for _ in range(30)))
        await deliver(storage, *claims)
    retention = Retention(events_before=NOW + DAY_MS, dead_letters_before=NOW)
    assert 0 < await storage.prune(retention, now=NOW, limit=10) <= 20
    assert await prune_all(storage, events=NOW + DAY_MS, letters=NOW) > 0
    assert await happenings(storage) == []
    assert await happenings(storage, tenant=OTHER_TENANT) == []


async def test_spent_deduplication_keys_are_forgotten(storage: Storage) -> None:
    original = a_message(dedup_key=b"k" * 16)
    await accept(storage, original)
    retention = Retention(events_before=NOW, dead_letters_before=NOW)
    assert await storage.prune(retention, now=NOW + DEDUP_WINDOW_MS - 1, limit=100) == 0
    held = await accept(storage, a_message(dedup_key=b"k" * 16), now=NOW + DEDUP_WINDOW_MS - 1)
    assert held.receipts == [Receipt(message_id=original.id, deduplicated=True)]
    assert await storage.prune(retention, now=NOW + DEDUP_WINDOW_MS, limit=100) == 1
