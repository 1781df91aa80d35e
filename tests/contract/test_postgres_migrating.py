"""A migration never stops those who use the tables: it takes its turn, or says who is in its way."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from storage.postgres import driver, open_postgres, schema
from storage.postgres.driver import Connection, Session, target_of
from storage.postgres.storage import PostgresStorage
from storage.protocol import CannotOpen
from tests import postgres_server
from tests.builders import a_message
from tests.contract.steps import accept

#: What takes the migration of permits back.
_BEFORE_PERMITS = """
    DELETE FROM migrations WHERE version = 7;
    ALTER TABLE gated DROP COLUMN owner;
    ALTER TABLE gated ADD CONSTRAINT gated_check
        CHECK (queue IS NOT NULL OR flow IS NOT NULL OR crowd IS NOT NULL);
"""


@pytest.fixture
def url() -> str:
    return postgres_server.url()


@pytest.fixture
async def running(url: str) -> AsyncIterator[PostgresStorage]:
    """What uses the tables already when a newer version comes."""
    opened = await open_postgres(url)
    yield opened
    await opened.close()


@pytest.fixture
async def reader(url: str, running: PostgresStorage) -> AsyncIterator[Any]:
    """Somebody who reads, at a schema that is to be migrated."""
    target = target_of(url)
    connection = await asyncpg.connect(
        target.dsn, server_settings={"search_path": target.schema, "application_name": "a backup"}
    )
    await connection.execute(_BEFORE_PERMITS)
    yield connection
    await connection.close()


@pytest.fixture
async def opening(url: str, reader: Any) -> AsyncIterator[Connection]:
    connection = await driver.connect(target_of(url), Session(longest_s=60.0))
    yield connection
    connection.terminate()


async def versions(reader: Any) -> list[int]:
    return [row[0] for row in await reader.fetch("SELECT version FROM migrations ORDER BY version")]


async def test_who_publishes_while_a_migration_waits_for_a_reader_is_not_stopped(
    url: str, running: PostgresStorage, reader: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async with reader.transaction():
        await reader.execute("LOCK TABLE gates, gated IN ACCESS SHARE MODE")
        newer = asyncio.create_task(open_postgres(url))
        async with asyncio.timeout(30):
            # Each of these is one that could have queued behind the migration for as long as the reader reads.
            while len(caplog.records) < 2:
                await accept(running, a_message(queue="q"))
                assert not newer.done()
        pid = reader.get_server_pid()
        assert f"process {pid} (a backup) uses gate" in caplog.records[0].getMessage()
        assert 7 not in await versions(reader)
    async with asyncio.timeout(30):
        await (await newer).close()
    assert 7 in await versions(reader)


async def test_several_that_start_while_a_reader_reads_all_start_when_it_has_ended(
    url: str, running: PostgresStorage, reader: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async with reader.transaction():
        await reader.execute("LOCK TABLE gated IN ACCESS SHARE MODE")
        starting = [asyncio.create_task(open_postgres(url)) for _ in range(3)]
        async with asyncio.timeout(30):
            while not caplog.records:
                await accept(running, a_message(queue="q"))
    async with asyncio.timeout(30):
        for one in starting:
            await (await one).close()
    assert len(await versions(reader)) == len(set(await versions(reader)))


async def test_a_migration_that_waits_for_too_long_is_given_up_and_says_who_was_in_its_way(
    url: str, reader: Any, opening: Connection
) -> None:
    before = await versions(reader)
    async with reader.transaction():
        await reader.execute("LOCK TABLE gated IN ACCESS SHARE MODE")
        pid = reader.get_server_pid()
        with pytest.raises(
            CannotOpen, match=rf"process {pid} \(a backup\) uses gated, in a transaction \d+ s"
        ):
            await schema.prepare(opening, target_of(url), migrate=True, patience_s=0.1)
    assert await versions(reader) == before
    await schema.prepare(opening, target_of(url), migrate=True)
    assert await versions(reader) == [*before, 7]
