"""Crowds: deliveries that are due and wait because their host has its share of the room.

A crowd is a gate like others (see `gates.py`), made when something is set aside for the first time. It has no
limits of its own: a claim lets in as many as the shares of the worker allow. Who was let in has left the crowd, and
is a delivery like any other from then on; nothing but waiting is different in it.
"""

from collections.abc import Mapping, Sequence

from relay.domain.delivery import Lease
from relay.domain.fairness import Crowd, Shares
from relay.domain.gates import Gate, GateId, GateKind, accepted, admit, shares
from relay.domain.message import Message, MessageId, TenantId
from relay.domain.place import place_of
from storage.codec import ACTIVE, CREATED, RETRY, gate_of
from storage.sql.gates import (
    FORGET_WAITER,
    GATE_READ,
    MOST_GATES,
    Key,
    Waiter,
    ensured,
    fitting,
    held_gates,
    lines,
    lock,
    save,
    within,
)
from storage.sql.script import Bulk, Collision, Parameters, Query, Script, read, write

_INSERT = Bulk(
    "INSERT INTO gated (tenant, id, crowd, seq, eligible_at, waits_at, place, callbacks, has_slot, finished)",
    "(?, ?, ?, 0, ?, ?, ?, 0, 0, 0)",
)
_TYPED_LEASE = "(CAST(? AS bigint), CAST(? AS bigint), CAST(? AS bigint))"
#: Who took over a lost lease may have a permit with it: then it stays as it is, too.
_LEASED = Bulk(
    "WITH k (tenant, id, claim_no) AS (",
    _TYPED_LEASE,
    f""") SELECT d.tenant, d.id, d.claimed_at FROM k CROSS JOIN deliveries d
    WHERE d.tenant = k.tenant AND d.id = k.id AND d.claim_no = k.claim_no AND d.state = {ACTIVE}
    AND d.cancel_requested = 0
    AND NOT EXISTS (SELECT 1 FROM gated v WHERE v.tenant = d.tenant AND v.id = d.id)
    /*FOR UPDATE OF d SKIP LOCKED*/""",
)
#: Gives a lease back unspent.
ASIDE = Bulk(
    f"""UPDATE deliveries
    SET state = CASE WHEN retried = 0 THEN {CREATED} ELSE {RETRY} END, due_at = NULL, claimed_at = NULL
    WHERE (tenant, id) IN (""",
    "(CAST(? AS bigint), CAST(? AS bigint))",
    ")",
)


def keys_in(arrivals: Sequence[tuple[Message, int]]) -> dict[Key, int]:
    """The crowds of messages, each with the instant of the last of them."""
    return {
        (message.tenant, GateKind.CROWD, place_of(message.request.url)[0]): now for message, now in arrivals
    }


def accept(arrivals: Sequence[tuple[Message, int]]) -> Script[int | None]:
    """Put accepted messages, each with its instant, into their crowds; when the first of these opens."""
    keys = keys_in(arrivals)
    crowds = yield from ensured(keys)
    rows = []
    for message, now in arrivals:
        ((key, _),) = keys_in([(message, now)]).items()
        crowds[key] = crowd = accepted(crowds[key], None, now)
        rows.append(_row(message.tenant, message.id, crowd.id, message.not_before))
    yield from write(_INSERT, rows)
    return (yield from save(crowds.values(), max(keys.values())))


def set_aside(
    surplus: Mapping[Crowd, Sequence[Lease]], *, now: int, limit: int
) -> Script[tuple[Sequence[MessageId], int | None]]:
    """Move leased deliveries, and those of the same crowds among the first `limit` that are due, into their crowds.

    Returns which of the leased ones stay as they are, and when a crowd opens. Locked deliveries are left alone:
    whoever holds a crowd waits for nothing.
    """
    keys: dict[Key, int] = {(crowd.tenant, GateKind.CROWD, crowd.host): now for crowd in surplus}
    yield from lock((), keys)
    crowds = yield from held_gates(list(keys))
    if len(crowds) < len(keys):
        raise Collision
    leases = {
        (lease.tenant, lease.message_id): (crowd.tenant, GateKind.CROWD, crowd.host)
        for crowd, leases in surplus.items()
        for lease in leases
    }
    leased = yield from read(
        _LEASED,
        [(lease.tenant, lease.message_id, lease.claim_no) for leases in surplus.values() for lease in leases],
    )
    moved = {(tenant, id_) for tenant, id_, _ in leased}
    rows = []
    for tenant, id_, claimed_at in leased:
        key = leases[tenant, id_]
        crowds[key] = crowd = accepted(crowds[key], None, now)
        rows.append(_row(tenant, id_, crowd.id, claimed_at))
    for tenant, id_, due_at, host in (yield from _like_them(list(keys), now=now, limit=limit)):
        key = (tenant, GateKind.CROWD, host)
        crowds[key] = crowd = accepted(crowds[key], None, now)
        rows.append(_row(tenant, id_, crowd.id, due_at))
    yield from write(ASIDE, [row[:2] for row in rows])
    yield from write(_INSERT, rows)
    stayed = [MessageId(id_) for tenant, id_ in leases if (tenant, id_) not in moved]
    return stayed, (yield from save(crowds.values(), now))


