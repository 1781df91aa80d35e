"""Firings: as many ticks as are due together, each won or lost by itself, in one transaction.

Killed before the commit, all of the ticks are still to come; after it, their messages and runs are there: never
both. Processes that fire the same schedules lock them in one order, and whoever comes second finds that they have
moved on.
"""

from collections.abc import Sequence
from typing import NamedTuple

from relay.domain.schedule import RunOutcome
from storage.postgres import work
from storage.postgres.tx import Tx
from storage.protocol import Firing
from storage.sql import schedules
from storage.sql.road import Acceptance

_WON = """
    SELECT v.n FROM unnest($1::bigint[], $2::text[], $3::bigint[], $4::bigint[])
        WITH ORDINALITY AS v (tenant, id, revision, next_at, n)
    JOIN schedules s ON s.tenant = v.tenant AND s.id = v.id
        AND s.revision = v.revision AND s.next_at = v.next_at
    ORDER BY s.tenant, s.id, v.n FOR UPDATE OF s
"""
_ADVANCE = """
    UPDATE schedules SET next_at = v.next_at, error = v.error,
        last_fired_at = coalesce(v.fired_at, schedules.last_fired_at)
    FROM unnest($1::bigint[], $2::text[], $3::bigint[], $4::text[], $5::bigint[])
        AS v (tenant, id, next_at, error, fired_at)
    WHERE schedules.tenant = v.tenant AND schedules.id = v.id
"""


class Call(NamedTuple):
    """One firing, at the instant it is made."""

    firing: Firing
    now: int


async def fire(tx: Tx, calls: Sequence[Call]) -> Sequence[bool]:
    """Which of them won."""
    expected = [
        (schedule.tenant, schedule.id, schedule.revision, schedule.next_at)
        for schedule in (call.firing.schedule for call in calls)
    ]
    places: dict[tuple[int, str], int] = {}
    for (number,) in await tx.rows(_WON, *zip(*expected, strict=True)):
        # Of several for one schedule the first wins.
        places.setdefault(expected[number - 1][:2], number - 1)
    won = [calls[place] for place in places.values()]
    if won:
        moved = [
            (
                firing.schedule.tenant,
                firing.schedule.id,
                firing.next_at,
                firing.error,
                max((run.fired_at for run in firing.runs if run.outcome is RunOutcome.FIRED), default=None),
            )
            for firing, _ in won
        ]
        await tx.rows(_ADVANCE, *zip(*moved, strict=True))
        await tx.run(schedules.record([call.firing for call in won]))
        await work.accept(tx, [Acceptance(firing.messages, now, None) for firing, now in won])
    winners = set(places.values())
    return [place in winners for place in range(len(calls))]
