"""History tells of a message in the order in which things can have happened, whatever instants calls are given."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence

import pytest
from msgspec.structs import replace

from relay.domain.delivery import Change, Claim, State
from relay.domain.event import Event
from relay.domain.message import Callback, FlowControl, Message
from relay.domain.selection import Selection
from storage.postgres import open_postgres
from storage.protocol import Storage
from tests import postgres_server
from tests.builders import NOW, TENANT, a_message
from tests.contract.steps import (
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

#: By how much calls differ whose instants were taken before they had to wait.
_WAITED_MS = 5_000

_FINAL = {Change.DELIVERED, Change.FAILED, Change.CANCELED_AFTER_ERROR, Change.CANCELED}


@pytest.fixture
async def three() -> AsyncIterator[Sequence[Storage]]:
    url = postgres_server.url()
    nodes = [await open_postgres(url) for _ in range(3)]
    yield nodes
    await asyncio.gather(*(node.close() for node in nodes))


def some_messages(chance: random.Random, *, now: int) -> list[Message]:
    """As the front door makes them: some moments before they are stored."""
    made_at = now - chance.randrange(3)
    kinds: list[dict[str, object]] = [
        {},
        {"queue": "q"},
        {"flow": FlowControl(key="k", parallelism=4)},
        {"flow": FlowControl(key="r", rate=5, period_ms=100)},
        {"not_before": made_at + chance.randrange(2_000)},
        {"callback": Callback(url="https://example.com/callback")},
    ]
    return [
        a_message(created_at=made_at, max_retries=1, retry_delay="0", **chance.choice(kinds))  # type: ignore[arg-type]
        for _ in range(chance.randrange(1, 4))
    ]


async def confuse(nodes: Sequence[Storage], *, seed: int) -> None:
    """Whatever can happen to messages, in any order, on any node, with instants taken some time before."""
    chance = random.Random(seed)
    claims: list[Claim] = []
    messages: list[Message] = []
    for turn in range(60):
        node = chance.choice(nodes)
        now = NOW + 100 * turn - chance.randrange(_WAITED_MS)
        match chance.randrange(6):
            case 0 | 1:
                fresh = some_messages(chance, now=now)
                messages += fresh
                terms = chance.choice([None, TERMS])
                claims += (await node.publish(fresh, now=now, claim=terms)).claims
            case 2 | 3:
                claims += await take(node, now=now)
            case 4:
                chance.shuffle(claims)
                some, claims = claims[:5], claims[5:]
                settle = chance.choice([deliver, fail])
                await settle(node, *some, now=now)
            case _ if messages:
                ids = (chance.choice(messages).id,)
                await node.cancel(TENANT, Selection(message_ids=ids), limit=None, now=now)
    await fail(nodes[0], *claims, now=NOW)
    for n in range(1_000):
        claims = list(await take(nodes[n % len(nodes)], now=LATER + n * LEASE_MS))
        await deliver(nodes[n % len(nodes)], *claims, now=LATER + n * LEASE_MS)
        if not (await nodes[0].stats()).live:
            return
    raise AssertionError("something never ends")


async def by_message(storage: Storage) -> dict[int, list[Event]]:
    told: dict[int, list[Event]] = {}
    for event in await happenings(storage, limit=100_000):
        told.setdefault(event.message.id, []).append(event)
    return told


def is_told_in_order(events: Sequence[Event]) -> bool:
    """Accepted, then each attempt and what came of it, then the end; a request to cancel is some time after the
    first."""
    road = [event for event in events if event.change is not Change.CANCEL_REQUESTED]
    road.sort(key=lambda event: (event.change in _FINAL, event.retried, event.change))
    instants = [event.at for event in road]
    return instants == sorted(instants) and all(event.at >= instants[0] for event in events)


@pytest.mark.parametrize("seed", range(4))
async def test_no_message_starts_before_it_came_or_ends_before_it_started(
    storage: Storage, seed: int
) -> None:
    await confuse([storage], seed=seed)
    told = await by_message(storage)
    assert len(told) > 20
    for events in told.values():
        # One process writes in the order in which things happen, too.
        assert events[0].change in (Change.CREATED, Change.STARTED_AT_ONCE)
        assert events[-1].change in _FINAL
        assert is_told_in_order(events), events


@pytest.mark.parametrize("seed", range(4))
async def test_no_message_starts_before_it_came_or_ends_before_it_started_whoever_does_it(
    three: Sequence[Storage], seed: int
) -> None:
    await confuse(three, seed=seed)
    told = await by_message(three[0])
    assert len(told) > 20
    assert [events for events in told.values() if not is_told_in_order(events)] == []


async def test_nothing_is_claimed_at_an_instant_before_the_one_it_was_accepted_at(storage: Storage) -> None:
    message = a_message(created_at=NOW - 10)
    await accept(storage, message, now=NOW)
    claimed = await storage.claim(TERMS, now=NOW - 5)
    assert (claimed.claims, claimed.next_due_at) == ([], NOW)
    assert [claim.message for claim in await take(storage, now=NOW)] == [message]


@pytest.mark.parametrize("change", [{"queue": "q"}, {"flow": FlowControl(key="k", parallelism=1)}])
async def test_nothing_passes_a_gate_at_an_instant_before_the_one_it_was_accepted_at(
    storage: Storage, change: dict[str, object]
) -> None:
    message = replace(a_message(**change), created_at=NOW - 10, not_before=NOW - 10)  # type: ignore[arg-type]
    await accept(storage, message, now=NOW)
    assert await take(storage, now=NOW - 5) == []
    assert [claim.message for claim in await take(storage, now=NOW)] == [message]


async def test_an_attempt_that_seems_to_end_before_its_claim_ends_with_it(storage: Storage) -> None:
    claims = await start(storage, a_message(max_retries=1, retry_delay="0"), now=NOW)
    await fail(storage, *claims, now=NOW - 1_000)
    assert (await storage.claim(TERMS, now=NOW - 500)).next_due_at == NOW
    await fail(storage, *await take(storage, now=NOW), now=NOW - 2_000)
    assert {event.at for event in await happenings(storage)} == {NOW}
    assert (await storage.stats()).live == 0


async def test_a_clock_that_was_set_back_by_hours_holds_nothing_up(storage: Storage) -> None:
    back = NOW - 3_600_000
    claims = await start(storage, a_message(max_retries=1, retry_delay="0"), now=NOW)
    await fail(storage, *claims, now=back)
    assert (await take(storage, now=back + 5))[0].retried == 1


async def test_a_cancellation_is_told_after_what_it_came_too_late_for(storage: Storage) -> None:
    waiting, flying = a_message(max_retries=1), a_message()
    await fail(storage, *await start(storage, waiting, now=NOW), now=NOW)
    (claim,) = await start(storage, flying, now=NOW + 2)
    selection = Selection(message_ids=(waiting.id, flying.id))
    assert len(await storage.cancel(TENANT, selection, limit=None, now=NOW - 9)) == 2
    await fail(storage, claim, now=NOW - 9)
    for message in (waiting, flying):
        told = await happenings(storage, Selection(message_ids=(message.id,)))
        assert [event.at for event in told] == sorted(event.at for event in told)
    assert (await states(storage, flying))[-2:] == [State.ERROR, State.CANCELED]
