"""Several processes on one PostgreSQL database are one relay: nothing shared twice, nothing counted wrongly."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import asyncpg
import pytest

from relay.clock import SharedClock
from relay.domain.delivery import State, released
from relay.domain.errors import Unavailable
from relay.domain.gates import Configure, GateKind
from relay.domain.message import MessageId, SignedBy
from relay.domain.tenant import TenantLimits, Token
from relay.domain.url_group import Endpoint
from relay.ids import Ids
from storage.postgres import open_postgres, open_postgres_accounts, schema
from storage.postgres.driver import target_of
from storage.postgres.nodes import SILENCE_S
from storage.postgres.storage import PostgresStorage
from storage.protocol import CannotOpen, ClaimTerms, Rejected, Retention, Storage
from tests import postgres_server
from tests.builders import NOW, TENANT, a_message
from tests.contract.steps import (
    EVERYTHING,
    LATER,
    LEASE_MS,
    accept,
    ask_permits,
    bury,
    deliver,
    fail,
    start,
    states,
    take,
)
from tests.contract.test_schedules import a_firing, a_schedule, put

Open = Callable[[], Awaitable[PostgresStorage]]


@pytest.fixture
def url() -> str:
    return postgres_server.url()


@pytest.fixture
async def join(url: str) -> AsyncIterator[Open]:
    """Opens one more node on this test's database."""
    opened: list[PostgresStorage] = []

    async def join() -> PostgresStorage:
        opened.append(await open_postgres(url))
        return opened[-1]

    yield join
    await asyncio.gather(*(node.close() for node in opened))


@pytest.fixture
async def database(url: str, join: Open) -> AsyncIterator[Any]:
    """The database itself, once somebody has joined."""
    target = target_of(url)
    connection = await asyncpg.connect(target.dsn, server_settings={"search_path": target.schema})
    yield connection
    await connection.close()


async def three(join: Open) -> Sequence[PostgresStorage]:
    return [await join() for _ in range(3)]


async def test_nodes_that_claim_at_once_never_share_a_message(join: Open) -> None:
    nodes = await three(join)
    messages = [a_message() for _ in range(300)]
    await accept(nodes[0], *messages)

    async def drain(node: Storage) -> list[MessageId]:
        taken: list[MessageId] = []
        while claims := (await node.claim(ClaimTerms(limit=7, lease_ms=LEASE_MS), now=NOW)).claims:
            taken += [claim.message.id for claim in claims]
        return taken

    shares = await asyncio.gather(*(drain(node) for node in nodes))
    assert sorted(id_ for share in shares for id_ in share) == [message.id for message in messages]


async def test_a_lost_lease_goes_to_another_node_and_the_late_settlement_is_refused(join: Open) -> None:
    slow, other, _ = await three(join)
    message = a_message()
    (late,) = await start(slow, message)
    (current,) = await take(other, now=NOW + LEASE_MS)
    assert (current.message, current.claim_no, current.lost_leases) == (message, 2, 1)
    assert await deliver(slow, late) == [message.id]
    assert await slow.settle([released(late, now=NOW)]) == [message.id]
    assert await deliver(other, current) == []
    assert await states(slow, message) == [State.CREATED, State.ACTIVE, State.ACTIVE, State.DELIVERED]
    assert [(await node.stats()).live for node in (slow, other)] == [0, 0]


async def test_of_publishes_with_one_key_on_several_nodes_exactly_one_is_stored(join: Open) -> None:
    nodes = await three(join)
    messages = [a_message(dedup_key=b"k" * 16) for _ in range(30)]
    published = await asyncio.gather(*(accept(nodes[n % 3], message) for n, message in enumerate(messages)))
    receipts = [receipt for one in published for receipt in one.receipts]
    assert len({receipt.message_id for receipt in receipts}) == 1
    assert [receipt.deduplicated for receipt in receipts].count(False) == 1
    assert (await nodes[1].stats()).live == 1


async def test_keys_wanted_in_any_order_on_several_nodes_stand_in_nobodys_way(join: Open) -> None:
    nodes = await three(join)
    keys = [bytes([n]) * 16 for n in range(40)]
    calls = []
    for n in range(30):
        random.Random(n).shuffle(keys)
        calls.append(nodes[n % 3].publish([a_message(dedup_key=key) for key in keys], now=NOW))
    published = await asyncio.gather(*calls)
    fresh = [receipt for one in published for receipt in one.receipts if not receipt.deduplicated]
    assert len(fresh) == len({receipt.message_id for receipt in fresh}) == 40


