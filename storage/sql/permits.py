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
from storage.sql.gates import FIRSTS, OF, STAND, Key, Member, ensure, held_gates, save
from storage.sql.script import Bulk, Collision, Parameters, Query, Script, most, read, write

_INSERT = Bulk(
    "INSERT INTO gated (tenant, id, owner, seq, eligible_at, waits_at, place, callbacks, has_slot, finished)",
    "(?, ?, ?, 0, ?, ?, ?, 0, 0, 0)",
)
_LEASED = leases_held()


def limit(tenant: TenantId, parallelism: int | None, now: int) -> Script[None]:
    """Set how many deliveries the tenant may have in flight, or with None take the limit back."""
    key = (tenant, GateKind.TENANT, "")
    if parallelism is not None:
        yield from ensure({key: now})
    found = yield from held_gates([key])
    if parallelism is not None and not found:
        # Somebody has just forgotten it, because it had been of no use for long.
        raise Collision
    yield from save([limited(gate, parallelism, now) for gate in found.values()], now)


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
