"""The shared backend: one PostgreSQL database, any number of processes."""

from typing import TYPE_CHECKING

from relay.clock import SharedClock
from relay.domain.errors import Unavailable
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
    reached. Cancelled, or failed half-way, it is nobody others would take for a relay at work; after a kill -9 it
    is for half a minute.
    """
    try:
        from storage.postgres.driver import target_of
        from storage.postgres.storage import opened
    except ModuleNotFoundError as missing:
        if missing.name != "asyncpg":
            raise
        raise CannotOpen(
            "PostgreSQL needs a driver that is not installed: pip install '.[postgres]' in Relay's source tree"
        ) from None
    target = target_of(url)
    try:
        return await opened(target, clock=clock or SharedClock(), migrate=migrate)
    except (CannotOpen, Unavailable) as problem:
        # Whoever starts the relay is told which database it is; publishers, later, are not.
        raise type(problem)(f"{target.shown}: {problem}") from problem
