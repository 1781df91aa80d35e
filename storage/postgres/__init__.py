"""The shared backend: one PostgreSQL database, any number of processes."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from relay.clock import SharedClock
from relay.domain.errors import Unavailable
from storage.protocol import CannotOpen

if TYPE_CHECKING:
    from storage.postgres.accounts import PostgresAccounts
    from storage.postgres.driver import Target
    from storage.postgres.storage import PostgresStorage

T = TypeVar("T")

__all__ = ["open_postgres", "open_postgres_accounts"]


async def open_postgres(
    url: str, *, clock: SharedClock | None = None, migrate: bool = True
) -> "PostgresStorage":
    """Open `postgresql://user:password@host/database`.

    Creates and migrates the schema as needed, unless `migrate` is false. `clock` is set by the database's, now and
    from time to time. Raises `CannotOpen`, with one sentence for the operator, when the driver is missing, the
    schema is a newer relay's or another application's, or the database is too old; `Unavailable` when it cannot be
    reached. Cancelled, or failed half-way, it is nobody others would take for a relay at work; after a kill -9 it
    is for half a minute.
    """

    async def open_there(target: "Target") -> "PostgresStorage":
        from storage.postgres.storage import opened

        return await opened(target, clock=clock or SharedClock(), migrate=migrate)

    return await _opened(url, open_there)


async def open_postgres_accounts(url: str, *, clock: SharedClock) -> "PostgresAccounts":
    """Open the accounts of a database that is up to date; nothing is created and nothing migrated, and to others
    this is no process that uses the database. Sets `clock` by the database's, once. Raises like `open_postgres`."""

    async def open_there(target: "Target") -> "PostgresAccounts":
        from storage.postgres.accounts import opened

        return await opened(target, clock=clock)

    return await _opened(url, open_there)


async def _opened(url: str, open_there: "Callable[[Target], Awaitable[T]]") -> T:
    try:
        from storage.postgres.driver import target_of
    except ModuleNotFoundError as missing:
        if missing.name != "asyncpg":
            raise
        raise CannotOpen(
            "PostgreSQL needs a driver that is not installed: pip install '.[postgres]' in Relay's source tree"
        ) from None
    target = target_of(url)
    try:
        return await open_there(target)
    except (CannotOpen, Unavailable) as problem:
        # Whoever starts the relay is told which database it is; publishers, later, are not.
        raise type(problem)(f"{target.shown}: {problem}") from problem
