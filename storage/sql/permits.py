"""Permits: how many deliveries a tenant may have in flight, for those tenants that were given a limit.

The tenant is a gate like others (see `gates.py`), which is made when the limit is set, and says what holds. A
delivery joins it when it asks for a permit and leaves it with the end of its attempt: `gated.owner` names the gate
of whoever has a permit, or waits there for one. A lost lease keeps its permit, and whoever takes the delivery over
has it then: so it is counted once, however often workers die. Only what needs the permit of a key as well gives
both back, and stands in line again.
"""

from collections.abc import Sequence

from msgspec.structs import replace

from relay.domain.delivery import Lease
from relay.domain.gates import Gate, GateKind, joined, limited, permits
from relay.domain.message import MessageId, TenantId
from storage.codec import ACTIVE
from storage.protocol import Permits
from storage.sql.crowds import ASIDE, leases_held, not_started
from storage.sql.gates import FIRSTS, FORGET_WAITER, OF, STAND, Key, Member, ensure, held_gates, save
from storage.sql.script import Bulk, Collision, Parameters, Query, Script, most, read, write

_INSERT = Bulk(
    "INSERT INTO gated (tenant, id, owner, seq, eligible_at, waits_at, place, callbacks, has_slot, finished)",
    "(?, ?, ?, 0, ?, ?, ?, 0, 0, 0)",
)
_DISOWN = Bulk(
    "UPDATE gated SET owner = NULL WHERE (tenant, id) IN (",
    "(CAST(? AS bigint), CAST(? AS bigint))",
    ")",
)
_LEASED = leases_held()
#: Who holds a permit is being attempted, or his worker was lost in an attempt.
_HOLDS = f"""EXISTS (
    SELECT 1 FROM deliveries d WHERE d.tenant = v.tenant AND d.id = v.id AND d.state = {ACTIVE}
)"""

#: How often each process looks for permits that nobody gives back, and for how many tenants it counts them anew.
RECOUNT_MS = 600_000
RECOUNTED = 20


def limit(tenant: TenantId, parallelism: int | None, now: int) -> Script[None]:
    """Set how many deliveries the tenant may have in flight, or with None take the limit back."""
    key = (tenant, GateKind.TENANT, "")
    if parallelism is not None:
        yield from ensure({key: now})
    found = yield from held_gates([key])
    if parallelism is not None and not found:
        # Somebody has just forgotten it, because it had been of no use for long.
        raise Collision
    for gate in found.values():
        counted = yield from _recounted(gate)
        yield from save([limited(counted, parallelism, now)], now)


def leaking(*, limit: int) -> Script[Sequence[TenantId]]:
    """Tenants of which more permits are counted than attempts hold, by one look at one instant.

    It locks nothing and reads all that the tenant has at gates: for a place beside the road, now and then.
    """
    rows = yield Query(
        f"""
        SELECT t.id FROM tenants t
        JOIN gates g ON g.tenant = t.id AND g.kind = {GateKind.TENANT.value} AND g.name = ''
        WHERE g.held > (
            SELECT count(*) FROM gated v
            WHERE v.tenant = g.tenant AND v.owner = g.id AND v.waits_at IS NULL AND {_HOLDS}
        ) LIMIT {most("?1")}
        """,
        (limit,),
    )
    return [TenantId(row[0]) for row in rows]


def recount(tenant: TenantId, now: int) -> Script[None]:
    """Take back the permits of a tenant that no attempt holds.

    Versions that know nothing of limits, and run beside this one during an upgrade, settle without giving a permit
    back.
    """
    for gate in (yield from held_gates([(tenant, GateKind.TENANT, "")])).values():
        counted = yield from _recounted(gate)
        yield from save([counted], now)


def _recounted(gate: Gate) -> Script[Gate]:
    """A gate that is locked, as its rows say: while it is, no attempt gets a permit of it or gives one back."""
    rows = yield Query(
        f"SELECT v.id, v.queue, v.flow FROM gated v WHERE v.tenant = ?1 AND v.owner = ?2"
        f" AND v.waits_at IS NULL AND NOT {_HOLDS}",
        (gate.tenant, gate.id),
    )
    yield from write(
        FORGET_WAITER, [(gate.tenant, row[0]) for row in rows if row[1] is None and row[2] is None]
    )
    yield from write(
        _DISOWN, [(gate.tenant, row[0]) for row in rows if row[1] is not None or row[2] is not None]
    )
    counts = yield Query(
        "SELECT count(*), count(waits_at) FROM gated WHERE tenant = ?1 AND owner = ?2", (gate.tenant, gate.id)
    )
    members, waiting = counts[0]
    return replace(gate, held=members - waiting, members=members, accepted=max(gate.accepted, members))