def open_crowds(room: Shares, now: int) -> Script[tuple[Sequence[tuple[Gate, int]], bool]]:
    """Crowds that wait, the ones that were not looked at for longest first, each with how many of it may be let in;
    and whether any was passed over because it may not have more."""
    bind = Parameters((now, GateKind.CROWD.value))
    full = [tenant for tenant, left in room.tenants.items() if left == 0]
    but = f" AND g.tenant NOT IN {bind.several(full)}" if full else ""
    shut = sum(not left for left in room.crowds.values())
    rows = yield Query(
        f"SELECT {GATE_READ} FROM gates g WHERE g.opens_at <= ?1 AND g.kind = ?2{but}"
        f" ORDER BY g.opens_at, g.id LIMIT {bind(MOST_GATES + shut)} /*FOR UPDATE SKIP LOCKED*/",
        bind.values,
    )
    found: list[tuple[Gate, int]] = []
    for gate in map(gate_of, rows):
        left = room.of(Crowd(tenant=gate.tenant, host=gate.name or ""))
        if left > 0 and len(found) < MOST_GATES:
            found.append((gate, left))
    return found, bool(full) or len(found) < len(rows)


def let_in(
    crowds: Sequence[tuple[Gate, int]], *, room: int, max_bytes: int | None, room_for: Shares, now: int
) -> Script[Sequence[Waiter]]:
    """Who leaves the crowds now; their deliveries are for the caller to lease."""
    crowds = crowds[:room]
    wants = shares([left for _, left in crowds], room)
    line = yield from lines({gate.id: want for (gate, _), want in zip(crowds, wants, strict=True)}, now)
    passing = within(fitting([one for waiters in line.values() for one in waiters], room_for), max_bytes)
    gates: dict[GateId, Gate] = {}
    for gate, _ in crowds:
        mine = [one for one in passing if one.gate == gate.id]
        _, gates[gate.id] = admit(gate, mine, room=len(mine), now=now)
    yield from write(FORGET_WAITER, [(one.tenant, one.id) for one in passing])
    yield from save(gates.values(), now)
    return passing


def _like_them(
    keys: Sequence[Key], *, now: int, limit: int
) -> Script[Sequence[tuple[TenantId, int, int, str]]]:
    bind = Parameters((now, limit))
    those = " OR ".join(f"(d.tenant = {bind(tenant)} AND m.host = {bind(host)})" for tenant, _, host in keys)
    return (yield from due_like_them(those, bind))


def due_like_them(those: str, bind: Parameters) -> Script[Sequence[tuple[TenantId, int, int, str]]]:
    """What is due and not leased, without queue or key, of `those` (a condition on `d` and `m`), with its due time
    and host; ?1 is now, ?2 how much of what is due is looked at."""
    rows = yield Query(
        f"""
        SELECT d.tenant, d.id, d.due_at, m.host
        FROM (SELECT tenant, id FROM deliveries WHERE due_at <= ?1 ORDER BY due_at LIMIT ?2) f
        JOIN deliveries d ON d.tenant = f.tenant AND d.id = f.id JOIN messages m ON m.id = d.id
        WHERE d.due_at <= ?1 AND d.state <> {ACTIVE} AND m.queue IS NULL AND m.flow_key IS NULL AND ({those})
        /*FOR UPDATE OF d SKIP LOCKED*/
        """,
        bind.values,
    )
    return [(row[0], row[1], row[2], row[3]) for row in rows]


def _row(tenant: TenantId, id_: int, crowd: GateId, eligible_at: int) -> tuple[int, ...]:
    return (tenant, id_, crowd, eligible_at, crowd, eligible_at)