async def test_cancellations_and_settlements_of_the_same_messages_wait_for_each_other_in_one_order(
    join: Open,
) -> None:
    nodes = await three(join)
    messages = [a_message(dedup_key=n.to_bytes(16, "big")) for n in range(600)]
    claims = list(await start(nodes[0], *messages[:100]))
    await accept(nodes[1], *messages[100:])
    claims += await take(nodes[1])
    random.Random(1).shuffle(claims)
    outcomes = await asyncio.gather(
        *(nodes[n % 3].cancel(TENANT, EVERYTHING, limit=None, now=NOW) for n in range(6)),
        *(fail(nodes[n % 3], *claims[n::10]) for n in range(5)),
        *(deliver(nodes[n % 3], *claims[n::10]) for n in range(5, 10)),
    )
    assert [refused for refused in outcomes[6:] if refused] == []
    canceled = [id_ for ids in outcomes[:6] for id_ in ids]
    assert len(canceled) == len(set(canceled))
    waiting = await take(nodes[2], now=LATER)
    assert {claim.retried for claim in waiting} <= {1}
    assert (await nodes[2].stats()).live == len(waiting)


async def test_a_schedule_that_is_put_again_while_it_is_deleted_is_gone(join: Open) -> None:
    nodes = await three(join)
    for _ in range(20):
        await put(nodes[0], a_schedule())
        putting, deleting = put(nodes[1], a_schedule()), nodes[2].delete_schedule(TENANT, "scd_1")
        schedule, deleted = await asyncio.gather(putting, deleting)
        # Either was first: the other found what that one left.
        assert deleted
        assert (await nodes[0].schedule(TENANT, "scd_1") is None) == (schedule.revision == 2)
        await nodes[0].delete_schedule(TENANT, "scd_1")


async def test_one_tick_is_fired_by_one_of_all_nodes(join: Open) -> None:
    nodes = await three(join)
    schedule = await put(nodes[0], a_schedule())
    messages = [a_message(schedule_id="scd_1") for _ in range(9)]
    won = await asyncio.gather(
        *(nodes[n % 3].fire(a_firing(schedule, message), now=NOW) for n, message in enumerate(messages))
    )
    assert won.count(True) == 1
    assert [claim.message for claim in await take(nodes[1])] == [messages[won.index(True)]]


async def test_of_many_ticks_that_all_nodes_fire_together_each_is_fired_by_one(join: Open) -> None:
    nodes = await three(join)
    stored = [await put(nodes[0], a_schedule(f"scd_{n}")) for n in range(60)]
    calls = []
    for n, node in enumerate(nodes):
        # No two in the same order.
        order = random.Random(n).sample(stored, len(stored))
        calls += [(one, node.fire(a_firing(one, a_message(schedule_id=one.id)), now=NOW)) for one in order]
    won = await asyncio.gather(*(call for _, call in calls))
    winners = [one.id for (one, _), first in zip(calls, won, strict=True) if first]
    assert sorted(winners) == sorted(one.id for one in stored)
    claimed = await take(nodes[1])
    assert sorted(claim.message.origin.schedule_id or "" for claim in claimed) == sorted(winners)
    assert (await nodes[2].stats()).live == 60
    for one in stored:
        (run,) = await nodes[0].runs(TENANT, one.id, limit=9)
        assert len(run.message_ids) == 1


async def test_a_tick_that_cannot_be_written_holds_up_none_that_is_fired_with_it(join: Open) -> None:
    node = await join()
    stored = [await put(node, a_schedule(f"scd_{n}")) for n in range(9)]
    spoiling = a_message()
    await accept(node, spoiling)
    fired = await asyncio.gather(
        *(
            node.fire(a_firing(one, spoiling if n == 4 else a_message()), now=NOW)
            for n, one in enumerate(stored)
        ),
        return_exceptions=True,
    )
    assert isinstance(fired.pop(4), Rejected)
    assert fired == [True] * 8
    left, _ = await node.due_schedules(now=NOW, limit=99)
    assert [one.schedule.id for one in left] == ["scd_4"]
    assert (await node.stats()).live == 9


async def test_schedules_put_on_several_nodes_at_once_stay_within_the_limit(join: Open) -> None:
    nodes = await three(join)
    schedules = [a_schedule(f"scd_{n}") for n in range(12)]
    stored = await asyncio.gather(
        *(nodes[n % 3].put_schedule(schedule, limit=5) for n, schedule in enumerate(schedules))
    )
    assert len([schedule for schedule in stored if schedule is not None]) == 5
    assert len(await nodes[0].schedules(TENANT)) == 5


async def test_one_schedule_put_on_several_nodes_at_once_rises_by_one_revision_each(join: Open) -> None:
    nodes = await three(join)
    stored = await asyncio.gather(*(nodes[n % 3].put_schedule(a_schedule(), limit=5) for n in range(6)))
    assert sorted(one.revision for one in stored if one is not None) == [1, 2, 3, 4, 5, 6]


