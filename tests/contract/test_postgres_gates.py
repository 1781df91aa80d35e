"""Queues and flow-control keys hold across nodes: three of them at the same gates of one PostgreSQL at once."""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from itertools import pairwise
from typing import Any

import asyncpg
import pytest

from relay.clock import FakeClock
from relay.domain.delivery import Claim, released, settle
from relay.domain.gates import Configure, GateKind, Pin
from relay.domain.message import Callback, FlowControl, Message, MessageId
from relay.domain.selection import Selection
from relay.domain.tenant import Tenant, TenantLimits
from relay.ids import Ids
from storage.postgres import open_postgres
from storage.postgres.driver import Connection, Session, connect, target_of
from storage.postgres.horizon import Horizon
from storage.postgres.storage import PostgresStorage
from storage.postgres.takeovers import Takeovers
from storage.postgres.tx import Transactions
from storage.postgres.work import Claiming, Road
from storage.protocol import ClaimTerms, Storage
from storage.sql.road import Acceptance
from tests import postgres_server
from tests.builders import NOW, OTHER_TENANT, TENANT, a_message, an_attempt, next_id
from tests.contract.steps import LATER, TERMS, accept, ask_permits, deliver, take

#: So long that nobody who answers loses a lease, so short that the ones lost are soon taken over.
_LEASE_MS = 20_000
_PERIOD_MS = 40
_CALLBACK = "https://example.com/callback"

#: The most that may be in flight: of queues counting what has begun and is not finished, of keys attempts.
_LANES = {"one": 1, "some": 3}
_SLOTS = {"two": 2, "some": 3}


@pytest.fixture
def url() -> str:
    return postgres_server.url()


@pytest.fixture
async def nodes(url: str) -> AsyncIterator[Sequence[PostgresStorage]]:
    opened = [await open_postgres(url) for _ in range(3)]
    yield opened
    await asyncio.gather(*(node.close() for node in opened))


@pytest.fixture
async def database(url: str, nodes: Sequence[Storage]) -> AsyncIterator[Any]:
    target = target_of(url)
    connection = await asyncpg.connect(target.dsn, server_settings={"search_path": target.schema})
    yield connection
    await connection.close()


def a_mixture(chance: random.Random, now: int) -> Message:
    """A message with some of the gates, or none."""
    flow = chance.choice(
        [
            None,
            FlowControl(key="two", parallelism=2),
            FlowControl(key="some", parallelism=chance.randint(1, 3)),
            FlowControl(key="once", rate=1, period_ms=_PERIOD_MS),
            FlowControl(key="thrice", rate=3, period_ms=_PERIOD_MS),
        ]
    )
    return a_message(
        created_at=now,
        not_before=now + chance.choice([0, 0, 0, 30]),
        queue=chance.choice([None, "one", "one", "some"]),
        flow=flow,
        callback=chance.choice([None, None, Callback(url=_CALLBACK), Callback(url=_CALLBACK, flow=flow)]),
        max_retries=2,
        dedup_key=chance.choice([None, None, chance.randbytes(16)]),
    )


