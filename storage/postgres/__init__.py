"""The shared backend: one PostgreSQL database, any number of processes."""

from typing import TYPE_CHECKING

from relay.clock import SharedClock
from storage.protocol import CannotOpen

if TYPE_CHECKING:
    from storage.postgres.storage import PostgresStorage

__all__ = ["open_postgres"]


async def open_postgres(
    url: str, *, clock: SharedClock | None = None, migrate: bool = True
) -> "PostgresStorage":
    """Open `postgresql://user:password@host/database`.

    Creates and migrates the schema as needed, unless `migrate` is false. `clock` is set by the database's, now and
    from time to time. Raises `CannotOpen`, with one sentence for the operator, when the driver is missing, the
    schema is a newer relay's or another application's, or the database is too old; `Unavailable` when it cannot be
    reached.
    """
    try:
        from storage.postgres.storage import opened
    except ModuleNotFoundError as missing:
        if missing.name != "asyncpg":
            raise
        raise CannotOpen(
            "PostgreSQL needs a driver that is not installed: pip install 'relay-http[postgres]'"
        ) from None
    return await opened(url, clock=clock or SharedClock(), migrate=migrate)