def ask(leases: Sequence[Lease], *, now: int, sift: int) -> Script[tuple[Permits, int | None]]:
    """Let leased deliveries have a permit of their tenant, or wait for one in its line; and when a line opens.

    Nobody overtakes: while somebody waits, whoever comes waits behind. Only who has the permit of a key does not,
    since it counts from now: he has one of the tenant's, too, or goes nowhere. When somebody has to wait, those of
    his tenant that are among the first `sift` that are due go along, out of everybody's way.
    Locked deliveries are left alone: whoever holds the gate of a tenant waits for nothing.
    """
    keys: dict[Key, int] = {(lease.tenant, GateKind.TENANT, ""): now for lease in leases}
    owners = {gate.tenant: gate for gate in (yield from held_gates(list(keys))).values()}
    lines = yield from read(FIRSTS, [(gate.id,) for gate in owners.values()])
    waited_at = {row[0] for row in lines if row[1] is not None}
    leased = yield from read(
        _LEASED,
        [(one.tenant, one.message_id, one.claim_no) for one in leases if one.tenant in owners],
    )
    claimed: dict[Member, int] = {(row[0], row[1]): row[2] for row in leased}
    known = {(row[0], row[1]): row for row in (yield from read(OF, list(claimed)))}
    granted = {one.message_id for one in leases if one.tenant not in owners}
    fresh: list[tuple[int | None, ...]] = []
    standing: list[tuple[int | None, ...]] = []
    waiting: list[Member] = []
    refused: set[TenantId] = set()
    for lease in leases:
        member = (lease.tenant, lease.message_id)
        if member not in claimed:
            continue
        gate = owners[lease.tenant]
        _, _, _, flow, has_slot, eligible_at, *_, owner, _ = known.get(member, (None,) * 11)
        if owner is not None:
            granted.add(lease.message_id)
            continue
        waits = permits(gate, now) == 0 or (gate.id in waited_at and flow is None)
        if waits:
            refused.add(lease.tenant)
            if flow is not None:
                continue
            waiting.append(member)
            owners[lease.tenant] = joined(gate, 1, now)
        else:
            granted.add(lease.message_id)
            owners[lease.tenant] = _entered(gate, now)
        place = (gate.id, claimed[member]) if waits else (None, None)
        if member in known:
            standing.append((*member, eligible_at, *place, has_slot, gate.id))
        else:
            fresh.append((*member, gate.id, claimed[member], *place))
    for tenant, id_, due_at in (yield from _others(refused, now=now, limit=sift)):
        owners[tenant] = gate = joined(owners[tenant], 1, now)
        waiting.append((tenant, id_))
        fresh.append((tenant, id_, gate.id, due_at, gate.id, due_at))
    yield from not_started(
        [(id_, claimed[tenant, id_]) for tenant, id_ in waiting if (tenant, id_) in claimed]
    )
    yield from write(ASIDE, waiting)
    yield from write(STAND, standing)
    yield from write(_INSERT, fresh)
    answer = Permits(granted=granted, waiting={MessageId(id_) for _, id_ in waiting})
    return answer, (yield from save(owners.values(), now))


def _entered(gate: Gate, now: int) -> Gate:
    """The gate behind somebody who came and passed."""
    return replace(joined(gate, 1, now), held=gate.held + 1)


def _others(tenants: set[TenantId], *, now: int, limit: int) -> Script[Sequence[tuple[TenantId, int, int]]]:
    if not tenants:
        return []
    bind = Parameters((now, limit))
    rows = yield Query(
        f"""
        SELECT d.tenant, d.id, d.due_at
        FROM (SELECT tenant, id FROM deliveries WHERE due_at <= ?1 ORDER BY due_at LIMIT {most("?2")}) f
        JOIN deliveries d ON d.tenant = f.tenant AND d.id = f.id JOIN messages m ON m.id = d.id
        WHERE d.due_at <= ?1 AND d.state <> {ACTIVE} AND m.queue IS NULL AND m.flow_key IS NULL
        AND d.tenant IN {bind.several(sorted(tenants))} /*FOR UPDATE OF d SKIP LOCKED*/
        """,
        bind.values,
    )
    return [(row[0], row[1], row[2]) for row in rows]