async def test_what_one_node_forgets_while_another_buries_the_rest_leaves_no_message_behind(
    join: Open, database: Any
) -> None:
    nodes = await three(join)
    letters = [await bury(nodes[0], a_message(max_retries=0)) for _ in range(60)]
    retention = Retention(events_before=LATER, dead_letters_before=NOW)
    for n in range(0, 60, 10):
        await asyncio.gather(
            nodes[1].prune(retention, now=NOW, limit=20),
            nodes[2].delete_dead_letters(TENANT, [letter.id for letter in letters[n : n + 10]]),
        )
    while await nodes[0].prune(retention, now=NOW, limit=100):
        pass
    assert await database.fetchval("SELECT count(*) FROM messages") == 0
    assert await database.fetchval("SELECT count(*) FROM events") == 0


@pytest.mark.parametrize("what", schema.IN_TURN)
async def test_who_waits_for_a_turn_holds_up_nothing_but_what_has_to_wait_for_the_same(
    what: int, url: str, join: Open, database: Any
) -> None:
    node = await join()
    schedule = await put(node, a_schedule())
    letters = [await bury(node, a_message(max_retries=0)) for _ in range(4)]
    message = a_message()
    await accept(node, message)
    change = Configure(paused=True)
    turns: dict[int, Callable[[int], Awaitable[object]]] = {
        schema.FORGETTING: lambda n: node.delete_dead_letters(TENANT, [letters[n].id]),
        schema.SCHEDULES: lambda n: put(node, a_schedule(f"new_{n}")),
        schema.URL_GROUPS: lambda n: node.put_endpoints(
            TENANT, f"g{n}", [Endpoint(url="http://a.test")], max_groups=9, max_endpoints=9, now=NOW
        ),
        schema.QUEUES: lambda n: node.change_gate(
            TENANT, GateKind.QUEUE, f"q{n}", change, create=True, limit=9, now=NOW
        ),
        schema.ACCOUNTS: lambda n: node.add_tenant(f"t{n}", current_key="1", next_key="2", now=NOW),
    }
    async with database.transaction():
        await database.execute(schema.advisory_lock(target_of(url).schema, what))
        waiting = [asyncio.ensure_future(turns[what](n)) for n in range(4)]
        async with asyncio.timeout(10):
            await node.ping()
            assert await node.fire(a_firing(schedule), now=NOW)
            await node.change_gate(TENANT, GateKind.FLOW, "key", change, create=True, now=NOW)
            assert await node.cancel(TENANT, EVERYTHING, limit=None, now=NOW) == [message.id]
            await ask_permits(node, [])
        assert not any(one.done() for one in waiting)
    async with asyncio.timeout(10):
        assert all(await asyncio.gather(*waiting))


async def test_every_node_has_a_number_of_its_own(join: Open) -> None:
    nodes = await asyncio.gather(*(join() for _ in range(6)))
    assert len({node.node for node in nodes}) == 6
    fresh = [Ids(node=node.node, last=node.last_id).next(NOW) for node in nodes]
    assert len(set(fresh)) == 6


async def test_a_number_that_was_given_back_is_used_again_last_of_all(join: Open) -> None:
    first = await join()
    await first.close()
    second = await join()
    assert second.node != first.node


async def test_a_start_that_is_ended_before_it_is_open_gives_its_number_back(
    url: str, join: Open, database: Any
) -> None:
    first = await join()
    async with database.transaction():
        # Numbers are taken before that is looked at.
        await database.execute("LOCK TABLE messages IN ACCESS EXCLUSIVE MODE")
        starting = asyncio.create_task(open_postgres(url))
        async with asyncio.timeout(30):
            while not await first.other_users():
                assert not starting.done()
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert await first.other_users() == 0


async def test_a_start_that_fails_before_it_is_open_gives_its_number_back(
    url: str, join: Open, database: Any
) -> None:
    first = await join()
    await database.execute("ALTER TABLE dead_letters RENAME TO elsewhere")
    with pytest.raises(Unavailable, match="tables are not there"):
        await open_postgres(url)
    assert await database.fetchval("SELECT count(*) FROM nodes") == 2
    assert await first.other_users() == 0


async def test_with_every_number_taken_no_further_process_can_start(join: Open, database: Any) -> None:
    node = await join()
    await database.execute(
        "INSERT INTO nodes SELECT n, 'somebody', clock_timestamp() FROM generate_series(0, 255) n"
        " ON CONFLICT DO NOTHING"
    )
    with pytest.raises(CannotOpen, match="256 relay processes use this database already"):
        await join()
    await database.execute(
        "UPDATE nodes SET seen_at = clock_timestamp() - make_interval(secs => $1) WHERE number = 200",
        SILENCE_S + 1,
    )
    assert (await join()).node == 200
    assert node.node != 200


