"""The depths: a ledger of lines that are added up, and folded so that there are never many.

Each transaction that makes or ends something adds a line, so that no row is updated by everybody. Folding walks
through the table by pages: whoever began at the front each time would pass over all that was folded before, until
vacuum comes. A stretch of pages becomes one line in one transaction, so that every snapshot has the same sum.
"""

from storage.sql.script import Query, Script

#: Pages folded at once: some 47 000 lines, a tenth of a second.
_STRETCH = 256
#: A table of fewer pages has nothing to gain.
_FEW = 4

#: Pages beyond which the file itself is to become shorter, and how often that is tried at most. It is not left to
#: autovacuum, which would stop everybody for it when there is nothing to gain.
LONG = 4_096
SHORTEN_S = 60.0

#: Beyond it the depths are not told. Reached by tens of millions of lines, such as a janitor that was away for long
#: leaves behind.
LONGEST_S = 1.0


def depths() -> Script[tuple[int, int]]:
    """Living and dead, inside a transaction of its own."""
    yield Query(f"SET LOCAL statement_timeout = {int(LONGEST_S * 1000)}")
    rows = yield Query(
        "SELECT coalesce(sum(live), 0)::bigint, coalesce(sum(dead_letters), 0)::bigint FROM depths"
    )
    live, dead_letters = rows[0]
    return live, dead_letters


def oldest_due() -> Script[int | None]:
    """The due time of the oldest that nobody holds: at most the deliveries in flight are passed over."""
    rows = yield Query(
        "SELECT due_at FROM deliveries WHERE due_at IS NOT NULL AND state <> 2 ORDER BY due_at LIMIT 1"
    )
    return rows[0][0] if rows else None


def fold(page: int) -> Script[tuple[int, int]]:
    """Make one line of those in the stretch that begins at this page.

    Yields where the next stretch begins, 0 after the last, and how many pages there are.
    """
    rows = yield Query("SELECT pg_relation_size('depths') / current_setting('block_size')::integer")
    pages = rows[0][0]
    if pages < _FEW or page >= pages:
        return 0, pages
    yield Query(
        """
        WITH gone AS (
            DELETE FROM depths
            WHERE ctid >= format('(%s,0)', ?1::bigint)::tid AND ctid < format('(%s,0)', ?2::bigint)::tid
            RETURNING live, dead_letters
        )
        INSERT INTO depths (live, dead_letters)
        SELECT sum(live), sum(dead_letters) FROM gone HAVING count(*) > 0
        """,
        (page, page + _STRETCH),
    )
    return (page + _STRETCH if page + _STRETCH < pages else 0), pages


def shorten(schema: str) -> str:
    """The statement, outside of a transaction, that gives back what is empty at the end of the table. It lets those
    go first who want to write."""
    return f"VACUUM (SKIP_LOCKED, TRUNCATE) {schema}.depths"
