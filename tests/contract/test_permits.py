"""Tenants that may have only so many deliveries in flight: never one more, and nobody is forgotten."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import closing
from functools import partial

import asyncpg
import pytest
from msgspec.structs import replace

from relay.domain.delivery import Claim, Lease, State, released
from relay.domain.fairness import crowd_of
from relay.domain.message import FlowControl, Message, MessageId, TenantId
from relay.domain.selection import Selection
from relay.domain.tenant import Tenant, TenantLimits
from storage.postgres.driver import target_of
from storage.protocol import Retention, Storage
from storage.sqlite import driver
from storage.sqlite.storage import file_of
from tests.builders import NOW, OTHER_TENANT, TENANT, a_message
from tests.contract.conftest import Open
from tests.contract.steps import LATER, LEASE_MS, accept, ask_permits, deliver, fail, states, take

#: One statement.
Run = Callable[[str], Awaitable[None]]

KEY = FlowControl(key="k", parallelism=2)
HOUR = 3_600_000
#: Attempts that begin at NOW have ended.
SOON = NOW + 5


@pytest.fixture
async def run(storage: Storage, open_storage: Open) -> AsyncIterator[Run]:
    """Runs a statement on the database itself, as somebody else who has it open."""
    assert isinstance(open_storage, partial)
    (url,) = open_storage.args
    if url.startswith("sqlite"):
        with closing(driver.connect_writer(file_of(url))) as file:

            async def run_sqlite(text: str) -> None:
                file.execute(text)

            yield run_sqlite
        return
    target = target_of(url)
    connection = await asyncpg.connect(target.dsn, server_settings={"search_path": target.schema})

    async def run_postgres(text: str) -> None:
        await connection.execute(text)

    yield run_postgres
    await connection.close()


async def limit(
    storage: Storage, parallelism: int | None, *, tenant: TenantId = TENANT, now: int = NOW
) -> None:
    if await storage.tenant(tenant) is None:
        new = Tenant(id=tenant, user_id=f"t{tenant}", current_key="a", next_key="b")
        await storage.put_tenant(new, now=now)
    assert await storage.put_limits(tenant, TenantLimits(max_parallelism=parallelism), now=now)


async def ask(storage: Storage, claims: Sequence[Claim], *, now: int = NOW, sift: int = 0) -> Sequence[Claim]:
    """Ask for those that have no permit; all that may be attempted. Who stays as he is is handed back."""
    granted, staying = await ask_permits(storage, claims, now=now, sift=sift)
    await storage.settle([released(claim, now=now, due_at=now + 1) for claim in staying])
    return granted


async def begin(storage: Storage, *, now: int = SOON) -> Sequence[Claim]:
    """Claim all that may be attempted now."""
    return await ask(storage, await take(storage, now=now), now=now)


def ids_of(claims: Sequence[Claim]) -> list[MessageId]:
    return [claim.message.id for claim in claims]


def several(count: int, *, tenant: TenantId = TENANT) -> Sequence[Message]:
    return [a_message(tenant=tenant) for _ in range(count)]


async def held(storage: Storage, *, now: int = NOW) -> int:
    return await storage.in_flight(TENANT, now=now)


async def test_a_tenant_has_no_more_in_flight_than_its_limit_and_the_rest_follows_in_order(
    storage: Storage,
) -> None:
    await limit(storage, 2)
    messages = several(5)
    await accept(storage, *messages)
    seen: list[MessageId] = []
    claims = list(await begin(storage))
    while claims:
        assert len(claims) == await held(storage)
        seen += ids_of(claims[:1])
        assert await deliver(storage, claims.pop(0)) == []
        more = await begin(storage)
        assert all(claim.permit for claim in more)
        claims += more
        assert len(claims) <= 2
    assert seen == [message.id for message in messages]
    assert await held(storage) == 0
    assert (await storage.stats()).live == 0


async def test_a_tenant_without_a_limit_has_all_it_asks_for_and_leaves_no_trace(storage: Storage) -> None:
    await limit(storage, 1, tenant=OTHER_TENANT)
    await accept(storage, *several(3))
    claims = await begin(storage)
    assert len(claims) == 3
    assert await deliver(storage, *claims) == []
    assert await storage.count_rows("gated") == 0


async def test_whoever_comes_while_somebody_waits_waits_behind(storage: Storage) -> None:
    await limit(storage, 1)
    first, second, third = several(3)
    await accept(storage, first, second)
    claims = await begin(storage)
    await accept(storage, third, now=SOON + 1)
    late = await take(storage, now=SOON + 1)
    assert await deliver(storage, *claims) == []
    assert await ask(storage, late, now=SOON + 1) == []
    claims = await begin(storage, now=SOON + 1)
    assert ids_of(claims) == [second.id]
    assert await deliver(storage, *claims) == []
    assert ids_of(await begin(storage, now=SOON + 1)) == [third.id]


async def test_a_retry_asks_again_and_holds_nothing_while_it_waits(storage: Storage) -> None:
    await limit(storage, 1)
    failing, other = several(2)
    await accept(storage, failing, other)
    assert await fail(storage, *await begin(storage)) == []
    assert await held(storage) == 0
    assert ids_of(await begin(storage)) == [other.id]
    assert await begin(storage, now=SOON + LEASE_MS - 1) == []
    assert await held(storage) == 1
    assert await states(storage, failing) == [State.CREATED, State.ACTIVE, State.ERROR, State.RETRY]


async def test_what_is_handed_back_gives_its_permit_back(storage: Storage) -> None:
    await limit(storage, 1)
    await accept(storage, *several(1))
    (claim,) = await begin(storage)
    assert await storage.settle([released(claim, now=NOW)]) == []
    assert await held(storage) == 0
    (again,) = await begin(storage)
    assert (again.message, again.claim_no) == (claim.message, 2)


async def test_a_lost_worker_is_counted_once_and_whoever_takes_over_has_its_permit(storage: Storage) -> None:
    await limit(storage, 2)
    await accept(storage, *several(4))
    ghosts = await begin(storage)
    for times in (1, 2, 3):
        now = SOON + times * LEASE_MS
        claims = await begin(storage, now=now)
        assert (ids_of(claims), await held(storage, now=now)) == (ids_of(ghosts), 2)
    assert await deliver(storage, *ghosts, now=now) == ids_of(ghosts)
    assert await held(storage, now=now) == 2
    assert await deliver(storage, *claims) == []
    assert len(await begin(storage, now=now)) == 2


async def test_asking_twice_is_counted_once(storage: Storage) -> None:
    await limit(storage, 2)
    await accept(storage, *several(2))
    claims = await take(storage)
    assert len(await ask(storage, claims)) == 2
    assert len(await ask(storage, claims)) == 2
    assert await held(storage) == 2


async def test_a_permit_is_given_back_although_its_limit_was_taken_back_and_its_worker_lost(
    storage: Storage,
) -> None:
    await limit(storage, 1)
    await accept(storage, *several(1))
    assert len(await begin(storage)) == 1
    await limit(storage, None)
    claims = await take(storage, now=SOON + LEASE_MS)
    assert await deliver(storage, *claims, now=SOON + LEASE_MS) == []
    await limit(storage, 1, now=SOON + LEASE_MS)
    assert await held(storage, now=SOON + LEASE_MS) == 0


async def test_a_limit_that_changes_holds_for_what_already_waits(storage: Storage) -> None:
    await limit(storage, 1)
    await accept(storage, *several(8))
    claims = list(await begin(storage))
    await limit(storage, 3)
    claims += await begin(storage)
    assert len(claims) == 3
    await limit(storage, 1)
    assert await deliver(storage, *claims[:2]) == []
    assert await begin(storage) == []
    assert await deliver(storage, claims[2]) == []
    assert len(await begin(storage)) == 1
    await limit(storage, None)
    assert len(await take(storage, now=SOON)) == 4


async def test_a_message_with_a_key_has_both_permits_or_neither(storage: Storage) -> None:
    await limit(storage, 1)
    plain, keyed = a_message(), a_message(flow=KEY)
    await accept(storage, plain, keyed)
    claims = await begin(storage)
    assert len(claims) == 1
    key = await storage.flow_key(TENANT, "k", now=NOW)
    assert key is not None
    assert key.gate.held == sum(claim.message.flow is not None for claim in claims)
    assert await deliver(storage, *claims) == []
    (other,) = await begin(storage, now=SOON + 1)
    assert {other.message.id, claims[0].message.id} == {plain.id, keyed.id}
    assert other.permit
    assert await deliver(storage, other) == []
    assert await held(storage) == 0
    key = await storage.flow_key(TENANT, "k", now=NOW)
    assert key is not None
    assert (key.gate.held, key.gate.members) == (0, 0)


async def test_of_those_with_a_key_and_those_without_who_is_due_first_goes_first(storage: Storage) -> None:
    await limit(storage, 1)
    ends: list[MessageId] = []
    order: list[MessageId] = []
    await accept(storage, a_message())
    claims = await begin(storage)
    for _ in range(3):
        for message in (a_message(flow=KEY), a_message()):
            at = SOON + 1 + len(order)
            message = replace(message, created_at=at, not_before=at)
            await accept(storage, message, now=at)
            assert await begin(storage, now=at) == []
            order.append(message.id)
    now = NOW + 100
    while claims:
        assert await deliver(storage, *claims) == []
        claims = await begin(storage, now=now)
        assert len(claims) <= 1
        ends += ids_of(claims)
    assert ends == order


async def test_a_lost_worker_gives_back_both_permits_once(storage: Storage) -> None:
    await limit(storage, 1)
    await accept(storage, a_message(flow=KEY), a_message(flow=KEY))
    (ghost,) = await begin(storage)
    now = SOON + LEASE_MS
    assert await take(storage, now=now) == []
    assert await held(storage, now=now) == 0
    (claim,) = await begin(storage, now=now)
    assert (claim.message, claim.lost_leases) == (ghost.message, 1)
    assert await begin(storage, now=now) == []
    assert await deliver(storage, ghost, now=now) == [ghost.message.id]
    assert await held(storage, now=now) == 1


async def test_who_has_a_lane_waits_inside_it_and_the_queue_stays_in_order(storage: Storage) -> None:
    await limit(storage, 1)
    plain, *queued = a_message(), a_message(queue="q"), a_message(queue="q")
    await accept(storage, plain)
    (claim,) = await begin(storage)
    await accept(storage, *queued)
    assert await begin(storage) == []
    seen = []
    while await storage.settle([]) == [] and await deliver(storage, claim) == []:
        more = await begin(storage)
        # The next of the queue gets its lane, and then asks.
        more = more or await begin(storage)
        if not more:
            break
        (claim,) = more
        seen.append(claim.message.id)
    assert seen == [message.id for message in queued]
    queue = await storage.queue(TENANT, "q")
    assert queue is not None
    assert (queue.held, queue.members, await held(storage)) == (0, 0, 0)


async def test_a_queued_retry_keeps_its_lane_and_not_its_permit(storage: Storage) -> None:
    await limit(storage, 1)
    head, behind, plain = a_message(queue="q"), a_message(queue="q"), a_message()
    await accept(storage, head, behind)
    assert await fail(storage, *await begin(storage)) == []
    await accept(storage, plain)
    assert ids_of(await begin(storage)) == [plain.id]
    assert await held(storage) == 1


async def test_cancelling_what_waits_lets_it_leave_the_line(storage: Storage) -> None:
    await limit(storage, 1)
    plain, second, queued, last = a_message(), a_message(), a_message(queue="q"), a_message()
    await accept(storage, plain)
    (claim,) = await begin(storage)
    await accept(storage, second, queued, last)
    assert await begin(storage) == []
    ids = (second.id, queued.id)
    canceled = await storage.cancel(TENANT, Selection(message_ids=ids), limit=None, now=NOW)
    assert sorted(canceled) == sorted(ids)
    assert await deliver(storage, claim) == []
    (claim,) = await begin(storage)
    assert claim.message == last
    assert await deliver(storage, claim) == []
    assert await storage.count_rows("gated") == 0
    await limit(storage, None)
    await storage.prune(Retention(events_before=0, dead_letters_before=0), now=NOW + 2 * HOUR, limit=1_000)
    assert [
        row for row in (await storage.read_rows("gates", after=None, limit=100)).rows if row[2] == 4
    ] == []


async def test_permits_that_an_older_version_did_not_give_back_are_taken_back(
    storage: Storage, run: Run
) -> None:
    await limit(storage, 3)
    queued, plain, living, *others = a_message(queue="q"), *several(4)
    await accept(storage, queued, plain, living)
    claims = list(await begin(storage))
    claims += await begin(storage)
    assert {*ids_of(claims)} == {queued.id, plain.id, living.id}
    # As a version settles that knows queues and no limits: the lane goes, the permits stay.
    await run(f"DELETE FROM deliveries WHERE id IN ({plain.id}, {queued.id})")
    await run(f"DELETE FROM gated WHERE id = {queued.id}")
    await run("UPDATE gates SET held = 0, members = 0 WHERE kind = 1")
    await accept(storage, *others)
    assert (await begin(storage), await held(storage)) == ([], 3)
    await storage.prune(Retention(events_before=0, dead_letters_before=0), now=SOON, limit=100)
    assert await held(storage) == 1
    (alive,) = (claim for claim in claims if claim.message == living)
    assert ids_of(await begin(storage)) == [other.id for other in others]
    assert await held(storage) == 3
    assert await deliver(storage, alive) == []
    assert await held(storage) == 2


async def test_setting_the_limit_counts_the_permits_anew(storage: Storage, run: Run) -> None:
    await limit(storage, 2)
    gone, retried, last = several(3)
    await accept(storage, gone, retried, last)
    await begin(storage)
    await run(f"DELETE FROM deliveries WHERE id = {gone.id}")
    # As an older version writes a retry.
    await run(
        f"UPDATE deliveries SET state = 3, retried = 1, due_at = {LATER}, claimed_at = NULL WHERE id = {retried.id}"
    )
    assert (await begin(storage), await held(storage)) == ([], 2)
    await limit(storage, 1)
    assert await held(storage) == 0
    assert ids_of(await begin(storage)) == [last.id]
    assert await storage.count_rows("gated") == 1


async def test_counting_permits_takes_none_from_anybody(storage: Storage) -> None:
    await limit(storage, 3)
    await accept(storage, a_message(), a_message(queue="q"), a_message(flow=KEY), *several(2))
    claims = [*await begin(storage), *await begin(storage)]
    assert len(claims) == 3
    gates = await storage.read_rows("gates", after=None, limit=100)
    gated = await storage.read_rows("gated", after=None, limit=100)
    for now in (SOON, SOON + HOUR):
        await storage.prune(Retention(events_before=0, dead_letters_before=0), now=now, limit=100)
    assert await storage.read_rows("gates", after=None, limit=100) == gates
    assert await storage.read_rows("gated", after=None, limit=100) == gated


async def test_cancelling_what_is_in_flight_gives_its_permit_back_at_its_end(storage: Storage) -> None:
    await limit(storage, 1)
    await accept(storage, *several(1))
    (claim,) = await begin(storage)
    await storage.cancel(TENANT, Selection(message_ids=(claim.message.id,)), limit=None, now=NOW)
    assert await held(storage) == 1
    assert await fail(storage, claim) == []
    assert (await held(storage), (await storage.stats()).live) == (0, 0)


async def test_a_canceled_message_whose_worker_was_lost_gives_its_permit_back(storage: Storage) -> None:
    await limit(storage, 1)
    await accept(storage, *several(1))
    (claim,) = await begin(storage)
    await storage.cancel(TENANT, Selection(message_ids=(claim.message.id,)), limit=None, now=NOW)
    assert await begin(storage, now=SOON + LEASE_MS) == []
    assert (await held(storage), (await storage.stats()).live) == (0, 0)


async def test_the_backlog_of_a_full_tenant_stands_in_nobodys_way(storage: Storage) -> None:
    await limit(storage, 1)
    await accept(storage, *several(400))
    claims = await take(storage)
    assert len(claims) == 100
    assert len(await ask(storage, claims, sift=1_000)) == 1
    other = a_message(tenant=OTHER_TENANT)
    await accept(storage, other, now=SOON + 1)
    assert ids_of(await take(storage, now=SOON + 1)) == [other.id]


async def test_what_holds_a_permit_or_waits_is_neither_set_aside_nor_forgotten(storage: Storage) -> None:
    await limit(storage, 1)
    await accept(storage, *several(2))
    await begin(storage)
    now = SOON + LEASE_MS
    (claim,) = await take(storage, now=now)
    assert claim.lost_leases == 1
    lease = Lease(tenant=TENANT, message_id=claim.message.id, claim_no=claim.claim_no)
    aside = await storage.set_aside({crowd_of(claim.message): [lease]}, now=now, limit=100)
    assert (aside.stayed, aside.sifted) == ([claim.message.id], 0)
    later = LATER + 2 * HOUR
    await storage.prune(Retention(events_before=0, dead_letters_before=0), now=later, limit=1_000)
    assert await deliver(storage, claim, now=now) == []
    assert len(await begin(storage, now=later)) == 1


async def test_permits_and_lines_survive_a_restart(
    storage: Storage, reopen: Callable[[], Awaitable[Storage]]
) -> None:
    await limit(storage, 1)
    await accept(storage, *several(2))
    (claim,) = await begin(storage)
    storage = await reopen()
    assert await begin(storage) == []
    assert await deliver(storage, claim) == []
    assert len(await begin(storage)) == 1


async def test_many_who_ask_at_once_have_no_more_than_there_are(storage: Storage) -> None:
    await limit(storage, 7)
    await accept(storage, *several(60))
    claims = await take(storage)
    granted = await asyncio.gather(*(ask(storage, claims[start : start + 6]) for start in range(0, 60, 6)))
    assert sum(map(len, granted)) == 7 == await held(storage)
    assert await begin(storage) == []
