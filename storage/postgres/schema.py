"""The tables: created and migrated by whoever comes first, while everybody else waits or goes on.

Each migration is applied once, all that are missing in one transaction under an advisory lock, so that any number
of processes may start at once and a killed one leaves nothing by halves. Processes of the previous version go on
while a newer one migrates, and start on what it has migrated: `storage.migrate` says by which rule.
"""

import asyncio
import logging
from collections.abc import Collection, Sequence
from zlib import crc32

from relay.domain.errors import Unavailable
from storage.migrate import migrations_of, missing, unknown
from storage.postgres import driver
from storage.postgres.connections import transaction
from storage.postgres.driver import Connection, Target
from storage.protocol import CannotOpen, Rejected

#: Advisory locks, each until the end of a transaction: what is locked, within the schema.
MIGRATIONS, NODES, FORGETTING, SCHEDULES, URL_GROUPS, QUEUES, ACCOUNTS, LEDGER = 1, 2, 3, 4, 5, 6, 7, 8
#: This one is held, shared, by a session of each process for as long as it lives.
ALIVE = 9

#: Those that no relay waits for with a connection in hand.
IN_TURN = (FORGETTING, SCHEDULES, URL_GROUPS, QUEUES, ACCOUNTS)

_KNOWN = migrations_of("storage.postgres")

#: How long a migration waits for the lock of a table: everybody who wants to use the table waits behind it.
_LOCK_S = 1.0
#: The pause after the first try in vain, in which they go on. It doubles, up to the longest.
_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 10.0
#: How long somebody else may use a table (a backup, a report) before a start or `relay migrate` gives up.
PATIENCE_S = 120.0

_SERVER = """
    SELECT current_setting('server_version_num')::integer, current_setting('server_encoding'), pg_is_in_recovery()
"""
#: Who else has a lock on one of the schema's tables, the oldest transaction first.
_HOLDER = """
    SELECT l.pid, coalesce(a.application_name, ''), extract(epoch FROM clock_timestamp() - a.xact_start)::bigint,
        c.relname
    FROM pg_locks l JOIN pg_class c ON c.oid = l.relation JOIN pg_namespace n ON n.oid = c.relnamespace
    LEFT JOIN pg_stat_activity a ON a.pid = l.pid
    WHERE n.nspname = $1 AND c.relkind IN ('r', 'p') AND l.granted AND l.pid <> pg_backend_pid()
        AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    ORDER BY a.xact_start NULLS LAST LIMIT 1
"""

_log = logging.getLogger("relay.storage")


def advisory_lock(schema: str, what: int) -> str:
    """The statement that locks, until the end of the transaction, one thing of one relay in this database."""
    return f"SELECT pg_advisory_xact_lock({_number(schema)}, {what})"


def shared_lock(schema: str, what: int) -> str:
    """The statement that locks it together with others until the session ends."""
    return f"SELECT pg_advisory_lock_shared({_number(schema)}, {what})"


def try_advisory_lock(schema: str, what: int) -> str:
    """The statement that locks it until the end of the transaction if nobody else has: its one value says so."""
    return f"SELECT pg_try_advisory_xact_lock({_number(schema)}, {what})"


async def prepare(
    connection: Connection, target: Target, *, migrate: bool, patience_s: float = PATIENCE_S
) -> None:
    """Make the schema what this version needs. Raises `CannotOpen` when it must not, or may not, be changed, or
    others have used its tables for longer than `patience_s`."""
    version, encoding, replica = (await connection.rows(_SERVER))[0]
    problem = driver.version_problem(int(version) // 10_000) or driver.encoding_problem(encoding)
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
        until = asyncio.get_running_loop().time() + patience_s
        await transaction(connection, lambda connection: _migrate_in_turn(connection, target, until))
    except (Rejected, Unavailable) as refused:
        if isinstance(refused, Unavailable) and not driver.lacks_rights(refused):
            raise
        raise CannotOpen(
            f"the schema {target.schema} of the database cannot be migrated: {refused.__cause__}"
        ) from refused


async def _migrate_in_turn(connection: Connection, target: Target, until: float) -> None:
    """Migrate as soon as nobody uses the tables, inside a transaction.

    Each try gives up soon, and with it every lock it has got but the turn, so that the version before goes on. The
    turn is kept, so that many who start do not try one after the other without a pause.
    """
    await connection.run(advisory_lock(target.schema, MIGRATIONS))
    await connection.run(f"SET LOCAL lock_timeout = {int(_LOCK_S * 1000)}")
    pause_s = _PAUSE_S
    while True:
        await connection.run("SAVEPOINT migration")
        try:
            await _migrate(connection, target)
        except Unavailable as problem:
            if not driver.is_locked(problem):
                raise
        else:
            return
        await connection.run("ROLLBACK TO SAVEPOINT migration")
        holder = await _holder(connection, target)
        if asyncio.get_running_loop().time() + pause_s > until:
            raise CannotOpen(
                f"the schema {target.schema} of the database cannot be migrated while others use its tables:"
                f" {holder}"
            )
        _log.warning(
            "the schema %s is to be migrated, and others use its tables: %s; trying again in %s s",
            target.schema,
            holder,
            pause_s,
        )
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


async def _holder(connection: Connection, target: Target) -> str:
    rows = await connection.rows(_HOLDER, target.schema)
    if not rows:
        return "whoever it was has gone by now"
    pid, name, age_s, table = rows[0]
    # Of others' sessions a role may be shown little.
    who = f"{pid} ({name})" if name else str(pid)
    return f"process {who} uses {table}" + ("" if age_s is None else f", in a transaction {age_s} s old")


async def _migrate(connection: Connection, target: Target) -> None:
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


async def unknown_migrations(connection: Connection, target: Target) -> Sequence[int]:
    """See `storage.protocol.Transfer`."""
    return unknown(_KNOWN, await _applied(connection, target))


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


def _number(schema: str) -> int:
    number = crc32(schema.encode())
    return number - (1 << 32) if number >= 1 << 31 else number
