"""A schema that a newer relay has migrated: what it only added to is lived with, everything else is refused."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from relay.main import open_storage
from storage.copy import CannotCopy, copy, refuse_unfinished
from storage.migrate import Migration, missing, unknown
from storage.postgres.driver import target_of
from storage.protocol import CannotOpen, Storage
from storage.sqlite import driver, file_of, open_accounts
from tests import postgres_server
from tests.builders import NOW, a_message
from tests.contract.steps import LATER, accept, deliver, happenings, take
from tests.contract.test_transfer import a_life, contents, unheard

#: What a newer relay may do within the thousand, to every table.
ADDED = [
    "ALTER TABLE {table} ADD COLUMN of_the_future {text}",
    "ALTER TABLE {table} ADD COLUMN with_a_rule {number} NOT NULL DEFAULT 7",
    "CREATE INDEX {table}_of_the_future ON {table} (of_the_future)",
]


class Database:
    """One database as an administrator sees it, and as a relay does."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._opened: list[Storage] = []

    async def open(self, *, migrate: bool = True) -> Storage:
        storage = await open_storage(self.url, migrate=migrate)
        self._opened.append(storage)
        return storage

    async def close(self) -> None:
        while self._opened:
            await self._opened.pop().close()

    async def execute(self, *statements: str) -> None:
        if self.url.startswith("sqlite:"):
            with closing(driver.connect_beside(file_of(self.url))) as connection:
                for statement in statements:
                    connection.execute(statement)
            return
        target = target_of(self.url)
        connection = await asyncpg.connect(target.dsn, server_settings={"search_path": target.schema})
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()

    async def add(self, storage: Storage, version: int = 999) -> None:
        """What a newer relay would do that starts on it."""
        kinds = {"text": "TEXT", "number": "INTEGER"}
        await self.execute(
            *(step.format(table=table, **kinds) for table in storage.tables for step in ADDED),
            "CREATE TABLE of_the_future (id INTEGER PRIMARY KEY)",
            f"INSERT INTO migrations (version, name) VALUES ({version}, 'of_the_future')",
        )


@pytest.fixture(params=["sqlite", "postgres"])
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    url = f"sqlite:///{tmp_path}/relay.db" if request.param == "sqlite" else postgres_server.url()
    database = Database(url)
    yield database
    await database.close()


async def a_road(storage: Storage) -> None:
    """Publish, claim, deliver, and read about it."""
    before = len(await happenings(storage))
    await accept(storage, a_message())
    assert await deliver(storage, *await take(storage, now=LATER), now=LATER) == []
    assert len(await happenings(storage)) > before
    assert (await storage.stats()).live == 0


async def test_a_relay_that_runs_goes_on_while_a_newer_one_adds_to_the_schema(database: Database) -> None:
    storage = await database.open()
    await a_life(storage)
    await database.add(storage)
    await a_road(storage)
    await storage.ping()


@pytest.mark.parametrize("migrate", [True, False])
async def test_a_relay_starts_and_lives_on_what_a_newer_one_only_added_to(
    database: Database, migrate: bool
) -> None:
    storage = await database.open()
    await a_life(storage)
    held = await contents(storage)
    await database.add(storage)
    assert await storage.unknown_migrations() == [999]
    await database.close()
    again = await database.open(migrate=migrate)
    assert await again.unknown_migrations() == [999]
    assert await contents(again) == held
    await a_road(again)
    # What it writes about everything else, too.
    await again.put_setting("name", "value")
    assert await again.setting("name") == "value"
    assert await again.add_tenant("another", current_key="sig_1", next_key="sig_2", now=NOW) is not None


async def test_a_schema_this_relay_cannot_live_with_is_refused_untouched(database: Database) -> None:
    await database.open()
    await database.close()
    await database.execute("INSERT INTO migrations (version, name) VALUES (1001, 'of_the_future')")
    for migrate in (True, False):
        with pytest.raises(
            CannotOpen, match="has schema version 1001, and this relay, which knows"
        ) as refused:
            await database.open(migrate=migrate)
        assert "backup" not in str(refused.value)
    if database.url.startswith("sqlite:"):
        with pytest.raises(CannotOpen, match="schema version 1001"):
            await open_accounts(database.url)