class Hammer:
    """What three nodes do at once, and what must hold at every moment of it.

    Attempts count from the return of their claim to the call that settles them, and so for no longer than storage
    has to count them. Time moves with what is done, and by more when there is nothing to do.
    """

    def __init__(self, nodes: Sequence[Storage], seed: int, limit: int | None) -> None:
        self.nodes = nodes
        #: What the tenant may have in flight.
        self.limit = limit
        self.chance = random.Random(seed)
        self.now = NOW
        self.living: dict[int, Message] = {}
        self.flying: dict[int, tuple[Claim, int]] = {}
        self.begun: dict[int, Message] = {}
        self.ending: set[int] = set()
        #: Callbacks that are known to have been published.
        self.reports: dict[int, Message] = {}
        #: What was claimed by somebody who will answer far too late.
        self.ghosts: list[Claim] = []
        self.starts: dict[str, list[int]] = {"once": [], "thrice": []}
        self.in_order: list[int] = []
        #: Of each message the moments between which it was accepted, by a count of everything that happens.
        self.accepted: dict[int, tuple[int, int]] = {}
        self.moment = 0
        #: Calls under way that take or end a lease.
        self.busy = 0
        self.paused: set[tuple[GateKind, str]] = set()
        self.publishing = 0
        self.turns = 0
        self.turned = asyncio.Condition()
        self.over = False
        #: Attempts in flight at the same moment.
        self.most = 0

    async def run(self) -> None:
        self.publishing = len(self.nodes)
        async with asyncio.timeout(240), asyncio.TaskGroup() as group:
            for node in self.nodes:
                group.create_task(self.publish(node))
                group.create_task(self.work(node))
                group.create_task(self.work(node))
            group.create_task(self.disturb())

    def tick(self) -> int:
        self.moment += 1
        return self.moment

    # --- what is done

    async def publish(self, node: Storage) -> None:
        for _ in range(6):
            messages = [a_mixture(self.chance, self.now) for _ in range(self.chance.randint(1, 5))]
            self.living.update((message.id, message) for message in messages)
            called = self.tick()
            published = await node.publish(messages, now=self.now)
            assert not any(receipt.deduplicated for receipt in published.receipts)
            returned = self.tick()
            self.accepted.update((message.id, (called, returned)) for message in messages)
            # Whether a cancellation comes in time to stop a callback would be anybody's guess.
            silent = [message for message in messages if message.callback is None]
            if silent and self.chance.random() < 0.3:
                await self.cancel(node, self.chance.choice(silent).id)
        self.publishing -= 1

    async def cancel(self, node: Storage, id_: MessageId) -> None:
        self.ending.add(id_)
        selection = Selection(message_ids=(id_,))
        if await node.cancel(TENANT, selection, limit=None, now=self.now) and id_ not in self.flying:
            # Unless somebody has it in flight, and the end is still to come.
            self.living.pop(id_, None)

    async def work(self, node: Storage) -> None:
        mine: list[Claim] = []
        while self.left() or self.publishing or mine:
            self.now += 1
            closed = frozenset(self.paused)
            now = self.now
            terms = ClaimTerms(limit=self.chance.randint(1, 8), lease_ms=_LEASE_MS)
            self.busy += 1
            claimed = await node.claim(terms, now=now)
            self.busy -= 1
            self.tick()
            claims = await self.permitted(node, claimed.claims, now)
            self.look_at(claims, now, closed & self.paused)
            mine += claims
            self.chance.shuffle(mine)
            ready = [
                mine.pop()
                for _ in range(self.chance.randint(0 if claimed.claims else min(1, len(mine)), len(mine)))
            ]
            mine += await self.answer(node, ready)
            if not claimed.claims and not ready and claimed.next_due_at is not None:
                busy = self.busy or self.flying.keys() - {ghost.message.id for ghost in self.ghosts}
                self.now = max(self.now, min(claimed.next_due_at, now + (20 if busy else _LEASE_MS)))
            await self.turn()
        self.over = True
        await self.turn()

    async def permitted(self, node: Storage, claims: Sequence[Claim], now: int) -> Sequence[Claim]:
        """Those that the limit of the tenant lets be attempted."""
        self.busy += 1
        granted, staying = await ask_permits(node, claims, now=now, sift=5)
        # They may be claimed by others as soon as they are handed back, so nobody counts them here.
        await node.settle([released(claim, now=now, due_at=now + 5) for claim in staying])
        self.busy -= 1
        return granted

    def left(self) -> set[int]:
        """Who is still to be answered: not those that were cancelled and lost, which storage ends by itself."""
        return self.living.keys() - (self.ending & {ghost.message.id for ghost in self.ghosts})

    async def turn(self) -> None:
        async with self.turned:
            self.turns += 1
            self.turned.notify_all()

    async def answer(self, node: Storage, claims: Sequence[Claim]) -> Sequence[Claim]:
        """Settle, at times with a claim of what that frees; who was claimed."""
        settlements = []
        leases: dict[int, int] = {}
        for claim in claims:
            outcome = self.chance.choices(["200", "500", "back", "lost"], [70, 18, 6, 6])[0]
            if outcome == "lost" or self.overtaken(claim):
                self.ghosts.append(claim)
                continue
            _, leases[claim.message.id] = self.flying.pop(claim.message.id)
            settlement = released(claim, now=self.now)
            if outcome != "back":
                attempt = an_attempt(started_at=self.now, ended_at=self.now, status=int(outcome))
                settlement = settle(claim, attempt, retry_after_ms=10, next_id=next_id)
            if settlement.due_at is None:
                self.ending.add(claim.message.id)
            # Others may claim them before this hears that they were written.
            self.living.update((report.id, report) for report in settlement.publishes)
            settlements.append(settlement)
        closed, now = frozenset(self.paused), self.now
        successors = self.chance.choice([0, 1, 4])
        taken: Sequence[Claim] = ()
        self.busy += 1
        if successors:
            terms = ClaimTerms(limit=successors, lease_ms=_LEASE_MS)
            claimed = await node.claim(terms, now=now, after=settlements)
            refused, taken = set(claimed.refused), claimed.claims
        else:
            refused = set(await node.settle(settlements))
        assert all(leases[id_] <= self.now for id_ in refused)
        self.ending -= refused
        for settlement in settlements:
            if settlement.claim.message.id in refused:
                for report in settlement.publishes:
                    del self.living[report.id]
                continue
            for report in settlement.publishes:
                self.reports[report.id] = report
                if self.chance.random() < 0.2:
                    await self.cancel(node, report.id)
            if settlement.due_at is None or settlement.claim.message.id in self.ending:
                self.living.pop(settlement.claim.message.id, None)
        taken = await self.permitted(node, taken, now)
        # Before, nobody sees that they are in flight, and time would move on by as much as their lease.
        self.busy -= 1
        self.look_at(taken, now, closed & self.paused)
        return taken

    async def disturb(self) -> None:
        """Limits change and gates are closed and opened while all of that goes on."""
        while not self.over:
            node = self.chance.choice(self.nodes)
            kind, name = self.chance.choice(
                [
                    (GateKind.QUEUE, "some"),
                    (GateKind.QUEUE, "one"),
                    (GateKind.FLOW, "some"),
                    (GateKind.FLOW, "two"),
                ]
            )
            await self.change(node, kind, name, Configure(paused=True))
            self.paused.add((kind, name))
            await self.pass_turns(6)
            self.paused.discard((kind, name))
            await self.change(node, kind, name, Configure(paused=False))
            await self.change(node, GateKind.QUEUE, "some", Configure(parallelism=self.chance.randint(1, 3)))
            await self.change(node, GateKind.FLOW, "two", Pin(parallelism=self.chance.randint(1, 2)))
            await self.pass_turns(12)
            for ghost in [one for one in self.ghosts if self.overtaken(one)]:
                self.ghosts.remove(ghost)
                late = settle(ghost, an_attempt(started_at=self.now, ended_at=self.now), next_id=next_id)
                assert await node.settle([late]) == [ghost.message.id]

    async def change(self, node: Storage, kind: GateKind, name: str, change: Configure | Pin) -> None:
        assert await node.change_gate(TENANT, kind, name, change, create=True, now=self.now)

    async def pass_turns(self, count: int) -> None:
        until = self.turns + count
        async with self.turned:
            await self.turned.wait_for(lambda: self.over or self.turns >= until)

    def overtaken(self, ghost: Claim) -> bool:
        current = self.flying.get(ghost.message.id)
        return current is None or current[0].claim_no != ghost.claim_no

    # --- what must hold

    def look_at(self, claims: Sequence[Claim], now: int, closed: frozenset[tuple[GateKind, str]]) -> None:
        """`closed`: what was, from before the claim until after it."""
        for claim in claims:
            message = claim.message
            before = self.flying.get(message.id)
            assert before is None or before[1] <= now, "claimed twice"
            self.flying[message.id] = (claim, now + _LEASE_MS)
        for claim in claims:
            message, queue = claim.message, claim.message.origin.queue
            if queue is not None and message.id not in self.begun:
                assert (GateKind.QUEUE, queue) not in closed
                surely = (self.living.keys() & (self.begun | self.reports).keys()) - self.ending
                lanes = surely | {self.reports[id_].lane_of for id_ in surely if id_ in self.reports}
                unfinished = [
                    one for one in self.begun.values() if one.origin.queue == queue and one.id in lanes
                ]
                assert len(unfinished) < _LANES[queue]
                if queue == "one":
                    self.in_order.append(message.id)
            self.begun[message.id] = message
            if message.flow is not None:
                assert (GateKind.FLOW, message.flow.key) not in closed
                if message.flow.key in self.starts:
                    self.starts[message.flow.key].append(now)
        # While this call was on its way, another may have come later in time and ended what was lost by then.
        ghosts = {ghost.message.id for ghost in self.ghosts}
        lost = {id_ for id_, (_, until) in self.flying.items() if until <= self.now and id_ in ghosts}
        attempts = Counter(
            claim.message.flow.key
            for claim, _ in self.flying.values()
            if claim.message.flow is not None and claim.message.id not in lost
        )
        assert all(attempts[key] <= slots for key, slots in _SLOTS.items()), attempts
        flying = self.flying.keys() - lost
        assert self.limit is None or len(flying) <= self.limit
        self.most = max(self.most, len(flying))

    def look_back(self) -> None:
        """Once everything is over."""
        once, thrice = sorted(self.starts["once"]), sorted(self.starts["thrice"])
        assert all(later - earlier >= _PERIOD_MS for earlier, later in pairwise(once))
        # Whatever window one looks at, it touches two of those that storage counts in.
        assert all(later - earlier >= _PERIOD_MS for earlier, later in zip(thrice, thrice[6:], strict=False))
        latest = 0
        for id_ in self.in_order:
            called, returned = self.accepted[id_]
            assert latest < returned, "somebody was overtaken who had been accepted before"
            latest = max(latest, called)
        assert self.limit is None or self.most == self.limit
        assert len(once) > 3
        assert len(thrice) > 3
        assert len(self.in_order) > 10


