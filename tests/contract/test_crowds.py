"""Crowds: what exceeds the share of its host waits out of the way, and loses nothing by it."""

from collections.abc import Sequence

from relay.domain.delivery import Claim, Lease, State, settle
from relay.domain.fairness import Crowd, Shares, crowd_of
from relay.domain.message import FlowControl, Message, MessageId, TenantId
from relay.domain.selection import Selection
from storage.protocol import ClaimTerms, Retention, Storage
from tests.builders import NOW, OTHER_TENANT, TENANT, a_message, an_attempt, next_id
from tests.contract.conftest import Opened
from tests.contract.steps import EVERYTHING, LATER, LEASE_MS, TERMS, accept, deliver, states, take

A = Crowd(tenant=TENANT, host="a.example")
B = Crowd(tenant=TENANT, host="b.example")
OTHER_A = Crowd(tenant=OTHER_TENANT, host="a.example")
ALL = 1_000


def to(crowd: Crowd, *, queue: str | None = None, flow: FlowControl | None = None) -> Message:
    return a_message(tenant=crowd.tenant, url=f"https://{crowd.host}/hook", queue=queue, flow=flow)


def several(crowd: Crowd, count: int) -> Sequence[Message]:
    return [to(crowd) for _ in range(count)]


def ids_of(claims: Sequence[Claim]) -> list[MessageId]:
    return [claim.message.id for claim in claims]


def leases_of(*claims: Claim) -> Sequence[Lease]:
    return [
        Lease(tenant=claim.message.tenant, message_id=claim.message.id, claim_no=claim.claim_no)
        for claim in claims
    ]


async def publish_aside(storage: Storage, *messages: Message, now: int = NOW) -> None:
    """Publish into the crowds."""
    terms = ClaimTerms(limit=ALL, lease_ms=LEASE_MS, aside={message.id for message in messages})
    published = await storage.publish(messages, now=now, claim=terms)
    assert not published.claims


async def take_shares(
    storage: Storage,
    left: dict[Crowd, int] | None = None,
    *,
    tenants: dict[TenantId, int] | None = None,
    limit: int = ALL,
    free: int = ALL,
    now: int = NOW,
) -> Sequence[Claim]:
    """Claim what is due, of the crowds as much as is left for each."""
    shares = Shares(free=free, crowds=left or {}, tenants=tenants or {})
    claimed = await storage.claim(ClaimTerms(limit=limit, lease_ms=LEASE_MS, shares=shares), now=now)
    return claimed.claims


async def test_what_was_set_aside_is_taken_as_the_shares_allow_oldest_first(storage: Storage) -> None:
    messages = several(A, 5)
    await publish_aside(storage, *messages)
    assert await take(storage) == []
    assert await take_shares(storage, {A: 0}) == []
    claims = [*await take_shares(storage, {A: 2}), *await take_shares(storage, {A: 1})]
    assert ids_of(claims) == [message.id for message in messages[:3]]
    assert {claim.claim_no for claim in claims} == {1}
    assert ids_of(await take_shares(storage)) == [message.id for message in messages[3:]]
    assert await take_shares(storage) == []


async def test_who_has_left_a_crowd_is_a_delivery_like_any_other(storage: Storage) -> None:
    failing, lost = several(A, 2)
    await publish_aside(storage, failing, lost)
    (first, second) = await take_shares(storage)
    attempt = an_attempt(started_at=NOW, status=500)
    assert await storage.settle([settle(first, attempt, next_id=next_id)]) == []
    again = await take(storage, now=LATER)
    assert {(claim.message.id, claim.retried, claim.lost_leases) for claim in again} == {
        (failing.id, 1, 0),
        (lost.id, 0, 1),
    }
    assert await deliver(storage, *again, now=LATER) == []
    assert await states(storage, failing) == [
        State.CREATED,
        State.ACTIVE,
        State.ERROR,
        State.RETRY,
        State.ACTIVE,
        State.DELIVERED,
    ]
    assert await deliver(storage, second) == [lost.id]


