"""Commands about accounts, on a SQLite file that a relay has open, or that is none."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from relay.domain.tenant import Principal, Token
from storage.protocol import CannotOpen
from storage.sqlite import driver, open_accounts, open_sqlite
from storage.sqlite.accounts import SqliteAccounts
from tests.builders import NOW, TENANT, a_message
from tests.contract.steps import accept, take

HASH = b"h" * 32
SOUND, UNSOUND = (3, 51, 3), (3, 51, 2)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "relay.db"


def a_token() -> Token:
    return Token(hash=HASH, tenant=TENANT, read_only=False, created_at=NOW)


async def beside(path: Path) -> SqliteAccounts:
    return await open_accounts(f"sqlite:///{path}", version=SOUND)


async def test_what_is_written_beside_a_relay_is_there_for_it_at_once_and_the_other_way_round(
    path: Path,
) -> None:
    relay = await open_sqlite(str(path))
    accounts = await beside(path)
    for number in range(20):
        tenant = await accounts.add_tenant(f"t{number}", current_key="a", next_key="b", now=NOW)
        assert tenant is not None
        assert await relay.tenant(tenant.id) == tenant
        await accept(relay, a_message())
        assert await relay.rotate_keys(tenant.id, fresh="c") == (await accounts.tenants())[-1]
    await accounts.issue_token(a_token())
    assert await relay.principal(HASH) == Principal(tenant=TENANT)
    await accounts.close()
    assert len(await take(relay)) == 20
    await relay.close()


async def test_a_relay_goes_on_when_a_command_is_killed_in_its_transaction(path: Path) -> None:
    relay = await open_sqlite(str(path))
    with closing(driver.connect_beside(path)) as command:
        command.execute("BEGIN IMMEDIATE")
        command.execute("DELETE FROM settings")
    await relay.put_setting("name", "value")
    assert await relay.setting("name") == "value"
    await relay.close()


async def test_a_command_leaves_the_log_to_the_relay(path: Path) -> None:
    relay = await open_sqlite(str(path))
    accounts = await beside(path)
    before = path.read_bytes()
    for number in range(20):
        await accounts.add_tenant(f"t{number}", current_key="a", next_key="b", now=NOW)
    await accounts.close()
    assert path.read_bytes() == before
    await relay.close()
    reopened = await open_sqlite(str(path))
    assert len(await reopened.tenants()) == 20
    await reopened.close()


async def test_a_command_does_not_keep_a_relay_from_starting(path: Path) -> None:
    await (await open_sqlite(str(path))).close()
    accounts = await beside(path)
    relay = await open_sqlite(str(path))
    await accounts.issue_token(a_token())
    assert await relay.principal(HASH) is not None
    with pytest.raises(CannotOpen, match="in use by another relay process"):
        await open_sqlite(str(path))
    await accounts.close()
    await relay.close()


async def test_with_an_unsound_sqlite_a_command_waits_for_the_relay_to_be_stopped(path: Path) -> None:
    relay = await open_sqlite(str(path))
    with pytest.raises(
        CannotOpen, match=r"in use by a relay, and SQLite 3\.51\.2 can corrupt.*stop the relay"
    ):
        await open_accounts(str(path), version=UNSOUND)
    await relay.close()
    accounts = await open_accounts(str(path), version=UNSOUND)
    with pytest.raises(CannotOpen, match="in use by another relay process"):
        await open_sqlite(str(path))
    await accounts.issue_token(a_token())
    await accounts.close()
    relay = await open_sqlite(str(path))
    assert await relay.principal(HASH) is not None
    await relay.close()


async def test_a_file_that_was_not_migrated_is_left_as_it_is(path: Path) -> None:
    await (await open_sqlite(str(path))).close()
    with closing(driver.connect_writer(path)) as connection:
        connection.execute("DELETE FROM migrations WHERE version = 5")
    before = path.read_bytes()
    with pytest.raises(CannotOpen, match="is not up to date: start the relay, or run relay migrate"):
        await beside(path)
    assert path.read_bytes() == before


async def test_a_file_that_is_no_database_of_a_relay_is_refused_untouched(path: Path) -> None:
    path.write_bytes(b"precious" * 1000)
    with pytest.raises(CannotOpen, match="is not a SQLite database"):
        await beside(path)
    assert path.read_bytes() == b"precious" * 1000
    path.unlink()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE precious (x)")
    with pytest.raises(CannotOpen, match="is not a database of a relay"):
        await beside(path)


async def test_a_file_that_does_not_exist_is_not_made(path: Path) -> None:
    with pytest.raises(CannotOpen, match="there is no file"):
        await beside(path)
    assert list(path.parent.iterdir()) == []
