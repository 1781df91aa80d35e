"""Behind a pooler in transaction mode: storage keeps nothing in a session, or the pooler would notice."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import asyncpg
import pytest

from relay.domain.errors import Unavailable
from storage.postgres import driver, open_postgres
from storage.postgres.driver import Session, target_of
from storage.protocol import CannotOpen, Storage
from tests import postgres_server
from tests.builders import NOW, TENANT, a_message
from tests.contract.steps import EVERYTHING, accept, bury, deliver, fail, start, take
from tests.pooler import Pooler, a_pooler, through

SESSION = Session(longest_s=5)


@pytest.fixture(scope="module")
def server() -> Iterator[postgres_server.Server]:
    """A server that a test may stop."""
    server = postgres_server.Server()
    server.start()
    yield server
    server.remove()


@pytest.fixture
async def pooler(server: postgres_server.Server) -> AsyncIterator[Pooler]:
    async with a_pooler(server.socket) as pooler:
        yield pooler


@pytest.fixture
def url(server: postgres_server.Server, pooler: Pooler) -> str:
    return through(pooler, server.url())


@pytest.fixture
async def client(url: str) -> AsyncIterator[Any]:
    """Somebody else who uses the pooler."""
    connection = await asyncpg.connect(target_of(url).dsn, statement_cache_size=0)
    yield connection
    connection.terminate()


# What this pooler does to those who keep something.


@pytest.mark.parametrize(
    ("keeping", "left"),
    [
        ("SET search_path = relay", "setting search_path"),
        ("LISTEN relay_work", "listening to relay_work"),
        ("SELECT pg_advisory_lock(1)", "advisory lock"),
        ("PREPARE mine AS SELECT 1", "prepared mine"),
        ("CREATE TEMP TABLE mine (a integer)", "table mine"),
        ("DECLARE mine CURSOR WITH HOLD FOR SELECT 1", "cursor mine"),
    ],
)
async def test_what_a_client_keeps_in_a_session_is_found_there(
    client: Any, pooler: Pooler, keeping: str, left: str
) -> None:
    assert await pooler.left_behind() == []
    await client.execute(keeping)
    assert await pooler.left_behind() == [left]


async def test_no_transaction_finds_what_the_one_before_has_kept(client: Any) -> None:
    await client.execute("SET search_path = elsewhere")
    assert await client.fetchval("SHOW search_path") == '"$user", public'
    await client.execute("PREPARE mine AS SELECT 1")
    with pytest.raises(asyncpg.InvalidSQLStatementNameError):
        await client.execute("EXECUTE mine")


async def test_a_transaction_stays_in_one_session_and_the_next_is_in_another(client: Any) -> None:
    async with client.transaction():
        first = await backend_of(client)
        assert await backend_of(client) == first
    await client.execute("BEGIN")
    assert await backend_of(client) != first


async def test_nobody_gets_the_transaction_of_a_client_that_has_gone(
    url: str, client: Any, pooler: Pooler
) -> None:
    gone = await asyncpg.connect(target_of(url).dsn, statement_cache_size=0)
    await gone.execute("BEGIN; CREATE TABLE half_done (a integer)")
    gone.terminate()
    for _ in range(2 * pooler.sessions):
        async with client.transaction():
            assert await client.fetchval("SELECT to_regclass('half_done')") is None


# What storage does.


async def test_without_being_told_of_the_pooler_storage_refuses_to_open_and_says_how_to_tell(
    url: str,
) -> None:
    with pytest.raises(CannotOpen, match=r"unsupported startup parameter.*add pooler=transaction to its URL"):
        await open_postgres(url.replace("&pooler=transaction", ""))


async def test_settings_are_those_of_a_transaction_and_not_of_the_session(url: str, pooler: Pooler) -> None:
    target = target_of(url)
    connection = await driver.connect(target, SESSION)
    path = "SELECT current_setting('search_path'), current_setting('statement_timeout')"
    (inside,) = await connection.rows(path)
    assert tuple(inside) == (target.schema, "5s")
    for _ in range(2 * pooler.sessions):
        await connection.raw.execute("BEGIN")
        (outside,) = await connection.raw.fetch(path)
        await connection.raw.execute("COMMIT")
        assert tuple(outside) == ('"$user", public', "0")
    connection.terminate()


async def test_the_whole_road_leaves_nothing_in_any_session(url: str, pooler: Pooler) -> None:
    storage = await open_postgres(url)
    plain, keyed, doomed = a_message(labels=("l",)), a_message(dedup_key=b"k" * 16), a_message(max_retries=0)
    await deliver(storage, *await start(storage, plain))
    await accept(storage, keyed)
    assert (await accept(storage, a_message(dedup_key=b"k" * 16))).receipts[0].deduplicated
    letter = await bury(storage, doomed)
    await fail(storage, *await take(storage))
    assert await storage.cancel(TENANT, EVERYTHING, limit=None, now=NOW) == [keyed.id]
    again = a_message()
    assert await storage.redrive(TENANT, [(letter.id, again)], now=NOW) == [again.id]
    await storage.ping()
    stats = await storage.stats()
    assert (stats.live, stats.dead_letters) == (1, 0)
    await storage.close()
    assert pooler.passed > 20
    assert await pooler.left_behind() == []


async def test_a_statement_that_takes_too_long_is_cancelled_in_the_session_it_runs_in(
    server: postgres_server.Server, url: str
) -> None:
    administrator = await asyncpg.connect(target_of(server.url()).dsn)
    running = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(50)' AND state = 'active'"
    connection = await driver.connect(target_of(url), SESSION)
    hung = asyncio.create_task(connection.raw.execute("SELECT pg_sleep(50)", timeout=1.0))
    async with asyncio.timeout(20):
        with pytest.raises(TimeoutError):
            await hung
        while await administrator.fetchval(running):
            await asyncio.sleep(0.01)
    connection.terminate()
    await administrator.close()


async def test_while_the_pooler_has_no_server_storage_is_unavailable_and_then_goes_on(
    server: postgres_server.Server, url: str
) -> None:
    """Not every refusal at the door is about settings: pgbouncer has one SQLSTATE for all of them."""
    storage = await open_postgres(url)
    await accept(storage, a_message())
    await asyncio.to_thread(server.stop)
    try:
        for _ in range(3):
            with pytest.raises(Unavailable):
                await accept(storage, a_message())
            with pytest.raises(Unavailable):
                await storage.ping()
        with pytest.raises(Unavailable):
            await open_postgres(url)
    finally:
        await asyncio.to_thread(server.start)
    await _until_accepted(storage)
    assert len(await take(storage)) == 2
    await storage.close()


async def _until_accepted(storage: Storage) -> None:
    async with asyncio.timeout(20):
        while True:
            try:
                await accept(storage, a_message())
                return
            except Unavailable:
                # What a client does that was told to come again.
                await asyncio.sleep(0.05)


async def backend_of(client: Any) -> int:
    return int(await client.fetchval("SELECT pg_backend_pid()"))