async def test_those_that_run_already_go_on_when_a_schema_is_migrated_beyond_what_they_can_start_on(
    database: Database,
) -> None:
    storage = await database.open()
    await database.execute("INSERT INTO migrations (version, name) VALUES (1001, 'of_the_future')")
    await a_road(storage)


async def test_accounts_are_served_beside_a_newer_relay(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/relay.db")
    await database.add(await database.open())
    accounts = await open_accounts(database.url)
    assert await accounts.add_tenant("acme", current_key="sig_1", next_key="sig_2", now=NOW) is not None
    await accounts.close()
    await database.close()


@pytest.mark.parametrize("newer", ["source", "target"])
async def test_what_a_newer_relay_has_added_is_not_left_behind_by_a_copy(
    database: Database, tmp_path: Path, newer: str
) -> None:
    other = Database(f"sqlite:///{tmp_path}/other.db")
    here, there = await database.open(), await other.open()
    source, target = (here, there) if newer == "source" else (there, here)
    await accept(source, a_message())
    await database.add(here)
    with pytest.raises(
        CannotCopy, match=f"the {newer} was migrated by a newer relay .*999.*: copy with that one"
    ):
        await copy(source, target, name="here", progress=unheard, starting_over=never)
    assert not any((await contents(target)).values())
    await other.close()


async def test_a_copy_does_not_end_well_when_a_newer_relay_migrates_its_source_meanwhile(
    database: Database, tmp_path: Path
) -> None:
    other = Database(f"sqlite:///{tmp_path}/other.db")
    source, target = await database.open(), await other.open()
    await accept(source, a_message())

    async def migrate() -> None:
        await database.add(source)

    begun: list[asyncio.Task[None]] = []

    def come(table: str, done: int, total: int) -> None:
        if not begun:
            begun.append(asyncio.ensure_future(migrate()))

    class Patient:
        """A target that is done no sooner than the newer relay."""

        def __getattr__(self, name: str) -> object:
            return getattr(target, name)

        async def write_rows(self, table: str, rows: Sequence[Sequence[Any]]) -> None:
            await asyncio.gather(*begun)
            await target.write_rows(table, rows)

    with pytest.raises(CannotCopy, match="the source was migrated by a newer relay"):
        await copy(source, Patient(), name="here", progress=come, starting_over=never)  # type: ignore[arg-type]
    with pytest.raises(CannotOpen, match="unfinished copy of here"):
        await refuse_unfinished(target)
    await other.close()


def never() -> None:
    raise AssertionError("there was nothing to start over")


def known(*versions: int) -> list[Migration]:
    return [Migration(version=version, name="", text="") for version in versions]


@pytest.mark.parametrize(
    ("versions", "applied", "still"),
    [
        ((1, 2), (), [1, 2]),
        ((1, 2), (1,), [2]),
        ((1, 2), (1, 2, 3, 999), []),
        ((1, 2, 1000), (1, 2, 3), [1000]),
        ((1, 2, 1000), (1, 2, 1000, 1999), []),
    ],
)
def test_within_a_thousand_a_newer_schema_leaves_nothing_to_do(
    versions: tuple[int, ...], applied: tuple[int, ...], still: list[int]
) -> None:
    assert [migration.version for migration in missing(known(*versions), applied)] == still


@pytest.mark.parametrize(("versions", "newest"), [((1, 2), 1000), ((1, 2), 5001), ((1, 1001), 2000)])
def test_a_number_of_the_next_thousand_is_refused(versions: tuple[int, ...], newest: int) -> None:
    with pytest.raises(CannotOpen, match=f"schema version {newest}"):
        missing(known(*versions), [*versions, newest])


def test_what_is_unknown_is_told_in_order() -> None:
    assert unknown(known(1, 2), [12, 2, 3]) == [3, 12]