@pytest.mark.parametrize(("seed", "limit"), [(1, None), (2, None), (3, 3)])
async def test_three_nodes_at_the_same_gates_exceed_no_limit_forget_nobody_and_never_deadlock(
    nodes: Sequence[Storage], database: Any, seed: int, limit: int | None
) -> None:
    await nodes[0].put_tenant(Tenant(id=TENANT, user_id="t", current_key="a", next_key="b"), now=NOW)
    await nodes[0].put_limits(TENANT, TenantLimits(max_parallelism=limit), now=NOW)
    hammer = Hammer(nodes, seed, limit)
    await hammer.run()
    hammer.look_back()
    assert (await nodes[2].claim(TERMS, now=hammer.now + _LEASE_MS)).claims == []
    for one in (*await nodes[0].queues(TENANT), *await keys_of(nodes[1], hammer.now)):
        assert (one.name, one.held, one.members) == (one.name, 0, 0)
    assert await nodes[0].in_flight(TENANT, now=hammer.now) == 0
    assert await nodes[0].count_rows("gated") == 0
    assert (await nodes[2].stats()).live == 0
    assert (await nodes[2].claim(TERMS, now=hammer.now + _LEASE_MS)).next_due_at is None
    await asyncio.gather(*(node.close() for node in nodes))
    assert await deadlocks(database) == 0


