"""The depths on PostgreSQL stay known, and cheap to know, however much is written and whoever asks."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import asyncpg
import pytest

from storage.postgres import ledger, open_postgres
from storage.postgres.driver import target_of
from storage.postgres.storage import PostgresStorage
from tests import postgres_server
from tests.builders import TENANT, a_message
from tests.contract.steps import accept, bury, start


@pytest.fixture
def url() -> str:
    return postgres_server.url()


@pytest.fixture
async def nodes(url: str) -> AsyncIterator[Sequence[PostgresStorage]]:
    opened = [await open_postgres(url) for _ in range(3)]
    yield opened
    await asyncio.gather(*(node.close() for node in opened))


@pytest.fixture
async def database(url: str, nodes: Sequence[PostgresStorage]) -> AsyncIterator[Any]:
    target = target_of(url)
    connection = await asyncpg.connect(target.dsn, server_settings={"search_path": target.schema})
    yield connection
    await connection.close()


async def fold_all(node: PostgresStorage) -> int:
    """Until it says that there is no more; in how many bites."""
    bites = 1
    while await node.fold():
        bites += 1
    return bites


async def depths(nodes: Sequence[PostgresStorage]) -> set[tuple[int | None, int | None]]:
    counts = await asyncio.gather(*(node.stats() for node in nodes))
    return {(stats.live, stats.dead_letters) for stats in counts}


async def test_all_nodes_count_alike_before_and_after_a_long_ledger_is_folded(
    nodes: Sequence[PostgresStorage], database: Any
) -> None:
    await database.execute("INSERT INTO depths SELECT 1, 2 FROM generate_series(1, 150000)")
    await asyncio.gather(*(accept(nodes[n % 3], a_message()) for n in range(12)))
    assert await depths(nodes) == {(150_012, 300_000)}
    # What is asked for is not what folds: nobody waits for it.
    assert await database.fetchval("SELECT count(*) FROM depths") > 150_000
    assert await fold_all(nodes[0]) == 4
    assert await depths(nodes) == {(150_012, 300_000)}
    assert await database.fetchval("SELECT count(*) FROM depths") < 100


async def test_what_is_written_while_several_fold_is_counted_once(
    nodes: Sequence[PostgresStorage], database: Any
) -> None:
    await database.execute("INSERT INTO depths SELECT 1, 0 FROM generate_series(1, 100000)")

    async def write() -> None:
        for _ in range(40):
            await accept(nodes[2], a_message())

    async def look() -> None:
        for _ in range(40):
            ((live, _),) = await depths(nodes[2:])
            assert live is not None
            assert 100_000 <= live <= 100_040

    await asyncio.gather(write(), look(), *(fold_all(node) for node in nodes))
    assert await depths(nodes) == {(100_040, 0)}


async def test_a_short_ledger_is_left_alone(nodes: Sequence[PostgresStorage], database: Any) -> None:
    await accept(nodes[0], a_message())
    await bury(nodes[1], a_message(max_retries=0))
    lines = await database.fetch("SELECT ctid, * FROM depths ORDER BY ctid")
    assert await fold_all(nodes[0]) == 1
    assert await database.fetch("SELECT ctid, * FROM depths ORDER BY ctid") == lines


async def test_while_the_sum_is_not_to_be_had_it_is_unknown_and_all_else_is_answered(
    nodes: Sequence[PostgresStorage], database: Any
) -> None:
    await start(nodes[0], a_message())
    await accept(nodes[0], a_message(not_before=7))
    async with database.transaction():
        # As a ledger does that takes too long to add up: whoever adds it up waits.
        await database.execute("LOCK TABLE depths IN ACCESS EXCLUSIVE MODE")
        scrapes = [asyncio.create_task(nodes[0].stats()) for _ in range(8)]
        async with asyncio.timeout(5 * ledger.LONGEST_S):
            while not await database.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
                assert not any(scrape.done() for scrape in scrapes)
            assert await nodes[0].tenant(TENANT) is None
            assert not any(scrape.done() for scrape in scrapes)
            found = await asyncio.gather(*scrapes)
    assert {(stats.live, stats.dead_letters) for stats in found} == {(None, None)}
    assert {stats.oldest_due_at is not None for stats in found} == {True}
    assert await depths(nodes) == {(2, 0)}


async def test_what_a_long_ledger_leaves_empty_is_given_back(
    nodes: Sequence[PostgresStorage], database: Any
) -> None:
    pages = "SELECT pg_relation_size('depths') / current_setting('block_size')::integer"
    await database.execute("INSERT INTO depths SELECT 1, 0 FROM generate_series(1, 800000)")
    before = await database.fetchval(pages)
    assert before > ledger.LONG
    # The first that comes by makes room at the front, which the second moves to what is left at the end.
    for node in nodes:
        await fold_all(node)
    assert await database.fetchval(pages) < before // 100
    assert await depths(nodes) == {(800_000, 0)}
