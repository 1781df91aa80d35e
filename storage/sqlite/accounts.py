"""The accounts of a file that a relay may be using at this very moment.

A file has one process that writes messages, and `open_sqlite` keeps it alone. A command about accounts is another
matter: it writes a row or two in a transaction of a few milliseconds, for which the writer of the relay waits as it
would for a backup. It never checkpoints while a relay runs: the log is the relay's business.

SQLite before 3.51.3 can corrupt a log that two processes write at the same instant: with one of those, the command
takes the lock of the file like a relay, and is refused while one runs.
"""

import asyncio
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from relay.domain.message import SignedBy, TenantId
from relay.domain.tenant import Tenant, TenantLimits, Token
from storage.migrate import migrations_of, missing
from storage.protocol import CannotOpen
from storage.sql import catalog
from storage.sql.script import Script
from storage.sqlite import driver
from storage.sqlite.driver import Connection
from storage.sqlite.storage import file_of, lock_file

T = TypeVar("T")


async def open_accounts(url: str, *, version: tuple[int, ...] | None = None) -> "SqliteAccounts":
    """Open the accounts of a file that exists and is up to date; nothing is created and nothing migrated.

    `version` is that of the SQLite in use. Raises `CannotOpen` with one sentence for the operator, `Unavailable`
    when the file is locked for long.
    """
    if url == "sqlite://":
        raise CannotOpen(
            "sqlite:// is a temporary file of one relay; name a database, such as sqlite:///relay.db"
        )
    path = file_of(url)
    if not path.is_file():
        raise CannotOpen(
            f"there is no file {path}; relay migrate makes one, and so does the first start of a relay"
        )
    lock = _lock_if_unsound(path, version or driver.version())
    connection = None
    try:
        connection = driver.connect_beside(path)
        _check(connection, path)
        return SqliteAccounts(connection, lock)
    except BaseException as error:
        if connection is not None:
            connection.close()
        if lock is not None:
            os.close(lock)
        if isinstance(error, driver.Error):
            if driver.is_foreign(error):
                raise CannotOpen(f"{path} is not a SQLite database") from None
            raise driver.translated(error) from error
        raise


class SqliteAccounts:
    """The role `Accounts` of `storage.protocol`, one short transaction at a time."""

    def __init__(self, connection: Connection, lock: int | None) -> None:
        self._connection = connection
        self._lock = lock

    async def tenants(self) -> Sequence[Tenant]:
        return await self._run(catalog.tenants)

    async def add_tenant(self, user_id: str, *, current_key: str, next_key: str, now: int) -> Tenant | None:
        return await self._run(
            lambda: catalog.add_tenant(user_id, current_key=current_key, next_key=next_key, now=now)
        )

    async def put_limits(self, tenant: TenantId, limits: TenantLimits, *, now: int) -> bool:
        return await self._run(lambda: catalog.put_limits(tenant, limits, now=now))

    async def put_signed_by(self, tenant: TenantId, signed_by: SignedBy) -> bool:
        return await self._run(lambda: catalog.put_signed_by(tenant, signed_by))

    async def put_disabled(self, tenant: TenantId, *, at: int | None) -> bool:
        return await self._run(lambda: catalog.put_disabled(tenant, at=at))

    async def tokens(self, tenant: TenantId) -> Sequence[Token]:
        return await self._run(lambda: catalog.tokens(tenant))

    async def issue_token(self, token: Token) -> None:
        await self._run(lambda: catalog.issue_token(token))

    async def delete_token(self, token_hash: bytes) -> bool:
        return await self._run(lambda: catalog.delete_token(token_hash))

    async def setting(self, name: str) -> str | None:
        return await self._run(lambda: catalog.setting(name))

    async def close(self) -> None:
        self._connection.close()
        if self._lock is not None:
            os.close(self._lock)

    async def _run(self, script: Callable[[], Script[T]]) -> T:
        return await asyncio.to_thread(self._commit, script)

    def _commit(self, script: Callable[[], Script[T]]) -> T:
        """Killed before the COMMIT is durable, nothing has happened."""
        connection = self._connection
        try:
            connection.execute("BEGIN IMMEDIATE")
            try:
                result = driver.run(connection, script())
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
        except driver.Error as error:
            raise driver.translated(error) from error
        return result


def _lock_if_unsound(path: Path, version: tuple[int, ...]) -> int | None:
    problem = driver.version_problem(version)
    if problem is None:
        return None
    try:
        return lock_file(path)
    except CannotOpen:
        raise CannotOpen(f"{path} is in use by a relay, and {problem}; or stop the relay first") from None


def _check(connection: Connection, path: Path) -> None:
    if connection.execute("PRAGMA application_id").fetchone() != (driver.APPLICATION_ID,):
        raise CannotOpen(f"{path} is not a database of a relay")
    applied = [row[0] for row in connection.execute("SELECT version FROM migrations")]
    if missing(migrations_of("storage.sqlite"), applied):
        raise CannotOpen(f"{path} is not up to date: start the relay, or run relay migrate, first")