async def test_what_every_start_asks_takes_no_connection_that_nothing_else_needs(
    join: Open, database: Any
) -> None:
    node = await join()
    await node.listening()
    assert await node.setting("unfinished_copy") is None
    sessions = "SELECT pid FROM pg_stat_activity WHERE application_name = 'relay'"
    before = {row[0] for row in await database.fetch(sessions)}
    assert await node.unknown_migrations() == []
    assert {row[0] for row in await database.fetch(sessions)} <= before


async def test_accounts_are_managed_without_a_number(url: str, join: Open, database: Any) -> None:
    node = await join()
    await database.execute(
        "INSERT INTO nodes SELECT n, 'somebody', clock_timestamp() FROM generate_series(0, 255) n"
        " ON CONFLICT DO NOTHING"
    )
    held = await database.fetch("SELECT * FROM nodes WHERE owner = 'somebody'")
    accounts = await open_postgres_accounts(url, clock=SharedClock())
    try:
        tenant = await accounts.add_tenant("acme", current_key="sig_1", next_key="sig_2", now=NOW)
        assert tenant is not None
        assert await accounts.add_tenant("acme", current_key="sig_3", next_key="sig_4", now=NOW) is None
        limits = TenantLimits(max_parallelism=2)
        token = Token(tenant=tenant.id, hash=b"h" * 32, read_only=False, created_at=NOW)
        assert await accounts.put_limits(tenant.id, limits, now=NOW)
        assert await accounts.put_signed_by(tenant.id, SignedBy.BOTH)
        assert await accounts.put_disabled(tenant.id, at=NOW)
        await accounts.issue_token(token)
        assert await accounts.tokens(tenant.id) == await node.tokens(tenant.id) == [token]
        assert await accounts.delete_token(token.hash)
        assert await accounts.setting("no such setting") is None
        assert await accounts.tenants() == await node.tenants()
    finally:
        await accounts.close()
    (stored,) = (one for one in await node.tenants() if one.id == tenant.id)
    assert (stored.limits, stored.signed_by, stored.disabled_at) == (limits, SignedBy.BOTH, NOW)
    assert await database.fetch("SELECT * FROM nodes WHERE owner = 'somebody'") == held


async def test_a_process_whose_number_went_to_another_makes_no_more_ids(join: Open, database: Any) -> None:
    node = await join()
    await accept(node, a_message())
    await database.execute("UPDATE nodes SET owner = 'another' WHERE number = $1", node.node)
    with pytest.raises(Unavailable, match="number"):
        await node.ping()
    with pytest.raises(Unavailable, match="number"):
        await accept(node, a_message())
    assert await database.fetchval("SELECT owner FROM nodes WHERE number = $1", node.node) == "another"


async def test_a_number_forgotten_by_a_failover_is_claimed_again(join: Open, database: Any) -> None:
    node = await join()
    await database.execute("DELETE FROM nodes")
    await node.ping()
    assert await database.fetchval("SELECT number FROM nodes WHERE owner IS NOT NULL") == node.node


async def test_work_on_one_node_wakes_the_others(join: Open) -> None:
    teller, hearer, _ = await three(join)
    heard: asyncio.Queue[int] = asyncio.Queue()
    hearer.on_work(heard.put_nowait)
    await hearer.listening()
    # What was handed out at once is nobody else's business.
    await start(teller, a_message())
    await accept(teller, a_message(not_before=NOW + 900))
    async with asyncio.timeout(10):
        assert await heard.get() == NOW + 900
    assert heard.empty()


async def test_work_for_much_later_wakes_nobody_else(join: Open) -> None:
    teller, hearer, _ = await three(join)
    heard: asyncio.Queue[int] = asyncio.Queue()
    hearer.on_work(heard.put_nowait)
    await hearer.listening()
    await accept(teller, a_message(not_before=NOW + 60_000))
    await accept(teller, a_message(not_before=NOW + 1))
    async with asyncio.timeout(10):
        assert await heard.get() == NOW + 1


async def test_what_another_node_writes_into_the_past_is_found_all_the_same(join: Open) -> None:
    claiming, writing, _ = await three(join)
    assert await take(claiming, now=NOW + 60_000) == []
    message = a_message(not_before=NOW)
    await accept(writing, message)
    assert [claim.message for claim in await take(claiming, now=NOW + 70_000)] == [message]


async def test_history_keeps_the_order_in_which_nodes_took_turns(join: Open) -> None:
    nodes = await three(join)
    message = a_message(max_retries=2)
    now = NOW
    await accept(nodes[0], message)
    for turn in range(1, 4):
        now += 1_000_000
        await fail(nodes[turn % 3], *await take(nodes[turn % 3], now=now), now=now)
    assert await states(nodes[0], message) == [
        State.CREATED,
        *[State.ACTIVE, State.ERROR, State.RETRY] * 2,
        *[State.ACTIVE, State.ERROR, State.FAILED],
    ]
