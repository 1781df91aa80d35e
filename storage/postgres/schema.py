"""The tables: created and migrated by whoever comes first, while everybody else waits or goes on.

Each migration is applied once, all that are missing in one transaction under an advisory lock, so that any number
of processes may start at once and a killed one leaves nothing by halves. Processes of the previous version go on
while a newer one migrates: a migration only adds (a table, a column that may be NULL or has a default, an index);
what is to go goes one release after the last version that used it.
"""

from collections.abc import Collection
from zlib import crc32

from relay.domain.errors import Unavailable
from storage.migrate import migrations_of, missing
from storage.postgres import driver
from storage.postgres.connections import transaction
from storage.postgres.driver import Connection, Target
from storage.protocol import CannotOpen

#: Advisory locks, each for the end of a transaction: what is locked, within the schema.
MIGRATIONS, NODES, FORGETTING, SCHEDULES, URL_GROUPS, QUEUES, ACCOUNTS, LEDGER = 1, 2, 3, 4, 5, 6, 7, 8

#: Those that nobody may wait for with a connection in hand.
IN_TURN = (FORGETTING, SCHEDULES, URL_GROUPS, QUEUES, ACCOUNTS)

_KNOWN = migrations_of("storage.postgres")


def advisory_lock(schema: str, what: int) -> str:
    """The statement that locks, until the end of the transaction, one thing of one relay in this database."""
    return f"SELECT pg_advisory_xact_lock({_signed(crc32(schema.encode()))}, {what})"


def try_advisory_lock(schema: str, what: int) -> str:
    """The same without waiting: its one value says whether it was to be had."""
    return f"SELECT pg_try_advisory_xact_lock({_signed(crc32(schema.encode()))}, {what})"


async def prepare(connection: Connection, target: Target, *, migrate: bool) -> None:
    """Make the schema what this version needs. Raises `CannotOpen` when it must not, or may not, be changed."""
    version, replica = (await connection.rows(_SERVER))[0]
    problem = driver.version_problem(int(version) // 10_000)
    if problem is not None:
        raise CannotOpen(problem)
    if replica:
        raise Unavailable("the database is a read-only replica", retry_after_s=2)
    if not missing(_KNOWN, await _applied(connection, target)):
        return
    if not migrate:
        raise CannotOpen(
            f"the schema {target.schema} of the database is not up to date: run relay migrate first"
        )
    try:
        await transaction(connection, lambda connection: _migrate(connection, target))
    except driver.Rejected as problem:
        raise CannotOpen(
            f"the schema {target.schema} of the database cannot be migrated: {problem}"
        ) from problem


_SERVER = "SELECT current_setting('server_version_num')::integer, pg_is_in_recovery()"


async def _migrate(connection: Connection, target: Target) -> None:
    await connection.run(advisory_lock(target.schema, MIGRATIONS))
    if not await connection.rows("SELECT 1 FROM pg_namespace WHERE nspname = $1", target.schema):
        await connection.run(f"CREATE SCHEMA {target.schema}")
    tables = await _tables(connection, target)
    if "migrations" not in tables:
        if tables:
            raise CannotOpen(f"the schema {target.schema} of the database belongs to another application")
        await connection.run(
            "CREATE TABLE migrations (version integer PRIMARY KEY, name text NOT NULL,"
            " applied_at timestamptz NOT NULL DEFAULT now())"
        )
    for migration in missing(_KNOWN, await _applied(connection, target)):
        await connection.run(migration.text)
        await connection.rows(
            "INSERT INTO migrations (version, name) VALUES ($1, $2)", migration.version, migration.name
        )


async def _applied(connection: Connection, target: Target) -> Collection[int]:
    if "migrations" not in await _tables(connection, target):
        return ()
    return [row[0] for row in await connection.rows(f"SELECT version FROM {target.schema}.migrations")]


async def _tables(connection: Connection, target: Target) -> Collection[str]:
    """Asked of the catalog's tables: functions like `to_regclass` answer from a cache that waiting for an advisory
    lock does not refresh."""
    rows = await connection.rows(
        "SELECT relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE n.nspname = $1 AND c.relkind IN ('r', 'p')",
        target.schema,
    )
    return [row[0] for row in rows]


def _signed(number: int) -> int:
    return number - (1 << 32) if number >= 1 << 31 else number
