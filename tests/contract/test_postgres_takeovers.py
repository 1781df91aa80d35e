"""Leases that look lost to whoever knows first how late it is: they are left alone until everybody knows."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import asyncpg
import pytest

from relay.clock import SharedClock
from relay.domain.delivery import Claim, Lease
from relay.domain.errors import Unavailable
from relay.domain.message import FlowControl, MessageId
from storage.postgres import open_postgres, schema
from storage.postgres.driver import target_of
from storage.postgres.storage import PostgresStorage
from storage.postgres.takeovers import REST_S, Takeovers
from storage.protocol import Storage
from tests import postgres_server
from tests.builders import TENANT, a_message
from tests.contract.steps import LEASE_MS, accept, start, take

#: More than a lease.
STEP_MS = 45_000

Open = Callable[[SharedClock], Awaitable[PostgresStorage]]


class Steady:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def wall() -> int:
    return time.time_ns() // 1_000_000


@pytest.fixture
def url() -> str:
    return postgres_server.url()


@pytest.fixture
async def join(url: str) -> AsyncIterator[Open]:
    """Opens one more node on this test's database, with a clock of its own."""
    opened: list[PostgresStorage] = []

    async def join(clock: SharedClock) -> PostgresStorage:
        opened.append(await open_postgres(url, clock=clock))
        return opened[-1]

    yield join
    await asyncio.gather(*(node.close() for node in opened))


@pytest.fixture
async def database(url: str) -> AsyncIterator[Any]:
    target = target_of(url)
    connection = await asyncpg.connect(target.dsn, server_settings={"search_path": target.schema})
    yield connection
    await connection.close()


def test_after_a_step_of_the_clock_nothing_is_taken_over_until_everybody_had_time_to_notice() -> None:
    steady = Steady()
    takeovers = Takeovers(steady, silent_ms=0)
    assert takeovers.allowed(LEASE_MS)
    takeovers.corrected(STEP_MS)
    assert not takeovers.allowed(LEASE_MS)
    steady.now += REST_S - 1
    assert not takeovers.allowed(LEASE_MS)
    takeovers.corrected(STEP_MS)
    steady.now += REST_S - 1
    takeovers.corrected(0)
    assert not takeovers.allowed(LEASE_MS)
    steady.now += 1
    assert takeovers.allowed(LEASE_MS)


def test_a_clock_set_back_or_corrected_by_a_little_delays_no_takeover() -> None:
    takeovers = Takeovers(Steady(), silent_ms=0)
    for by_ms in (0, 1, 900, -1, -STEP_MS):
        takeovers.corrected(by_ms)
        assert takeovers.allowed(LEASE_MS)


def test_who_opens_the_database_waits_for_others_that_may_not_know_how_late_it_is() -> None:
    steady = Steady()
    takeovers = Takeovers(steady, silent_ms=LEASE_MS // 2)
    assert not takeovers.allowed(LEASE_MS)
    # The others have longer leases, of which half is left.
    assert takeovers.allowed(2 * LEASE_MS)
    steady.now += REST_S
    assert takeovers.allowed(LEASE_MS)


async def test_a_node_that_notices_a_step_first_leaves_the_leases_of_the_others_alone_and_takes_what_is_due(
    join: Open,
) -> None:
    clock = SharedClock()
    first, second = await join(clock), await join(SharedClock())
    # To the nodes it is the database that goes ahead of them.
    before = wall() - STEP_MS
    clock.correct(-STEP_MS)
    keyed = FlowControl(key="k", parallelism=1)
    held = await start(second, a_message(not_before=before), now=before)
    held = [*held, *await start(second, a_message(not_before=before, flow=keyed), now=before)]
    assert len(held) == 2
    await until_corrected(clock)
    behind = a_message(not_before=before, flow=keyed)
    due = a_message(not_before=before)
    await accept(second, behind, due, now=before)
    assert ids(await take(first, now=clock.now())) == [due.id]
    key = await first.flow_key(TENANT, "k", now=clock.now())
    assert key is not None
    assert key.gate.held == 1
    # So the others find all that is theirs when they notice.
    leases = [Lease(tenant=TENANT, message_id=claim.message.id, claim_no=claim.claim_no) for claim in held]
    assert await second.renew(leases, until=wall() + LEASE_MS) == []


async def test_a_node_that_comes_after_a_step_leaves_alone_what_others_hold_that_have_not_noticed(
    join: Open, database: Any
) -> None:
    old = await join(SharedClock())
    await old.listening()
    held, due = await hold_and_wait(old)
    await forget_to_notice(database)
    fresh = await join(SharedClock())
    assert ids(await take(fresh, now=wall())) == [due]
    assert ids(await take(old, now=wall())) == [held]


async def test_a_sign_of_life_does_not_hide_that_a_step_was_not_noticed(join: Open) -> None:
    clock = SharedClock()
    old = await join(clock)
    await old.listening()
    await old.ping()
    held, due = await hold_and_wait(old)
    # To this node it is the database that goes ahead of it; it is asked before it has measured that.
    clock.correct(-STEP_MS)
    with contextlib.suppress(Unavailable):
        await old.ping()
    fresh = await join(SharedClock())
    assert ids(await take(fresh, now=wall())) == [due]
    assert ids(await take(old, now=wall())) == [held]


async def test_a_node_that_comes_when_nobody_else_is_there_takes_over_at_once(
    join: Open, database: Any, url: str
) -> None:
    old = await join(SharedClock())
    await old.listening()
    held, due = await hold_and_wait(old)
    await old.close()
    await forget_to_notice(database)
    async with database.transaction():
        # Until the server has noticed that its sessions are gone.
        await database.execute(schema.advisory_lock(target_of(url).schema, schema.ALIVE))
    fresh = await join(SharedClock())
    assert set(ids(await take(fresh, now=wall()))) == {held, due}


async def hold_and_wait(node: Storage) -> tuple[MessageId, MessageId]:
    """Something that is leased by the time before a step, and something that is due."""
    before = wall() - STEP_MS
    held, due = a_message(not_before=before), a_message(not_before=before)
    assert ids(await start(node, held, now=before)) == [held.id]
    await accept(node, due, now=before)
    return held.id, due.id


async def forget_to_notice(database: Any) -> None:
    """Somebody showed no sign of life since the step."""
    await database.execute(
        "INSERT INTO nodes VALUES (200, 'node_200', clock_timestamp() - make_interval(secs => $1))",
        STEP_MS / 1000,
    )


async def until_corrected(clock: SharedClock) -> None:
    async with asyncio.timeout(REST_S):
        await clock.wait(asyncio.Event(), clock.now() + STEP_MS - 5_000)


def ids(claims: Sequence[Claim]) -> list[MessageId]:
    return [claim.message.id for claim in claims]
