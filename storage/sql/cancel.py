"""Cancelling: which living deliveries are meant, and how they end."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from relay.domain.delivery import Change, Settlement
from relay.domain.message import MessageId, TenantId
from relay.domain.selection import Selection
from storage.codec import ACTIVE, lane_of
from storage.sql import gates
from storage.sql.road import following, not_before
from storage.sql.script import Bulk, Parameters, Query, Script, marks, slices, write
from storage.sql.selection import conditions, instants, narrow

#: Deliveries cancelled in one transaction.
BITE = 500

_EVENTS = Bulk("INSERT INTO events (tenant, position, at, change, message_id, retried)", marks(6))


class Cancelled(NamedTuple):
    """`ids` count as cancelled; `ended` of them were waiting and are gone. At `opens_at` one of the gates that they
    stood at or in may let others pass."""

    ids: Sequence[MessageId]
    ended: int
    opens_at: int | None = None


def newest(tenant: TenantId) -> Script[int]:
    """The greatest id alive: where a cancellation of everything stops, however much arrives meanwhile."""
    rows = yield Query("SELECT max(id) FROM deliveries WHERE tenant = ?1", (tenant,))
    return rows[0][0] or 0


def selected(
    tenant: TenantId, selection: Selection, *, after: int, last: int, limit: int
) -> Script[Sequence[MessageId]]:
    """Ids after `after` up to `last`, ascending. States, statuses and dead-letter ids say nothing of the living.

    Only a search: by the time it is acted upon, a delivery may have ended.
    """
    ids = yield from narrow(selection, tenant)
    if ids is not None and not ids:
        return []
    bind = Parameters()
    where = [f"d.tenant = {bind(tenant)} AND d.id > {bind(after)} AND d.id <= {bind(last)}"]
    where.append("d.cancel_requested = 0")
    if ids is not None:
        where.append(f"d.id IN {bind.several(ids)}")
    where += conditions(selection, tenant, bind)
    where += instants("m.created_at", selection, bind)
    rows = yield Query(
        f"SELECT d.id FROM deliveries d CROSS JOIN messages m WHERE m.id = d.id AND {' AND '.join(where)}"
        f" ORDER BY d.id LIMIT {bind(limit)}",
        bind.values,
    )
    return [row[0] for row in rows]


def members(tenant: TenantId, ids: Sequence[int]) -> Script[Sequence[gates.Member]]:
    """Whose gates a cancellation of these changes: their own, and those of the messages they report on."""
    bind = Parameters()
    rows = yield Query(
        f"SELECT terms FROM messages WHERE id IN {bind.several(ids)} AND tenant = {bind(tenant)}"
        " AND terms IS NOT NULL",
        bind.values,
    )
    lanes = (lane_of(row[0]) for row in rows)
    return [(tenant, id_) for id_ in {*ids, *(lane for lane in lanes if lane is not None)}]


def cancel(
    tenant: TenantId, ids: Sequence[int], *, limit: int, now: int, position: Callable[[int], int]
) -> Script[Cancelled]:
    """Cancel at most `limit` of at most BITE ids. What waits is deleted; what is in flight is marked, once.

    Killed before the commit, nothing has happened and the caller had no answer; killed after it, everything has.
    """
    bind = Parameters()
    rows = yield Query(
        f"""
        SELECT d.id, d.state, d.retried, m.dedup_key, m.terms
        FROM deliveries d LEFT JOIN messages m ON m.id = d.id
        WHERE d.tenant = {bind(tenant)} AND d.id IN {bind.several(ids)} AND d.cancel_requested = 0
        ORDER BY d.id LIMIT {bind(limit)} /*FOR UPDATE OF d*/
        """,
        bind.values,
    )
    opens_at = None
    flying = [row[0] for row in rows if row[1] == ACTIVE]
    waiting = [row[0] for row in rows if row[1] != ACTIVE]
    if flying:
        bind = Parameters()
        yield Query(
            f"UPDATE deliveries SET cancel_requested = 1"
            f" WHERE tenant = {bind(tenant)} AND id IN {bind.several(flying)}",
            bind.values,
        )
    if waiting:
        bind = Parameters()
        yield Query(
            f"DELETE FROM deliveries WHERE tenant = {bind(tenant)} AND id IN {bind.several(waiting)}",
            bind.values,
        )
        reported = [
            (tenant, lane) for row in rows if row[1] != ACTIVE and (lane := lane_of(row[4])) is not None
        ]
        opens_at = yield from gates.withdrawn(tenant, waiting, reported, now)
    for key, id_ in sorted((row[3], row[0]) for row in rows if row[3] is not None and row[1] != ACTIVE):
        yield Query(
            "DELETE FROM dedup WHERE tenant = ?1 AND key = ?2 AND message_id = ?3", (tenant, key, id_)
        )
    latest = yield from _latest([row[0] for row in rows])
    events = []
    for id_, state, retried, *_ in rows:
        at = not_before(now, latest.get(id_, now))
        change = Change.CANCEL_REQUESTED if state == ACTIVE else Change.CANCELED
        events.append((tenant, position(at), at, change, id_, retried))
    yield from write(_EVENTS, events)
    return Cancelled([row[0] for row in rows], len(waiting), opens_at)


def requested(settlements: Sequence[Settlement]) -> Script[Sequence[Settlement]]:
    """Settlements of deliveries whose cancellation was asked for, none before it was."""
    latest = yield from _latest([one.claim.message.id for one in settlements])
    return [following(one, latest.get(one.claim.message.id, one.at)) for one in settlements]


def _latest(ids: Sequence[int]) -> Script[dict[int, int]]:
    """What history told of these messages last, by message: when that was."""
    latest: dict[int, int] = {}
    for part in slices(ids, BITE):
        bind = Parameters()
        rows = yield Query(
            f"SELECT message_id, max(at) FROM events WHERE message_id IN {bind.several(part)}"
            " GROUP BY message_id",
            bind.values,
        )
        latest.update((row[0], row[1]) for row in rows)
    return latest
