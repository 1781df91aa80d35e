"""The number of this process among all that share a database: it tells their ids apart.

A number is a row with an owner who shows signs of life, by the database's clock. A session's advisory lock would
let go by itself, but there are no sessions behind a pooler. Numbers are taken in turn, the one unused for longest
first, so that a process that was silent for too long practically never finds another under its number.

Whoever ends in order gives the number back, even in the middle of a start. After a kill -9 nobody does: to others
the process is there for `RECENTLY_S` more, which is how long a copy to its database, for example, is refused.
"""

from msgspec import Struct

from storage.postgres.driver import Connection
from storage.protocol import CannotOpen

#: An owner that was silent for this long has died.
SILENCE_S = 600
#: Whoever was seen in this time is there: signs of life come three times as often.
RECENTLY_S = 30

#: How the names begin of those that have no sessions of their own.
POOLED = "pooled_"

_FREE = f"""
    SELECT n FROM generate_series(0, 255) n LEFT JOIN nodes ON nodes.number = n
    WHERE nodes.owner IS NULL OR nodes.seen_at < clock_timestamp() - interval '{SILENCE_S} seconds'
    ORDER BY nodes.seen_at NULLS FIRST, n LIMIT 1
"""
#: After a failover the row may be missing, or be an older one: what nobody else holds is still ours.
_KEEP = f"""
    INSERT INTO nodes (number, owner, seen_at)
    VALUES ($1, $2, least(clock_timestamp(), to_timestamp($3::double precision / 1000)))
    ON CONFLICT (number) DO UPDATE SET owner = excluded.owner, seen_at = excluded.seen_at
    WHERE nodes.owner = excluded.owner OR nodes.owner IS NULL
        OR nodes.seen_at < clock_timestamp() - interval '{SILENCE_S} seconds'
    RETURNING 1
"""
_OTHERS = f"""
    SELECT count(*) FROM nodes WHERE owner <> $1
    AND seen_at > clock_timestamp() - interval '{RECENTLY_S} seconds'
"""
_LEAVE = "UPDATE nodes SET owner = NULL, seen_at = clock_timestamp() WHERE owner = $1"


class Node(Struct, frozen=True, kw_only=True):
    """A number from 0 to 255, and the random name it is held under."""

    number: int
    owner: str


async def take(connection: Connection, owner: str) -> Node:
    """A number nobody uses, inside a transaction that nobody else takes one in. Raises `CannotOpen`."""
    free = await connection.rows(_FREE)
    if not free:
        raise CannotOpen(
            "256 relay processes use this database already, and there are no more numbers for ids"
        )
    node = Node(number=free[0][0], owner=owner)
    if not await keep(connection, node):
        raise CannotOpen(f"the number {node.number} of this process was taken by another at the same time")
    return node


async def keep(connection: Connection, node: Node, *, at: int | None = None) -> bool:
    """Show a sign of life; False when the number belongs to another by now.

    `at` is how late it is to this process: when the database's clock was set forward and it has not noticed, others
    see by its sign of life that it was given before. None: it has no clock yet that agrees with the database's.
    """
    return bool(await connection.rows(_KEEP, node.number, node.owner, at))


async def others(connection: Connection, node: Node) -> int:
    """How many other owners were seen of late."""
    return int((await connection.rows(_OTHERS, node.owner))[0][0])


async def leave(connection: Connection, owner: str) -> None:
    """Give the number back, whichever it was, if there was one."""
    await connection.rows(_LEAVE, owner)
