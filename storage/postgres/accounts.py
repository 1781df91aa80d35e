"""The accounts of a database that relays may be using at this very moment.

A command about accounts writes a row or two and makes no ids. So it holds no number of a process: it works when all
of them are held, and leaves nothing behind when it is killed.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

from relay.clock import SharedClock
from relay.domain.message import SignedBy, TenantId
from relay.domain.tenant import Tenant, TenantLimits, Token
from storage.postgres import schema
from storage.postgres.connections import Server, run, transaction
from storage.postgres.driver import Connection, Session, Target
from storage.postgres.watch import agree
from storage.sql import catalog
from storage.sql.script import Script

T = TypeVar("T")

_SESSION = Session(longest_s=20.0)


async def opened(target: Target, *, clock: SharedClock) -> "PostgresAccounts":
    """See `storage.postgres.open_postgres_accounts`."""
    connection = await Server(target).connect(_SESSION)
    try:
        await schema.prepare(connection, target, migrate=False)
        await agree(connection, clock)
    except BaseException:
        connection.terminate()
        raise
    return PostgresAccounts(connection, target)


class PostgresAccounts:
    """The role `Accounts` of `storage.protocol`, one short transaction at a time."""

    def __init__(self, connection: Connection, target: Target) -> None:
        self._connection = connection
        self._target = target

    async def tenants(self) -> Sequence[Tenant]:
        return await self._run(catalog.tenants)

    async def add_tenant(self, user_id: str, *, current_key: str, next_key: str, now: int) -> Tenant | None:
        async def add(connection: Connection) -> Tenant | None:
            # Two of one name must not both find that there is none.
            await connection.run(schema.advisory_lock(self._target.schema, schema.ACCOUNTS))
            return await run(
                connection, catalog.add_tenant(user_id, current_key=current_key, next_key=next_key, now=now)
            )

        return await transaction(self._connection, add)

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
        self._connection.terminate()

    async def _run(self, script: Callable[[], Script[T]]) -> T:
        """Killed before the COMMIT, nothing has happened."""
        return await transaction(self._connection, lambda connection: run(connection, script()))
