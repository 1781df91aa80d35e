"""Crowds: deliveries that are due and wait because their host has its share of the room.

A crowd is a gate like others (see `gates.py`), made when something is set aside for the first time. It has no
limits of its own: a claim lets in as many as the shares of the worker allow. Who was let in has left the crowd, and
is a delivery like any other from then on; nothing but waiting is different in it.
"""

from collections.abc import Callable, Mapping, Sequence

from relay.domain.delivery import Change, Lease
from relay.domain.fairness import Crowd, Shares, crowd_of
from relay.domain.gates import Gate, GateId, GateKind, admit, joined, shares
from relay.domain.message import Message, MessageId, TenantId
from storage.codec import ACTIVE, CREATED, RETRY, gate_of
from storage.protocol import SetAside
from storage.sql.gates import (
    FORGET_WAITER,
    GATE_READ,
    MOST_GATES,
    OF,
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
from storage.sql.script import Bulk, Collision, Parameters, Query, Script, most, read, write

_INSERT = Bulk(
    "INSERT INTO gated (tenant, id, crowd, seq, eligible_at, waits_at, place, callbacks, has_slot, finished)",
    "(?, ?, ?, 0, ?, ?, ?, 0, 0, 0)",
)


def leases_held(condition: str = "") -> Bulk:
    """Of leases (tenant, message, claim number): those that are held and not to be cancelled, each with the instant
    of its claim."""
    return Bulk(
        "WITH k (tenant, id, claim_no) AS (",
        "(CAST(? AS bigint), CAST(? AS bigint), CAST(? AS bigint))",
        f""") SELECT d.tenant, d.id, d.claimed_at FROM k CROSS JOIN deliveries d
        WHERE d.tenant = k.tenant AND d.id = k.id AND d.claim_no = k.claim_no AND d.state = {ACTIVE}
        AND d.cancel_requested = 0 {condition} /*FOR UPDATE OF d SKIP LOCKED*/""",
    )


#: Who took over a lost lease may have a permit with it: then it stays as it is, too.
_LEASED = leases_held("""AND NOT EXISTS (
    SELECT 1 FROM gated v WHERE v.tenant = d.tenant AND v.id = d.id
    AND (v.queue IS NULL OR v.flow IS NOT NULL OR v.owner IS NOT NULL)
)""")
#: Who has a lane of a queue waits with it.
_STAND = Bulk(
    "WITH j (tenant, id, crowd, place) AS (",
    "(CAST(? AS bigint), CAST(? AS bigint), CAST(? AS bigint), CAST(? AS bigint))",
    """) UPDATE gated SET crowd = j.crowd, waits_at = j.crowd, place = j.place
    FROM j WHERE gated.tenant = j.tenant AND gated.id = j.id""",
)
#: A start that led to nothing is none.
_NOT_STARTED = Bulk(
    f"DELETE FROM events WHERE change = {Change.STARTED.value} AND (message_id, at) IN (",
    "(CAST(? AS bigint), CAST(? AS bigint))",
    ")",
)
_NOT_AT_ONCE = Bulk(
    f"UPDATE events SET change = {Change.CREATED.value}"
    f" WHERE change = {Change.STARTED_AT_ONCE.value} AND (message_id, at) IN (",
    "(CAST(? AS bigint), CAST(? AS bigint))",
    ")",
)
#: What becomes of a delivery that is set aside.
STANDS_ASIDE = (
    f"state = CASE WHEN retried = 0 THEN {CREATED} ELSE {RETRY} END, due_at = NULL, claimed_at = NULL"
)
ASIDE = Bulk(
    f"UPDATE deliveries SET {STANDS_ASIDE} WHERE (tenant, id) IN (",
    "(CAST(? AS bigint), CAST(? AS bigint))",
    ")",
)


#: Moves what is due for a crowd, among the first so many that are due, behind the gate; how many that were.
Sift = Callable[[Crowd, GateId, int, int], Script[int]]


def keys_in(arrivals: Sequence[tuple[Message, int]]) -> dict[Key, int]:
    """The crowds of messages, each with the instant of the last of them."""
    return {_key_of(crowd_of(message)): now for message, now in arrivals}


def accept(arrivals: Sequence[tuple[Message, int]]) -> Script[int | None]:
    """Put accepted messages, each with its instant, into their crowds; when the first of these opens."""
    keys = keys_in(arrivals)
    crowds = yield from ensured(keys)
    rows = []
    for message, now in arrivals:
        key = _key_of(crowd_of(message))
        crowds[key] = crowd = joined(crowds[key], 1, now)
        rows.append(_row(message.tenant, message.id, crowd.id, max(message.not_before, now)))
    yield from write(_INSERT, rows)
    return (yield from save(crowds.values(), max(keys.values())))


def set_aside(
    surplus: Mapping[Crowd, Sequence[Lease]], *, now: int, limit: int, sift: Sift
) -> Script[tuple[SetAside, int | None]]:
    """Move leased deliveries, and those of the same crowds among the first `limit` that are due, into their crowds.

    Also returns when a crowd opens. Locked deliveries are left alone: whoever holds a crowd waits for nothing.
    """
    keys = {_key_of(crowd): now for crowd in surplus}
    yield from lock((), keys)
    gates = yield from held_gates(list(keys))
    if len(gates) < len(keys):
        raise Collision
    stayed: list[MessageId] = []
    sifted = 0
    for crowd, leases in surplus.items():
        key = _key_of(crowd)
        gate = gates[key]
        held = yield from read(
            _LEASED, [(lease.tenant, lease.message_id, lease.claim_no) for lease in leases]
        )
        yield from not_started([(id_, at) for _, id_, at in held])
        yield from write(ASIDE, [row[:2] for row in held])
        queued = {(row[0], row[1]) for row in (yield from read(OF, [row[:2] for row in held]))}
        yield from write(
            _INSERT,
            [_row(tenant, id_, gate.id, at) for tenant, id_, at in held if (tenant, id_) not in queued],
        )
        yield from write(
            _STAND, [(tenant, id_, gate.id, at) for tenant, id_, at in held if (tenant, id_) in queued]
        )
        moved = {id_ for _, id_, _ in held}
        stayed += [lease.message_id for lease in leases if lease.message_id not in moved]
        alike = yield from sift(crowd, gate.id, now, limit)
        sifted += alike
        gates[key] = joined(gate, len(held) + alike, now)
    return SetAside(stayed=stayed, sifted=sifted), (yield from save(gates.values(), now))


def not_started(claimed: Sequence[tuple[int, int]]) -> Script[None]:
    """Take back what history says of claims, each the number of a message and its instant, that came to nothing."""
    yield from write(_NOT_STARTED, claimed)
    yield from write(_NOT_AT_ONCE, claimed)


def open_crowds(room: Shares, now: int) -> Script[tuple[Sequence[tuple[Gate, int]], bool]]:
    """Crowds that wait, the ones that were not looked at for longest first, each with how many of it may be let in;
    and whether any was passed over because it may not have more."""
    bind = Parameters((now, GateKind.CROWD.value))
    full = [tenant for tenant, left in room.tenants.items() if left == 0]
    but = f" AND g.tenant NOT IN {bind.several(full)}" if full else ""
    shut = sum(not left for left in room.crowds.values())
    rows = yield Query(
        f"SELECT {GATE_READ} FROM gates g WHERE g.opens_at <= ?1 AND g.kind = ?2{but}"
        f" ORDER BY g.opens_at, g.id LIMIT {most(bind(MOST_GATES + shut))} /*FOR UPDATE SKIP LOCKED*/",
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
    yield from write(FORGET_WAITER, [(one.tenant, one.id) for one in passing if not one.has_slot])
    yield from write(_STAND, [(one.tenant, one.id, None, None) for one in passing if one.has_slot])
    yield from save(gates.values(), now)
    return passing


def _key_of(crowd: Crowd) -> Key:
    return crowd.tenant, GateKind.CROWD, crowd.host


def _row(tenant: TenantId, id_: int, crowd: GateId, eligible_at: int) -> tuple[int, ...]:
    return (tenant, id_, crowd, eligible_at, crowd, eligible_at)