async def test_what_is_set_aside_takes_along_what_is_due_of_its_crowd_and_nothing_else(
    storage: Storage,
) -> None:
    mine = several(A, 3)
    others = [to(B), to(OTHER_A), to(A, queue="q"), to(A, flow=FlowControl(key="k"))]
    later = a_message(url="https://a.example/", not_before=NOW + 1)
    await accept(storage, mine[0])
    (claim,) = await take(storage)
    await accept(storage, *mine[1:], *others, later)
    aside = await storage.set_aside({A: leases_of(claim)}, now=NOW, limit=100)
    assert (aside.stayed, aside.sifted) == ([], 2)
    assert set(ids_of(await take(storage))) == {message.id for message in others}
    assert ids_of(await take(storage, now=NOW + 1)) == [later.id]
    claims = await take_shares(storage)
    assert sorted(ids_of(claims)) == [message.id for message in mine]
    # Giving back a lease is no attempt and no death.
    assert {(one.claim_no, one.retried, one.lost_leases) for one in claims} == {(2, 0, 0), (1, 0, 0)}


async def test_only_so_much_of_what_is_due_is_looked_at(storage: Storage) -> None:
    await accept(storage, to(A))
    (claim,) = await take(storage)
    await accept(storage, *several(B, 2), *several(A, 2))
    aside = await storage.set_aside({A: leases_of(claim)}, now=NOW, limit=3)
    assert (aside.stayed, aside.sifted) == ([], 1)
    assert [crowd_of(one.message) for one in await take(storage)] == [B, B, A]
    assert len(await take_shares(storage)) == 2


async def test_a_lease_that_is_not_held_stays_as_it_is(storage: Storage) -> None:
    await accept(storage, *several(A, 3))
    gone, canceled, held = await take(storage)
    assert await deliver(storage, gone) == []
    id = canceled.message.id
    assert await storage.cancel(TENANT, Selection(message_ids=(id,)), limit=None, now=NOW) == [id]
    aside = await storage.set_aside({A: leases_of(gone, canceled, held)}, now=NOW, limit=0)
    assert sorted(aside.stayed) == [gone.message.id, id]
    assert ids_of(await take_shares(storage)) == [held.message.id]
    assert await deliver(storage, canceled) == []


async def test_crowds_share_the_room_and_a_full_one_stands_in_nobodys_way(storage: Storage) -> None:
    await publish_aside(storage, *several(A, 50), *several(B, 50), *several(OTHER_A, 2))
    claims = await take_shares(storage, {A: 0}, limit=12)
    assert [crowd_of(claim.message) for claim in claims].count(OTHER_A) == 2
    assert [crowd_of(claim.message) for claim in claims].count(B) == 6
    claims = await take_shares(storage, tenants={TENANT: 0, OTHER_TENANT: 1})
    assert claims == []


async def test_a_claim_tells_whether_a_crowd_was_passed_over(storage: Storage) -> None:
    async def passed_over(left: int) -> bool:
        shares = Shares(free=10, crowds={A: left})
        terms = ClaimTerms(limit=10, lease_ms=LEASE_MS, shares=shares)
        return (await storage.claim(terms, now=NOW)).passed_over

    assert not await passed_over(0)
    await publish_aside(storage, *several(A, 2))
    assert await passed_over(0)
    assert not await passed_over(1)
    assert await passed_over(0)
    assert not await passed_over(1)
    assert not await passed_over(0)


async def test_a_crowd_may_take_half_of_a_claim_when_others_are_due(storage: Storage) -> None:
    await publish_aside(storage, *several(A, 20))
    await accept(storage, *several(B, 20))
    claims = await take_shares(storage, limit=10)
    assert [crowd_of(claim.message) for claim in claims].count(A) == 5
    assert len(claims) == 10


async def test_what_waits_in_a_crowd_can_be_canceled(storage: Storage) -> None:
    first, second, third = several(A, 3)
    await publish_aside(storage, first, second, third)
    assert await storage.cancel(TENANT, Selection(message_ids=(second.id,)), limit=None, now=NOW) == [
        second.id
    ]
    assert ids_of(await take_shares(storage)) == [first.id, third.id]
    await publish_aside(storage, to(A), to(A))
    assert len(await storage.cancel(TENANT, EVERYTHING, limit=None, now=NOW)) == 4
    assert await take_shares(storage) == []


async def test_a_crowd_outlives_its_process(opened: Opened) -> None:
    storage = await opened.open()
    messages = several(A, 3)
    await publish_aside(storage, *messages)
    storage = await opened.open()
    assert ids_of(await take_shares(storage)) == [message.id for message in messages]


