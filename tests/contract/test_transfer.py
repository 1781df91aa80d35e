"""Everything a database holds comes out as rows and goes into another one, whichever backends the two are."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, cast

import asyncpg
import pytest

from relay.domain.delivery import settle
from relay.domain.gates import Configure, GateKind
from relay.domain.message import Callback, FlowControl, SignedBy
from relay.domain.selection import Selection
from relay.domain.tenant import Principal, Tenant, TenantLimits, Token
from relay.domain.url_group import Endpoint
from storage.copy import CannotCopy, Copied, copy, refuse_unfinished
from storage.postgres import open_postgres
from storage.postgres.driver import target_of
from storage.protocol import CannotOpen, Storage
from storage.sql import transfer
from storage.sqlite import open_sqlite
from tests import postgres_server
from tests.builders import NOW, OTHER_TENANT, TENANT, a_message, an_attempt, next_id
from tests.contract.conftest import BACKENDS
from tests.contract.steps import (
    LATER,
    accept,
    ask_permits,
    bury,
    deliver,
    fail,
    graves,
    happenings,
    start,
    take,
)
from tests.contract.test_schedules import a_firing, a_schedule

HASH = b"\x00hash" * 6


async def a_life(storage: Storage) -> None:
    """Something of everything."""
    for tenant in (TENANT, OTHER_TENANT):
        await storage.put_tenant(
            Tenant(id=tenant, user_id=f"user {tenant}", current_key="sig_1", next_key="sig_2"), now=NOW
        )
    await storage.put_token(HASH, Principal(tenant=OTHER_TENANT, read_only=True), now=NOW)
    acme = await storage.add_tenant("acme", current_key="sig_1", next_key="sig_2", now=NOW)
    assert acme is not None
    await storage.put_limits(acme.id, TenantLimits(max_retries=1), now=NOW)
    await storage.put_disabled(acme.id, at=NOW)
    await storage.put_signed_by(acme.id, SignedBy.BOTH)
    token = Token(hash=b"\x01" * 32, tenant=acme.id, read_only=True, created_at=NOW, expires_at=1, label="ä")
    await storage.issue_token(token)
    await storage.put_setting("généré", "välue")
    await storage.put_schedule(a_schedule(), limit=10)
    endpoint = Endpoint(url="https://example.com/one", name="one")
    assert await storage.put_endpoints(TENANT, "group", [endpoint], max_groups=9, max_endpoints=9, now=NOW)
    schedule = await storage.put_schedule(a_schedule(id="ticking"), limit=10)
    assert schedule is not None
    assert await storage.fire(a_firing(schedule), now=NOW)
    due = a_message(labels=("red", "blue"), body=bytes(range(256)), flow=FlowControl(key="flow"))
    waiting = a_message(not_before=NOW + 50_000, tenant=OTHER_TENANT, dedup_key=b"\xffkey", caller_ip="::1")
    await accept(storage, due, waiting)
    await deliver(storage, *await start(storage, a_message(url="https://ü.example/ä")))
    await fail(storage, *await start(storage, a_message()))
    await bury(storage, a_message(max_retries=0))
    await bury(storage, a_message(max_retries=0, tenant=OTHER_TENANT), status=404)


async def contents(storage: Storage) -> dict[str, Sequence[Any]]:
    """All rows of all tables, whatever order texts have here."""
    return {table: sorted(await rows_of(storage, table), key=repr) for table in storage.tables}


async def rows_of(storage: Storage, table: str, *, limit: int = 1000) -> list[Any]:
    rows: list[Any] = []
    after = None
    while (page := await storage.read_rows(table, after=after, limit=limit)).end is not None:
        assert len(page.rows) <= limit
        rows += page.rows
        after = page.end
    return rows


def unheard(table: str, done: int, total: int) -> None:
    pass


def never() -> None:
    raise AssertionError("there was nothing to start over")


def matching(copied: Sequence[Copied]) -> bool:
    return all(one.source == one.target for one in copied)


@pytest.fixture(params=list(BACKENDS))
async def other(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Storage]:
    """Another database, of each backend."""
    directory = tmp_path / "other"
    directory.mkdir()
    opened = await BACKENDS[request.param](directory)()
    yield opened
    await opened.close()


async def test_a_copy_holds_every_row_of_its_source(storage: Storage, other: Storage) -> None:
    await a_life(storage)
    copied = await copy(storage, other, name="here", progress=unheard, starting_over=never)
    assert matching(copied)
    everything = await contents(storage)
    assert await contents(other) == everything
    assert all(everything.values())
    assert {one.table: one.source for one in copied} == {
        table: len(rows) for table, rows in everything.items()
    }


async def test_life_goes_on_in_a_copy_as_it_would_have_in_its_source(
    storage: Storage, other: Storage
) -> None:
    await a_life(storage)
    await copy(storage, other, name="here", progress=unheard, starting_over=never)
    for one in (storage, other):
        assert await one.principal(HASH) == Principal(tenant=OTHER_TENANT, read_only=True)
        assert await one.setting("généré") == "välue"
    assert await other.stats() == await storage.stats()
    for tenant in (TENANT, OTHER_TENANT):
        assert await happenings(other, tenant=tenant) == await happenings(storage, tenant=tenant)
        assert await graves(other, tenant=tenant) == await graves(storage, tenant=tenant)
        assert await other.schedules(tenant) == await storage.schedules(tenant)
    (red,) = await happenings(other, Selection(labels=("red",)))
    assert await other.message(TENANT, red.message.id) == await storage.message(TENANT, red.message.id)
    claims = await take(other, now=LATER)
    assert [claim.message for claim in claims] == [claim.message for claim in await take(storage, now=LATER)]
    assert await deliver(other, *claims, now=LATER) == []
    assert (await other.stats()).live == 0


async def test_permits_of_a_limited_tenant_are_held_and_waited_for_in_a_copy(
    storage: Storage, other: Storage
) -> None:
    tenant = Tenant(id=TENANT, user_id="user", current_key="sig_1", next_key="sig_2")
    await storage.put_tenant(tenant, now=NOW)
    await storage.put_limits(TENANT, TenantLimits(max_parallelism=1), now=NOW)
    holding, waiting = a_message(), a_message()
    await accept(storage, holding, waiting)
    granted, _ = await ask_permits(storage, await take(storage))
    assert [claim.message for claim in granted] == [holding]
    await copy(storage, other, name="here", progress=unheard, starting_over=never)
    assert await other.in_flight(TENANT, now=NOW) == 1
    # Whoever held it is gone, and whoever takes over has it.
    granted, _ = await ask_permits(other, await take(other, now=NOW + 1), now=NOW + 1)
    assert [claim.message for claim in granted] == [holding]
    assert await deliver(other, *granted) == []
    (claim,) = await take(other, now=NOW + 10)
    assert (claim.message, claim.permit) == (waiting, True)


async def test_a_deduplication_key_still_holds_in_a_copy(storage: Storage, other: Storage) -> None:
    first, second = a_message(dedup_key=b"once"), a_message(dedup_key=b"once")
    await accept(storage, first)
    await copy(storage, other, name="here", progress=unheard, starting_over=never)
    (receipt,) = (await accept(other, second)).receipts
    assert (receipt.message_id, receipt.deduplicated) == (first.id, True)


async def test_what_waits_at_gates_waits_there_in_a_copy_and_new_gates_are_made_beside(
    storage: Storage, other: Storage
) -> None:
    messages = [a_message(queue="q", flow=FlowControl(key="k", parallelism=1)) for _ in range(2)]
    await accept(storage, *messages, a_message(queue="r", not_before=LATER))
    await copy(storage, other, name="here", progress=unheard, starting_over=never)
    assert await other.queues(TENANT) == await storage.queues(TENANT)
    assert await other.change_gate(
        TENANT, GateKind.QUEUE, "another", Configure(paused=True), create=True, now=NOW
    )
    for now, message in zip((NOW + 100, NOW + 200), messages, strict=True):
        (claim,) = await take(other, now=now)
        assert claim.message == message
        await deliver(other, claim, now=now)
    assert [gate.members for gate in await other.queues(TENANT)] == [0, 0, 1]


async def test_a_lane_that_is_kept_for_a_callback_is_kept_in_a_copy(storage: Storage, other: Storage) -> None:
    second = a_message(queue="q")
    await accept(storage, a_message(queue="q", callback=Callback(url="https://example.com")), second)
    await deliver(storage, *await take(storage))
    await copy(storage, other, name="here", progress=unheard, starting_over=never)
    (report,) = await take(other, now=NOW + 100)
    assert report.message.lane_of is not None
    assert await take(other, now=NOW + 100) == []
    await deliver(other, report, now=NOW + 100)
    assert [claim.message for claim in await take(other, now=NOW + 200)] == [second]


async def test_what_a_dead_relay_held_is_due_at_once_and_its_lease_counts_as_lost(
    storage: Storage, other: Storage
) -> None:
    (held,) = await start(storage, a_message())
    await copy(storage, other, name="here", progress=unheard, starting_over=never)
    assert await take(storage) == []
    (claim,) = await take(other)
    assert (claim.message, claim.claim_no, claim.lost_leases) == (held.message, held.claim_no + 1, 1)
    assert await other.settle([settle(held, an_attempt(), next_id=next_id)]) == [held.message.id]


async def test_an_interrupted_copy_goes_on_where_it_was(storage: Storage, other: Storage) -> None:
    await a_life(storage)
    for table in storage.tables:

        def interrupt(at: str, done: int, total: int, table: str = table) -> None:
            if at == table and done == total:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            await copy(storage, other, name="here", progress=interrupt, starting_over=never)
        with pytest.raises(CannotOpen, match="unfinished copy"):
            await refuse_unfinished(other)
    assert matching(await copy(storage, other, name="here", progress=unheard, starting_over=never))
    await refuse_unfinished(other)
    assert await contents(other) == await contents(storage)
    assert await other.stats() == await storage.stats()


async def test_a_copy_goes_on_after_the_last_row_it_wrote(storage: Storage, other: Storage) -> None:
    messages = sorted((a_message() for _ in range(5)), key=lambda message: message.id)
    await accept(storage, *messages)
    page = await storage.read_rows("messages", after=None, limit=3)
    await other.write_rows("messages", page.rows)
    assert await other.last_row("messages") == page.end == (messages[2].id,)
    rest = await storage.read_rows("messages", after=page.end, limit=3)
    assert [row[0] for row in rest.rows] == [message.id for message in messages[3:]]


async def test_progress_is_told_up_to_the_whole_of_each_table(storage: Storage, other: Storage) -> None:
    await accept(storage, *(a_message(labels=("one",)) for _ in range(2500)))
    heard: list[tuple[str, int, int]] = []
    await copy(storage, other, name="here", progress=lambda *step: heard.append(step), starting_over=never)
    assert [step for step in heard if step[0] == "messages"] == [
        ("messages", done, 2500) for done in (0, 1000, 2000, 2500)
    ]
    assert {table for table, _, _ in heard} == set(storage.tables)


async def test_pages_of_any_size_hold_every_row_once(storage: Storage) -> None:
    await a_life(storage)
    for table in storage.tables:
        rows = await rows_of(storage, table)
        assert len(rows) == await storage.count_rows(table)
        for limit in (1, 2, 3):
            assert await rows_of(storage, table, limit=limit) == rows


async def test_a_page_of_wide_rows_is_short(storage: Storage) -> None:
    await accept(storage, *(a_message(body=bytes(1 << 20)) for _ in range(6)))
    await accept(storage, a_message(body=bytes(9 << 20)))
    sizes = []
    after = None
    while (page := await storage.read_rows("messages", after=after, limit=1000)).end is not None:
        sizes.append(len(page.rows))
        after = page.end
    assert sizes == [4, 3]


async def test_rows_written_twice_are_there_and_counted_once(storage: Storage, other: Storage) -> None:
    await a_life(storage)
    for _ in range(2):
        for table in storage.tables:
            await other.write_rows(table, await rows_of(storage, table))
    assert await contents(other) == await contents(storage)
    assert await other.stats() == await storage.stats()


async def test_a_target_that_holds_anything_is_refused_and_left_as_it_was(
    storage: Storage, other: Storage
) -> None:
    await a_life(storage)
    await accept(other, a_message())
    before = await contents(other)
    with pytest.raises(CannotCopy, match=r"not empty: its table .* to copy here, ") as refused:
        await copy(storage, other, name="here", progress=unheard, starting_over=never)
    assert str(refused.value).endswith(other.emptied_by)
    assert await contents(other) == before
    await refuse_unfinished(other)


async def test_a_finished_copy_is_a_database_like_any_other(storage: Storage, other: Storage) -> None:
    await a_life(storage)
    await copy(storage, other, name="here", progress=unheard, starting_over=never)
    with pytest.raises(CannotCopy, match="not empty"):
        await copy(storage, other, name="here", progress=unheard, starting_over=never)


async def _half(source: Storage, target: Storage) -> None:
    def interrupt(table: str, done: int, total: int) -> None:
        if table == "messages":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await copy(source, target, name="here", progress=interrupt, starting_over=never)


async def test_an_unfinished_copy_goes_on_from_nothing_but_its_source(
    storage: Storage, other: Storage
) -> None:
    await a_life(storage)
    await _half(storage, other)
    before = await contents(other)
    with pytest.raises(
        CannotCopy, match="holds an unfinished copy of here, and this is there: end that one, or"
    ):
        await copy(storage, other, name="there", progress=unheard, starting_over=never)
    with pytest.raises(CannotCopy, match="itself an unfinished copy"):
        await copy(other, storage, name="there", progress=unheard, starting_over=never)
    assert await contents(other) == before


async def test_a_copy_whose_source_was_used_since_it_was_interrupted_starts_over(
    storage: Storage, other: Storage
) -> None:
    await a_life(storage)
    with pytest.raises(KeyboardInterrupt):
        await copy(storage, other, name="here", progress=_interrupt_at_the_end, starting_over=never)
    assert all((await contents(other)).values())
    await deliver(storage, *await take(storage, now=LATER), now=LATER)
    await bury(storage, a_message(max_retries=0))
    await accept(storage, a_message(queue="q"))
    said: list[str] = []
    copied = await copy(
        storage, other, name="here", progress=unheard, starting_over=lambda: said.append("starting over")
    )
    assert said == ["starting over"]
    assert matching(copied)
    await refuse_unfinished(other)
    assert await contents(other) == await contents(storage)
    assert await other.stats() == await storage.stats()


async def test_a_copy_starts_over_when_only_keys_were_rotated_since(storage: Storage, other: Storage) -> None:
    await a_life(storage)
    with pytest.raises(KeyboardInterrupt):
        await copy(storage, other, name="here", progress=_interrupt_at_the_end, starting_over=never)
    assert await storage.rotate_keys(TENANT, fresh="sig_fresh") is not None
    said: list[str] = []
    await copy(
        storage, other, name="here", progress=unheard, starting_over=lambda: said.append("starting over")
    )
    assert said == ["starting over"]
    assert await contents(other) == await contents(storage)


async def test_what_is_cleared_is_empty_and_still_an_unfinished_copy(
    storage: Storage, other: Storage
) -> None:
    await a_life(storage)
    with pytest.raises(KeyboardInterrupt):
        await copy(storage, other, name="here", progress=_interrupt_at_the_end, starting_over=never)
    assert (await other.stats()).live
    await other.clear()
    assert not any((await contents(other)).values())
    stats = await other.stats()
    assert (stats.live, stats.dead_letters, stats.oldest_due_at) == (0, 0, None)
    with pytest.raises(CannotOpen, match="unfinished copy of here"):
        await refuse_unfinished(other)


def _interrupt_at_the_end(table: str, done: int, total: int) -> None:
    if table == "deliveries" and done == total:
        raise KeyboardInterrupt


async def test_a_source_that_is_used_while_it_is_copied_is_noticed(storage: Storage, other: Storage) -> None:
    await a_life(storage)
    due = await take(storage, now=LATER)
    using: list[asyncio.Future[Any]] = []

    def use(table: str, done: int, total: int) -> None:
        if not using:
            using.append(asyncio.ensure_future(deliver(storage, *due, now=LATER)))

    class Patient:
        """A target that is done no sooner than whoever uses the source."""

        def __getattr__(self, name: str) -> object:
            return getattr(other, name)

        async def write_rows(self, table: str, rows: Sequence[Sequence[Any]]) -> None:
            await asyncio.gather(*using)
            await other.write_rows(table, rows)

    with pytest.raises(CannotCopy, match="the source was used while it was copied"):
        await copy(storage, Patient(), name="here", progress=use, starting_over=never)  # type: ignore[arg-type]
    with pytest.raises(CannotOpen, match="unfinished copy"):
        await refuse_unfinished(other)


async def test_a_database_that_others_use_is_neither_copied_nor_copied_to(other: Storage) -> None:
    url = postgres_server.url()
    shared = await open_postgres(url)
    relay = await open_postgres(url)
    try:
        assert await shared.other_users() == 1
        with pytest.raises(CannotCopy, match="the source is in use by a relay"):
            await copy(shared, other, name="here", progress=unheard, starting_over=never)
        with pytest.raises(CannotCopy, match="the target is in use by a relay"):
            await copy(other, shared, name="here", progress=unheard, starting_over=never)
        await relay.close()
        assert await shared.other_users() == 0
        assert matching(await copy(other, shared, name="here", progress=unheard, starting_over=never))
    finally:
        await relay.close()
        await shared.close()


class _Joined:
    """A target on which a relay starts while it is being looked at."""

    def __init__(self, storage: Storage, join: Callable[[], Awaitable[Storage]]) -> None:
        self._storage = storage
        self._join = join
        self.relay: Storage | None = None

    def __getattr__(self, verb: str) -> object:
        return getattr(self._storage, verb)

    async def put_setting(self, name: str, value: str) -> None:
        if self.relay is None:
            self.relay = await self._join()
        await self._storage.put_setting(name, value)


async def test_a_relay_that_starts_on_the_target_just_before_the_note_is_there_is_noticed(
    other: Storage,
) -> None:
    url = postgres_server.url()
    shared = await open_postgres(url)
    target = _Joined(shared, lambda: open_postgres(url))
    await accept(other, a_message())
    try:
        with pytest.raises(CannotCopy, match="the target is in use by a relay"):
            await copy(other, cast(Storage, target), name="here", progress=unheard, starting_over=never)
        await refuse_unfinished(shared)
        assert await shared.count_rows("messages") == 0
    finally:
        if target.relay is not None:
            await target.relay.close()
        await shared.close()


#: Tables that are about one database and its processes.
OWN = {"migrations", "nodes", "depths"}


async def test_every_column_of_every_table_is_carried(tmp_path: Path) -> None:
    path = tmp_path / "relay.db"
    await (await open_sqlite(f"sqlite:///{path}")).close()
    with sqlite3.connect(path) as database:
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        lite = {
            table: {row[1] for row in database.execute(f"PRAGMA table_info({table})")}
            for table in tables
            if not table.startswith("sqlite_")
        }
    database.close()
    url = postgres_server.url()
    opened = await open_postgres(url)
    carried = {table: set(transfer.columns(table)) for table in opened.tables}
    await opened.close()
    connection = await asyncpg.connect(target_of(url).dsn)
    rows = await connection.fetch(
        "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = $1",
        target_of(url).schema,
    )
    await connection.close()
    post: dict[str, set[str]] = {}
    for table, column in rows:
        post.setdefault(table, set()).add(column)
    for found in (lite, post):
        assert {table: columns for table, columns in found.items() if table not in OWN} == carried