async def keys_of(node: Storage, now: int) -> Sequence[Any]:
    return [found.gate for found in await node.flow_keys(TENANT, search="", limit=100, now=now)]


async def deadlocks(database: Any) -> int:
    """How many the server has found, once all that it still counted by itself is told."""
    async with asyncio.timeout(30):
        while await database.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'relay'"
        ):
            await asyncio.sleep(0.01)
    found = await database.fetchval(
        "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    )
    return int(found)


async def test_a_gate_that_another_node_has_in_hand_stops_nobody_else(
    nodes: Sequence[Storage], database: Any
) -> None:
    node, other, _ = nodes
    await accept(other, a_message(queue="q"), a_message(queue="q"))
    (first,) = await take(other)
    async with database.transaction():
        await database.execute("SELECT 1 FROM gates WHERE name = 'q' FOR UPDATE")
        stuck = asyncio.ensure_future(deliver(node, first))
        waiting = asyncio.ensure_future(accept(other, a_message(queue="q")))
        plain = a_message()
        published = await node.publish([plain], now=NOW)
        assert published.receipts[0].message_id == plain.id
        claims = await take(node)
        assert [claim.message for claim in claims] == [plain]
        assert await deliver(node, *claims) == []
        assert not stuck.done()
        assert not waiting.done()
    assert await stuck == []
    await waiting
    (claim,) = await take(node, now=NOW + 5)
    assert claim.message.origin.queue == "q"


async def test_an_open_gate_that_is_locked_is_announced_and_served_by_whoever_comes_next(
    nodes: Sequence[Storage], database: Any
) -> None:
    node, other, _ = nodes
    message = a_message(queue="q")
    await accept(node, message)
    async with database.transaction():
        await database.execute("SELECT 1 FROM gates FOR UPDATE")
        claimed = await other.claim(TERMS, now=NOW + 5)
        assert (list(claimed.claims), claimed.next_due_at) == ([], NOW)
    assert [claim.message for claim in await take(other, now=NOW + 5)] == [message]


async def test_a_window_of_a_rate_opens_when_its_gate_is_had_and_not_when_a_claim_began_to_wait(
    nodes: Sequence[Storage], database: Any
) -> None:
    node, other, _ = nodes
    clock = FakeClock()
    flow = FlowControl(key="k", rate=2, period_ms=1_000)
    await accept(node, *(a_message(flow=flow) for _ in range(9)))
    async with database.transaction():
        await database.execute("LOCK TABLE gates IN ACCESS EXCLUSIVE MODE")
        waiting = asyncio.create_task(node.claim(TERMS, now=clock.now))
        async with asyncio.timeout(10):
            while not await database.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
                pass
        clock.advance(3_000)
    assert [claim.claimed_at for claim in (await waiting).claims] == [NOW + 3_000] * 2
    clock.advance(999)
    assert (await other.claim(TERMS, now=clock.now)).claims == []
    clock.advance(1)
    assert len((await other.claim(TERMS, now=clock.now)).claims) == 2


async def test_a_queue_deleted_under_its_publishers_is_made_again(nodes: Sequence[Storage]) -> None:
    async def publish(node: Storage) -> list[Message]:
        messages = [a_message(queue="q") for _ in range(20)]
        for message in messages:
            await accept(node, message)
        return messages

    async def delete() -> None:
        for _ in range(10):
            await nodes[2].delete_queue(TENANT, "q", now=NOW)

    await asyncio.gather(publish(nodes[0]), publish(nodes[1]), delete())
    found = await nodes[0].queue(TENANT, "q")
    assert (0 if found is None else found.members) == (await nodes[0].stats()).live
    left = 0 if found is None else found.members
    for now in range(NOW, NOW + 10 * left, 10):
        (claim,) = await take(nodes[1], now=now)
        assert await deliver(nodes[1], claim, now=now) == []
    assert await take(nodes[0], now=LATER) == []


class Counting(Connection):
    """Remembers how many statements it ran."""

    count = 0

    async def rows(self, text: str, *values: Any) -> Any:
        self.count += 1
        return await super().rows(text, *values)

    async def run(self, text: str) -> None:
        self.count += 1
        await super().run(text)


class Weighing(Connection):
    """Adds up the rows that the statements it runs look at, found or dismissed."""

    rows_seen = 0

    async def rows(self, text: str, *values: Any) -> Any:
        if text.lstrip().startswith(("SELECT", "WITH", "INSERT", "UPDATE", "DELETE")):
            inside = self.raw.is_in_transaction()
            await self.raw.execute("SAVEPOINT weighed" if inside else "BEGIN")
            explained = await self.raw.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) {text}", *values)
            await self.raw.execute("ROLLBACK TO weighed" if inside else "ROLLBACK")
            self.rows_seen += rows_in(json.loads(explained)[0]["Plan"])
        return await super().rows(text, *values)