async def test_duplicates_are_not_set_aside_and_repetitions_only_once(storage: Storage) -> None:
    message = a_message(url="https://a.example/", dedup_key=b"key")
    await publish_aside(storage, message)
    await publish_aside(storage, message)
    await publish_aside(storage, a_message(url="https://a.example/", dedup_key=b"key"))
    assert ids_of(await take_shares(storage)) == [message.id]


async def test_an_empty_crowd_is_forgotten_after_a_while(storage: Storage) -> None:
    await publish_aside(storage, to(A))
    nothing = Retention(events_before=0, dead_letters_before=0)
    assert await storage.prune(nothing, now=LATER, limit=100) == 0
    (claim,) = await take_shares(storage)
    assert await deliver(storage, claim) == []
    assert await storage.count_rows("gates") == 1
    assert await storage.prune(nothing, now=LATER, limit=100) == 1
    assert await storage.count_rows("gates") == 0


async def test_a_message_that_is_not_due_does_not_join_a_crowd(storage: Storage) -> None:
    message = a_message(url="https://a.example/", not_before=NOW + 5)
    await publish_aside(storage, message)
    assert await take_shares(storage) == []
    assert ids_of(await take(storage, now=NOW + 5)) == [message.id]
    assert TERMS.shares is None


async def test_a_key_gives_no_permit_to_a_message_whose_host_has_its_share(storage: Storage) -> None:
    key = FlowControl(key="k", rate=10)
    first, second, other = to(A, flow=key), to(A, flow=key), to(B, flow=key)
    await accept(storage, first, second, other)
    shares = Shares(free=10, crowds={A: 1})
    claimed = await storage.claim(ClaimTerms(limit=10, lease_ms=LEASE_MS, shares=shares), now=NOW)
    assert ids_of(claimed.claims) == [first.id, other.id]
    assert claimed.passed_over
    assert ids_of(await take_shares(storage)) == [second.id]


async def test_several_crowds_of_a_tenant_get_no_more_than_the_tenant_may(storage: Storage) -> None:
    await publish_aside(storage, *several(A, 5), *several(B, 5), *several(OTHER_A, 5))
    claims = await take_shares(storage, tenants={TENANT: 3})
    assert [claim.message.tenant for claim in claims].count(TENANT) == 3
    assert [claim.message.tenant for claim in claims].count(OTHER_TENANT) == 5


async def test_a_message_with_a_lane_of_its_queue_keeps_it_in_a_crowd(storage: Storage) -> None:
    first, second = to(A, queue="q"), to(A, queue="q")
    await accept(storage, first, second)
    (claim,) = await take(storage)
    aside = await storage.set_aside({A: leases_of(claim)}, now=NOW, limit=100)
    assert (aside.stayed, aside.sifted) == ([], 0)
    assert await take(storage, now=LATER) == []
    assert await take_shares(storage, {A: 0}) == []
    (again,) = await take_shares(storage)
    assert (again.message.id, again.claim_no) == (first.id, 2)
    assert await take_shares(storage) == []
    assert await deliver(storage, again) == []
    assert await states(storage, first) == [State.CREATED, State.ACTIVE, State.DELIVERED]
    assert ids_of(await take_shares(storage, now=LATER)) == [second.id]


async def test_a_message_of_a_queue_can_be_canceled_in_a_crowd_and_its_lane_is_free(storage: Storage) -> None:
    first, second = to(A, queue="q"), to(A, queue="q")
    await accept(storage, first, second)
    (claim,) = await take(storage)
    await storage.set_aside({A: leases_of(claim)}, now=NOW, limit=100)
    assert await storage.cancel(TENANT, Selection(message_ids=(first.id,)), limit=None, now=NOW) == [first.id]
    assert ids_of(await take_shares(storage)) == [second.id]
    assert await storage.delete_queue(TENANT, "q", now=NOW)


async def test_very_many_keys_whose_hosts_have_their_share_stand_in_nobodys_way(storage: Storage) -> None:
    await accept(storage, *(to(A, flow=FlowControl(key=str(number))) for number in range(500)))
    other = to(OTHER_A, flow=FlowControl(key="other"))
    await accept(storage, other)
    taken: list[MessageId] = []
    for _ in range(4):
        taken += ids_of(await take_shares(storage, {A: 0}))
    assert taken == [other.id]
    assert len(await take_shares(storage, now=NOW + 2_000)) > 0