def rows_in(plan: dict[str, Any]) -> int:
    """What a step of a plan and those below it looked at."""
    here = plan["Actual Rows"] + sum(count for name, count in plan.items() if name.startswith("Rows Removed"))
    return int(here * plan["Actual Loops"]) + sum(map(rows_in, plan.get("Plans", ())))


async def rows_for_a_message(connection: Weighing, key: str, node: int) -> int:
    """How many rows the database looks at for a message with a key, from publish to its end."""
    transactions = Transactions(Ids(node=node), lambda due_at, soon: None)
    # As if it had heard of a gate that opens.
    transactions.opens(NOW)
    road = Road(transactions, Horizon(), Takeovers(time.monotonic, silent_ms=0))
    before = connection.rows_seen
    message = a_message(flow=FlowControl(key=key, parallelism=1))
    await road.publish(connection, [Acceptance([message], NOW, None)])
    (claim,) = (await road.claim_alone(connection, Claiming(TERMS, NOW))).claims
    assert claim.message == message
    attempt = an_attempt(started_at=NOW)
    assert await road.settle(connection, [[settle(claim, attempt, next_id=next_id)]]) == [[]]
    return connection.rows_seen - before


async def test_ten_thousand_behind_closed_gates_cost_others_nothing(
    url: str, nodes: Sequence[Storage], database: Any
) -> None:
    node = nodes[0]
    await node.change_gate(TENANT, GateKind.FLOW, "paused", Configure(paused=True), create=True, now=NOW)
    full = FlowControl(key="full", parallelism=1)
    await accept(node, a_message(flow=full), a_message(queue="q"))
    assert len(await take(node)) == 2
    session = Session(longest_s=5.0, hot=True)
    opened = await connect(target_of(url), session)
    connection = Weighing(opened.raw, target_of(url), session)
    before = await rows_for_a_message(connection, "open", node=200)
    for waiting in ({"flow": FlowControl(key="paused")}, {"flow": full}, {"queue": "q"}):
        for _ in range(4):
            await accept(node, *(a_message(**waiting) for _ in range(1_000)))
    other = Tenant(id=OTHER_TENANT, user_id="o", current_key="a", next_key="b")
    await node.put_tenant(other, now=NOW)
    await node.put_limits(OTHER_TENANT, TenantLimits(max_parallelism=1), now=NOW)
    for _ in range(3):
        await accept(node, *(a_message(tenant=OTHER_TENANT) for _ in range(1_000)))
        await ask_permits(node, await take(node), sift=2_000)
    # What was moved aside leaves dead rows once.
    await database.execute("VACUUM deliveries")
    assert await rows_for_a_message(connection, "open", node=201) <= before + 3
    assert before < 200
    assert await take(nodes[1]) == []
    await connection.close()


async def test_without_a_gate_every_step_of_the_road_is_still_one_statement(
    url: str, nodes: Sequence[Storage]
) -> None:
    await accept(
        nodes[0], a_message(queue="q", not_before=LATER), a_message(flow=FlowControl(key="k", rate=1))
    )
    other = Tenant(id=OTHER_TENANT, user_id="o", current_key="a", next_key="b")
    await nodes[0].put_tenant(other, now=NOW)
    await nodes[0].put_limits(OTHER_TENANT, TenantLimits(max_parallelism=1), now=NOW)
    await accept(nodes[0], *(a_message(tenant=OTHER_TENANT) for _ in range(20)))
    granted, _ = await ask_permits(nodes[0], await take(nodes[0]))
    assert [claim.message.tenant for claim in granted].count(OTHER_TENANT) == 1
    session = Session(longest_s=5.0, hot=True)
    opened = await connect(target_of(url), session)
    connection = Counting(opened.raw, target_of(url), session)
    transactions = Transactions(Ids(node=200), lambda due_at, soon: None)
    road = Road(transactions, Horizon(), Takeovers(time.monotonic, silent_ms=0))
    message = a_message()
    await road.publish(connection, [Acceptance([message], NOW, None)])
    assert connection.count == 1
    (claim,) = (await road.claim_alone(connection, Claiming(TERMS, NOW))).claims
    assert (claim.message, connection.count) == (message, 2)
    attempt = an_attempt(started_at=NOW)
    assert await road.settle(connection, [[settle(claim, attempt, next_id=next_id)]]) == [[]]
    assert connection.count == 3
    await connection.close()
