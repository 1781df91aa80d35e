"""Queues and flow-control keys: who waits where, and what passing, ending and changing write.

What a gate decides is decided in `relay/domain/gates.py`; here its row is read, the decision is asked for, and it
is written in the transaction of whatever caused it. Every script that changes gates ends with `save`, which looks
who is first in line and writes when the gate opens.

Whoever changes what waits at a gate has locked the gate, which keeps the counts and `opens_at` true whatever else
goes on. Locks are taken in one order, so that no two transactions wait for each other: gates before deliveries,
queues before keys before crowds before tenants, the lower number first. Letting somebody pass waits for nobody: it
leaves alone whatever is locked. That forgets nobody either, because an open gate stays open until it was served,
and whoever has it locked writes anew when it opens.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import takewhile
from typing import NamedTuple

from msgspec.structs import replace

from relay.domain.delivery import Settlement
from relay.domain.fairness import Crowd, Shares
from relay.domain.gates import (
    DEFAULT_PERIOD_MS,
    KEY_LIFETIME_MS,
    Gate,
    GateChange,
    GateId,
    GateKind,
    accepted,
    admit,
    as_of,
    changed,
    default_parallelism,
    freed,
    joined,
    left,
    opens_at,
    permits,
    shares,
)
from relay.domain.message import Message, TenantId
from storage.codec import ACTIVE, CREATED, GATE_COLUMNS, RETRY, Row, gate_of, gate_row
from storage.protocol import FlowKey
from storage.sql.script import Bulk, Collision, Parameters, Query, Script, most, read, slices, write

#: Gates that one claim looks at, and messages that take a lane of one queue in it.
MOST_GATES = 200
_LANES = 100
#: How long a key rests of whose first in line nobody has a share of the room, for each key that was looked at with
#: it: where there are few, looking again soon costs little.
_REST_MS = 10
_SLICE = 500

#: No delivery in flight is due later than this from now, however the lease is configured.
LONGEST_LEASE_MS = 600_000


def _typed(columns: str) -> str:
    """A mark for each column; numbers say that they are, where nothing else would."""
    return f"({', '.join('?' if name == 'name' else 'CAST(? AS bigint)' for name in columns.split(', '))})"


GATE_READ = ", ".join(f"g.{name}" for name in GATE_COLUMNS.split(", "))
_NEW = "tenant, kind, name, created_at, updated_at, used_at, parallelism, period_ms"
_NOTHING = "paused, parallelism_pinned, rate_pinned, held, window_count, members, accepted"
_ENSURE = Bulk(
    f"INSERT INTO gates ({_NEW}, {_NOTHING})",
    f"({', '.join('?' * 8)}, 0, 0, 0, 0, 0, 0, 0)",
    " ON CONFLICT (tenant, kind, name) DO NOTHING RETURNING id",
)
_NAMED = Bulk(
    "WITH k (tenant, kind, name) AS (",
    _typed("tenant, kind, name"),
    f""") SELECT {GATE_READ}
    FROM k CROSS JOIN gates g WHERE g.tenant = k.tenant AND g.kind = k.kind AND g.name = k.name""",
)
#: The first in line at each gate: at a key when it is due, at a queue its number.
FIRSTS = Bulk(
    "WITH k (id) AS (",
    _typed("id"),
    ") SELECT k.id, (SELECT min(w.place) FROM gated w WHERE w.waits_at = k.id) FROM k",
)
_CHANGING = [name for name in GATE_COLUMNS.split(", ") if name not in ("id", "tenant", "kind", "created_at")]
_SAVE = Bulk(
    f"WITH j ({GATE_COLUMNS}, opens_at) AS (",
    _typed(f"{GATE_COLUMNS}, opens_at"),
    f""") UPDATE gates SET {", ".join(f"{name} = j.{name}" for name in (*_CHANGING, "opens_at"))}
    FROM j WHERE gates.id = j.id""",
)

_INSERT = Bulk(
    "INSERT INTO gated (tenant, id, queue, flow, seq, eligible_at, waits_at, place, callbacks, has_slot, finished)",
    f"({', '.join('?' * 8)}, 0, 0, 0)",
)
OF = Bulk(
    "WITH k (tenant, id) AS (",
    _typed("tenant, id"),
    """) SELECT v.tenant, v.id, v.queue, v.flow, v.has_slot, v.eligible_at, v.callbacks, v.finished, v.crowd,
        v.owner, v.waits_at
    FROM k CROSS JOIN gated v WHERE v.tenant = k.tenant AND v.id = k.id""",
)
FORGET_WAITER = Bulk("DELETE FROM gated WHERE (tenant, id) IN (", _typed("tenant, id"), ")")
STAND = Bulk(
    "WITH j (tenant, id, eligible_at, waits_at, place, has_slot, owner) AS (",
    _typed("tenant, id, eligible_at, waits_at, place, has_slot, owner"),
    """) UPDATE gated
    SET eligible_at = j.eligible_at, waits_at = j.waits_at, place = j.place, has_slot = j.has_slot, owner = j.owner
    FROM j WHERE gated.tenant = j.tenant AND gated.id = j.id""",
)
#: What is finished has left its key and its crowd, waits nowhere, and holds nothing of its tenant.
_OWE = Bulk(
    "WITH j (tenant, id, callbacks, finished) AS (",
    _typed("tenant, id, callbacks, finished"),
    """) UPDATE gated
    SET callbacks = j.callbacks, finished = j.finished,
        flow = CASE WHEN j.finished = 0 THEN flow END, owner = CASE WHEN j.finished = 0 THEN owner END,
        crowd = CASE WHEN j.finished = 0 THEN crowd END,
        waits_at = CASE WHEN j.finished = 0 THEN waits_at END, place = CASE WHEN j.finished = 0 THEN place END
    FROM j WHERE gated.tenant = j.tenant AND gated.id = j.id""",
)
_DUE = Bulk(
    "WITH j (tenant, id, due_at) AS (",
    _typed("tenant, id, due_at"),
    """) UPDATE deliveries SET due_at = j.due_at
    FROM j WHERE deliveries.tenant = j.tenant AND deliveries.id = j.id""",
)
_LOST = Bulk(
    f"""UPDATE deliveries
    SET state = CASE WHEN retried = 0 THEN {CREATED} ELSE {RETRY} END, due_at = NULL, claimed_at = NULL,
        lost_leases = lost_leases + 1
    WHERE (tenant, id) IN (""",
    _typed("tenant, id"),
    ")",
)
_STILL_LOST = Bulk(
    "WITH k (tenant, id, now) AS (",
    _typed("tenant, id, now"),
    f""") SELECT d.tenant, d.id FROM k CROSS JOIN deliveries d
    WHERE d.tenant = k.tenant AND d.id = k.id AND d.state = {ACTIVE} AND d.due_at <= k.now
    AND d.cancel_requested = 0 /*FOR UPDATE OF d SKIP LOCKED*/""",
)

#: What names a delivery.
Member = tuple[TenantId, int]

#: What names a gate.
Key = tuple[TenantId, GateKind, str]


class Waiter(NamedTuple):
    """A delivery that waits at a gate; `size` is that of its body, `host` where it goes. `owner` is the tenant's
    gate, for who passes with its permit."""

    gate: GateId
    tenant: TenantId
    id: int
    eligible_at: int
    flow: GateId | None
    has_slot: int
    size: int
    host: str
    owner: GateId | None = None


class Rest(NamedTuple):
    """A delivery that stops here: due again at `eligible_at`, or finished when that is None. `callbacks` came of it
    that its lane waits for. Only one that was `attempted` has a permit to give back."""

    tenant: TenantId
    id: int
    eligible_at: int | None
    callbacks: int = 0
    attempted: bool = True


# --- messages come and go


def rest_of(settlement: Settlement) -> Rest:
    """What a settlement that holds means for the gates of its message."""
    message = settlement.claim.message
    callbacks = sum(one.lane_of == message.id for one in settlement.publishes)
    return Rest(message.tenant, message.id, settlement.due_at, callbacks)


def accept(arrivals: Sequence[tuple[Message, int]]) -> Script[int | None]:
    """Put accepted messages, each with its instant, before their gates, which are made when there are none.

    Returns the earliest instant at which one of the gates opens.
    """
    keys = keys_in(arrivals)
    gates = yield from ensured(keys)
    rows = []
    for message, now in arrivals:
        seq = 0
        ids: dict[GateKind, GateId] = {}
        for key in keys_of(message):
            kind = key[1]
            limits = message.flow if kind is GateKind.FLOW else None
            gates[key] = gate = accepted(as_of(gates[key], now), limits, now)
            ids[kind] = gate.id
            if kind is GateKind.QUEUE:
                seq = gate.accepted
        queue, flow = ids.get(GateKind.QUEUE), ids.get(GateKind.FLOW)
        due_at = max(message.not_before, now)
        first = (flow, due_at) if queue is None else (queue, seq)
        rows.append((message.tenant, message.id, queue, flow, seq, due_at, *first))
    yield from write(_INSERT, rows)
    return (yield from save(gates.values(), max(keys.values())))


def settled(rests: Sequence[Rest], reported: Sequence[Member], now: int) -> Script[int | None]:
    """Free what was held; put back in line what is to be attempted again.

    `reported` names, for each callback that is finished, the message whose lane it kept. Who is finished with all
    of its callbacks gives its lane back. Returns the earliest instant at which a gate opens.
    """
    rests_by_id = {(rest.tenant, rest.id): rest for rest in rests}
    done = Counter(reported)
    rows = yield from read(OF, [*rests_by_id, *(done.keys() - rests_by_id.keys())])
    gates = yield from numbered(*_gates_in(rows))
    gone = []
    owing = []
    standing = []
    for tenant, id_, queue, flow, has_slot, _, callbacks, finished, crowd, owner, waits_at in rows:
        rest = rests_by_id.get((tenant, id_))
        owed = callbacks - done[tenant, id_]
        if rest is not None:
            owed += rest.callbacks
            finished = rest.eligible_at is None
            if owner is not None:
                gates[owner] = left(gates[owner] if waits_at == owner else freed(gates[owner]), now)
            if crowd is not None:
                gates[crowd] = left(gates[crowd], now)
            if flow is not None:
                if rest.attempted:
                    gates[flow] = freed(gates[flow])
                if finished:
                    gates[flow] = left(gates[flow], now)
                else:
                    standing.append((tenant, id_, rest.eligible_at, flow, rest.eligible_at, has_slot, None))
            elif queue is None:
                # Only the permit made this row.
                finished = True
            elif owner is not None and not finished:
                standing.append((tenant, id_, rest.eligible_at, None, None, has_slot, None))
        if not finished or owed > 0:
            if owed != callbacks or finished:
                owing.append((tenant, id_, owed, int(finished)))
            continue
        gone.append((tenant, id_))
        if queue is not None:
            if has_slot:
                gates[queue] = freed(gates[queue])
            gates[queue] = left(gates[queue], now)
    yield from write(FORGET_WAITER, gone)
    yield from write(STAND, standing)
    yield from write(_OWE, owing)
    return (yield from save(gates.values(), now))


def withdrawn(
    tenant: TenantId, ids: Sequence[int], reported: Sequence[Member], now: int
) -> Script[int | None]:
    """Forget waiting deliveries that were cancelled; `reported` as for `settled`."""
    rests = [Rest(tenant, id_, None, attempted=False) for id_ in ids]
    return (yield from settled(rests, reported, now))


def back_in_line(lost: Sequence[tuple[TenantId, int]], now: int) -> Script[set[tuple[TenantId, int]]]:
    """Of the deliveries whose lease ran out, those that need the permit of a key again: which they were.

    The slot of the lost attempt is given back with the same statement that ends its claim. A lane is kept.
    """
    rows = [row for row in (yield from read(OF, lost)) if row[3] is not None]
    gates = yield from numbered((), [row[3] for row in rows], (), [row[9] for row in rows], wait=False)
    rows = [row for row in rows if row[3] in gates and (row[9] is None or row[9] in gates)]
    found = yield from read(_STILL_LOST, [(row[0], row[1], now) for row in rows])
    still = {(row[0], row[1]) for row in found}
    rows = [row for row in rows if (row[0], row[1]) in still]
    gates = {id_: gates[id_] for row in rows for id_ in (row[3], row[9]) if id_ is not None}
    for row in rows:
        gates[row[3]] = freed(gates[row[3]])
        if row[9] is not None:
            gates[row[9]] = left(freed(gates[row[9]]), now)
    identities = [(row[0], row[1]) for row in rows]
    yield from write(_LOST, identities)
    yield from write(
        STAND,
        [
            (tenant, id_, due_at, flow, due_at, has_slot, None)
            for tenant, id_, _, flow, has_slot, due_at, *_ in rows
        ],
    )
    yield from save(gates.values(), now)
    return set(identities)


# --- passing


def next_opening() -> Script[int | None]:
    """The earliest instant at which any gate opens."""
    rows = yield Query("SELECT opens_at FROM gates WHERE opens_at IS NOT NULL ORDER BY opens_at LIMIT 1")
    return rows[0][0] if rows else None


def open_gates(kinds: Collection[GateKind], now: int) -> Script[Sequence[Gate]]:
    """Those that are open, the ones that were not looked at for longest first, as many as one claim can serve."""
    bind = Parameters((now,))
    those = bind.several(kind.value for kind in kinds)
    rows = yield Query(
        f"SELECT {GATE_READ} FROM gates g WHERE g.opens_at <= ?1 AND g.kind IN {those}"
        f" ORDER BY g.opens_at, g.id LIMIT {MOST_GATES} /*FOR UPDATE SKIP LOCKED*/",
        bind.values,
    )
    return [gate_of(row) for row in rows]


def give_lanes(queues: Sequence[Gate], now: int) -> Script[int | None]:
    """Let the first in line of each queue take the free lanes: they become due, or go on to their key.

    Returns the earliest due time that was written. Nobody goes on to a key that somebody has locked, and nobody
    overtakes who has to wait for that: the queue stays open.
    """
    line = yield from lines({queue.id: min(permits(queue, now), _LANES) for queue in queues}, None)
    flows = [waiter.flow for waiters in line.values() for waiter in waiters]
    gates = yield from numbered((), flows, wait=False)
    standing = []
    due = []
    for queue in queues:
        able = takewhile(lambda one: one.flow is None or one.flow in gates, line[queue.id])
        passing, gates[queue.id] = admit(queue, list(able), room=_LANES, now=now)
        for one in passing:
            place = None if one.flow is None else one.eligible_at
            standing.append((one.tenant, one.id, one.eligible_at, one.flow, place, 1, None))
            if one.flow is None:
                due.append((one.tenant, one.id, one.eligible_at))
    yield from write(STAND, standing)
    yield from write(_DUE, due)
    yield from save(gates.values(), now)
    return min((one[2] for one in due), default=None)


def give_permits(
    keys: Sequence[Gate], *, room: int, max_bytes: int | None, room_for: Shares | None, now: int
) -> Script[tuple[Sequence[Waiter], bool]]:
    """Who may be attempted now, their deliveries are for the caller to lease; and whether somebody was passed over
    because his host has its share of the room, or his tenant as much in flight as it may.

    `keys` are those of flow control, and tenants at which somebody waits: of one tenant, whoever is due first goes
    first, wherever he waits. Gates for which there is no room are left as they are, so that next time they are the
    first.
    """
    keys = [as_of(key, now) for key in keys[:room]]
    owners = yield from _owners(keys)
    wants = shares([permits(key, now) for key in keys], room)
    line = yield from lines({key.id: want for key, want in zip(keys, wants, strict=True)}, now)
    first = [one for waiters in line.values() for one in waiters]
    fit = fitting(first, room_for)
    able = _permitted(fit, owners, now)
    passing = within(able, max_bytes)
    gates: dict[GateId, Gate] = {}
    for key in keys:
        mine = [one for one in passing if one.gate == key.id]
        if key.kind is GateKind.FLOW:
            _, gates[key.id] = admit(key, mine, room=len(mine), now=now)
    for owner in (owner for owner in owners.values() if owner is not None):
        mine = [one for one in passing if one.owner == owner.id]
        gate = joined(owner, sum(one.gate != owner.id for one in mine), now)
        _, gates[gate.id] = admit(gate, mine, room=len(mine), now=now)
    yield from write(
        STAND,
        [(one.tenant, one.id, one.eligible_at, None, None, one.has_slot, one.owner) for one in passing],
    )
    # A key of which nobody fits is left in peace for a while: there may be very many, and others come after them.
    resting = {one.gate for one in first} - {one.gate for one in fit}
    yield from save(gates.values(), now, rest=dict.fromkeys(resting, _REST_MS * len(keys)))
    # Behind so many there may be more.
    return passing, len(able) < len(first) and len(keys) < MOST_GATES


def _owners(gates: Sequence[Gate]) -> Script[dict[TenantId, Gate | None]]:
    """Of the tenants of these gates, which are locked, those with a gate of their own; None where somebody else has
    that locked: then nobody of the tenant can pass."""
    owners: dict[TenantId, Gate | None] = {
        gate.tenant: gate for gate in gates if gate.kind is GateKind.TENANT
    }
    others = {gate.tenant for gate in gates} - owners.keys()
    named = yield from named_gates([(tenant, GateKind.TENANT, "") for tenant in others])
    locked = yield from numbered((), (), (), [gate.id for gate in named.values()], wait=False)
    return {**owners, **{gate.tenant: locked.get(gate.id) for gate in named.values()}}


def _permitted(
    waiters: Sequence[Waiter], owners: Mapping[TenantId, Gate | None], now: int
) -> Sequence[Waiter]:
    """Those for whom their tenants have permits left, of each tenant who was due first."""
    chosen: set[Member] = set()
    for tenant, owner in owners.items():
        mine = sorted((one for one in waiters if one.tenant == tenant), key=lambda one: one.eligible_at)
        chosen.update((one.tenant, one.id) for one in mine[: 0 if owner is None else permits(owner, now)])
    passing = []
    for one in waiters:
        if one.tenant not in owners:
            passing.append(one)
        elif (one.tenant, one.id) in chosen:
            owner = owners[one.tenant]
            passing.append(one._replace(owner=None if owner is None else owner.id))
    return passing


# --- changing


def change(
    tenant: TenantId,
    kind: GateKind,
    name: str,
    change: GateChange,
    *,
    create: bool,
    limit: int | None,
    now: int,
) -> Script[tuple[bool, int | None]]:
    """Whether there is such a gate, or could be made, and when it opens after the change."""
    key = (tenant, kind, name)
    gates = yield from held_gates([key])
    if not gates:
        if not create:
            return False, None
        if limit is not None:
            count = yield Query(
                "SELECT count(*) FROM gates WHERE tenant = ?1 AND kind = ?2 AND name IS NOT NULL",
                (tenant, kind),
            )
            if count[0][0] >= limit:
                return False, None
        yield from ensure({key: now})
        gates = yield from held_gates([key])
        if not gates:
            raise Collision
    opening = yield from _changed(changed(as_of(gates[key], now), change, now), now)
    return True, opening


def retire(tenant: TenantId, name: str, now: int) -> Script[GateId | None]:
    """Take a queue out of sight and stop it, so that its messages can be cancelled in bites."""
    gates = yield from held_gates([(tenant, GateKind.QUEUE, name)])
    for gate in gates.values():
        yield from _changed(replace(gate, name=None, paused=True), now)
        return gate.id
    return None


def retired() -> Script[tuple[GateId, TenantId] | None]:
    """A queue that was deleted and still has messages that nobody has cancelled."""
    rows = yield Query(
        """
        SELECT g.id, g.tenant FROM gates g WHERE g.name IS NULL AND (
            EXISTS (SELECT 1 FROM gated w WHERE w.waits_at = g.id)
            OR EXISTS (
                SELECT 1 FROM gated v CROSS JOIN deliveries d
                WHERE v.queue = g.id AND v.has_slot = 1 AND d.tenant = v.tenant AND d.id = v.id
                AND d.cancel_requested = 0
            )
        ) LIMIT 1
        """
    )
    return (rows[0][0], rows[0][1]) if rows else None


def stragglers(gate: GateId, *, limit: int) -> Script[Sequence[int]]:
    """Messages of a deleted queue that nobody has cancelled yet."""
    rows = yield Query("SELECT id FROM gated WHERE waits_at = ?1 ORDER BY place LIMIT ?2", (gate, limit))
    if not rows:
        rows = yield Query(
            """
            SELECT v.id FROM gated v CROSS JOIN deliveries d
            WHERE v.queue = ?1 AND v.has_slot = 1 AND d.tenant = v.tenant AND d.id = v.id
            AND d.cancel_requested = 0 LIMIT ?2
            """,
            (gate, limit),
        )
    return [row[0] for row in rows]


def forget(now: int, *, limit: int) -> Script[int]:
    """Keys and crowds that nobody has used for long, unless somebody paused or pinned them."""
    rows = yield Query(
        """
        DELETE FROM gates WHERE id IN (
            SELECT id FROM gates
            WHERE kind > 1 AND members = 0 AND paused = 0 AND parallelism_pinned = 0 AND rate_pinned = 0
            AND used_at <= ?1 ORDER BY used_at LIMIT ?2 /*FOR UPDATE SKIP LOCKED*/
        ) RETURNING 1
        """,
        (now - KEY_LIFETIME_MS, limit),
    )
    return len(rows)


# --- looking


def queue(tenant: TenantId, name: str) -> Script[Gate | None]:
    gates = yield from named_gates([(tenant, GateKind.QUEUE, name)])
    return next(iter(gates.values()), None)


def queues(tenant: TenantId) -> Script[Sequence[Gate]]:
    """By name."""
    rows = yield Query(
        f"SELECT {GATE_READ} FROM gates g WHERE g.tenant = ?1 AND g.kind = {GateKind.QUEUE.value}"
        " AND g.name IS NOT NULL ORDER BY g.name",
        (tenant,),
    )
    return [gate_of(row) for row in rows]


def flow_key(tenant: TenantId, name: str, now: int) -> Script[FlowKey | None]:
    gates = yield from named_gates([(tenant, GateKind.FLOW, name)])
    found = yield from _with_lines(list(gates.values()), now)
    return found[0] if found else None


def flow_keys(tenant: TenantId, search: str, *, limit: int, now: int) -> Script[Sequence[FlowKey]]:
    """Those whose name contains `search`, by name."""
    bind = Parameters()
    where = f"g.tenant = {bind(tenant)} AND g.kind = {GateKind.FLOW.value}"
    if search:
        where += f" AND replace(g.name, {bind(search)}, '') <> g.name"
    rows = yield Query(
        f"SELECT {GATE_READ} FROM gates g WHERE {where} ORDER BY g.name LIMIT {bind(limit)}", bind.values
    )
    return (yield from _with_lines([gate_of(row) for row in rows], now))


def in_flight(tenant: TenantId, *, until: int) -> Script[int]:
    """How many deliveries of the tenant have its permit, or, when none is needed, are leased; no lease reaches
    beyond `until`."""
    for gate in (yield from named_gates([(tenant, GateKind.TENANT, "")])).values():
        if gate.parallelism is not None:
            return gate.held
    rows = yield Query(
        f"SELECT count(*) FROM deliveries WHERE due_at <= ?1 AND tenant = ?2 AND state = {ACTIVE}",
        (until, tenant),
    )
    return int(rows[0][0])


# --- locking, where there are many writers


def lock(members: Sequence[tuple[int, int]], keys: Mapping[Key, int]) -> Script[Sequence[GateId]]:
    """Lock the gates of living deliveries and those with these names, which are made when there are none.

    Before anything else is locked that others lock after their gates. Gates are made before any is locked: whoever
    makes one of the same name waits, and so must hold none. Returns those that were made here.
    """
    rows = yield from read(OF, members)
    known = yield from named_gates(list(keys))
    made: Sequence[GateId] = ()
    if len(known) < len(keys):
        made = yield from ensure({key: now for key, now in keys.items() if key not in known})
        known = yield from named_gates(list(keys))
    locked = yield from numbered(
        *([*named, *living] for named, living in zip(ids_by_kind(known), _gates_in(rows), strict=True))
    )
    if len(by_key(locked.values(), keys)) < len(keys):
        raise Collision
    return made


def ensure(keys: Mapping[Key, int]) -> Script[Sequence[GateId]]:
    """Make gates, each at the instant given, in the order of their names; returns those that were made here."""
    rows = yield from read(
        _ENSURE,
        [
            (*key, keys[key], keys[key], keys[key], default_parallelism(key[1]), DEFAULT_PERIOD_MS)
            for key in sorted(keys, key=lambda key: (key[1], key[0], key[2]))
        ],
    )
    return [row[0] for row in rows]


def unmake(made: Sequence[GateId]) -> Script[None]:
    """Delete those of the gates that were made for messages which turned out to be duplicates."""
    for part in slices(made, _SLICE):
        bind = Parameters()
        yield Query(f"DELETE FROM gates WHERE id IN {bind.several(part)} AND accepted = 0", bind.values)


def ids_by_kind(gates: Mapping[Key, Gate]) -> Sequence[Sequence[GateId]]:
    """Queues, keys, crowds and tenants."""
    return [[gate.id for key, gate in gates.items() if key[1] is kind] for kind in GateKind]


def by_key(gates: Iterable[Gate], keys: Iterable[Key]) -> dict[Key, Gate]:
    """Those of the gates that still have one of these names."""
    wanted = set(keys)
    named = {(gate.tenant, gate.kind, gate.name or ""): gate for gate in gates if gate.name is not None}
    return {key: gate for key, gate in named.items() if key in wanted}


# --- parts


def keys_of(message: Message) -> Sequence[Key]:
    """The gates a message names, in the order it has to pass them."""
    keys: list[Key] = []
    if message.origin.queue is not None:
        keys.append((message.tenant, GateKind.QUEUE, message.origin.queue))
    if message.flow is not None:
        keys.append((message.tenant, GateKind.FLOW, message.flow.key))
    return keys


def keys_in(arrivals: Sequence[tuple[Message, int]]) -> dict[Key, int]:
    """The gates that messages name, each with the instant of the last that names it."""
    keys: dict[Key, int] = {}
    for message, now in arrivals:
        keys.update(dict.fromkeys(keys_of(message), now))
    return keys


def ensured(keys: Mapping[Key, int]) -> Script[dict[Key, Gate]]:
    """The gates with these names, made at the instant given when there are none."""
    gates = yield from named_gates(list(keys))
    if len(gates) < len(keys):
        yield from ensure({key: now for key, now in keys.items() if key not in gates})
        gates = yield from named_gates(list(keys))
    return gates


def _gates_in(rows: Sequence[Row]) -> Sequence[Sequence[GateId | None]]:
    """From rows of `OF`: queues, keys, crowds and tenants."""
    return [[row[column] for row in rows] for column in (2, 3, 8, 9)]


def named_gates(keys: Sequence[Key]) -> Script[dict[Key, Gate]]:
    gates = [gate_of(row) for row in (yield from read(_NAMED, keys))]
    return {(gate.tenant, gate.kind, gate.name or ""): gate for gate in gates}


def held_gates(keys: Sequence[Key]) -> Script[dict[Key, Gate]]:
    """The gates with these names that there are, locked."""
    found = yield from named_gates(keys)
    return by_key((yield from numbered(*ids_by_kind(found))).values(), keys)


def numbered(
    queues: Iterable[GateId | None],
    flows: Iterable[GateId | None],
    crowds: Iterable[GateId | None] = (),
    owners: Iterable[GateId | None] = (),
    *,
    wait: bool = True,
) -> Script[dict[GateId, Gate]]:
    """These gates, locked in order; without `wait` only those that nobody else has locked."""
    lock = "/*FOR UPDATE*/" if wait else "/*FOR UPDATE SKIP LOCKED*/"
    gates: dict[GateId, Gate] = {}
    ordered = [
        id_
        for ids in (queues, flows, crowds, owners)
        for id_ in sorted({id_ for id_ in ids if id_ is not None})
    ]
    for part in slices(ordered, _SLICE):
        bind = Parameters()
        rows = yield Query(
            f"SELECT {GATE_READ} FROM gates g WHERE g.id IN {bind.several(part)} ORDER BY g.kind, g.id {lock}",
            bind.values,
        )
        gates.update((row[0], gate_of(row)) for row in rows)
    return gates


def lines(wants: Mapping[GateId, int], due_at: int | None) -> Script[dict[GateId, list[Waiter]]]:
    """The first in line at each gate, as many as are wanted; with `due_at` only those that are due by then."""
    line: dict[GateId, list[Waiter]] = {gate: [] for gate in wants}
    bind = Parameters()
    due = "" if due_at is None else f" AND w.place <= {bind(due_at)}"
    parts = [
        f"""SELECT * FROM (
            SELECT w.waits_at, w.tenant, w.id, w.eligible_at, w.flow, w.has_slot,
                coalesce((SELECT length(m.body) FROM messages m WHERE m.id = w.id), 0),
                coalesce((SELECT m.host FROM messages m WHERE m.id = w.id), '')
            FROM gated w WHERE w.waits_at = {bind(gate)}{due}
            ORDER BY w.place, w.tenant, w.id LIMIT {most(bind(want))}
        ) l"""
        for gate, want in wants.items()
        if want > 0
    ]
    if parts:
        rows = yield Query(" UNION ALL ".join(parts), bind.values)
        for row in rows:
            line[row[0]].append(Waiter(*row))
    return line


def fitting(waiters: Sequence[Waiter], room_for: Shares | None) -> Sequence[Waiter]:
    """Those whose hosts and tenants have shares left, if those before them start."""
    if room_for is None:
        return waiters
    fit = room_for.fitting(Crowd(tenant=one.tenant, host=one.host) for one in waiters)
    return [one for one, fits in zip(waiters, fit, strict=True) if fits]


def within(waiters: Sequence[Waiter], max_bytes: int | None) -> Sequence[Waiter]:
    """As many of the first as there is room for, the one that fills it included."""
    if max_bytes is None:
        return waiters
    for count, waiter in enumerate(waiters, start=1):
        max_bytes -= waiter.size
        if max_bytes <= 0:
            return waiters[:count]
    return waiters


def _changed(gate: Gate, now: int) -> Script[int | None]:
    """Write a gate that somebody changed. Whoever has a lane of a queue and was never attempted stands in line
    again, first as before: so a pause or a lower limit holds for all that has not begun."""
    gates: dict[GateId, Gate] = {}
    if gate.kind is GateKind.QUEUE:
        rows = yield Query("SELECT flow FROM gated WHERE queue = ?1 AND has_slot = 1", (gate.id,))
        gates = yield from numbered((), [row[0] for row in rows])
        # Nobody takes or loses a lane while the queue is locked, and nobody passes a key that is.
        rows = yield Query(
            f"""
            SELECT v.tenant, v.id, v.eligible_at, v.seq FROM gated v CROSS JOIN deliveries d
            WHERE v.queue = ?1 AND v.has_slot = 1 AND d.tenant = v.tenant AND d.id = v.id
            AND d.state = {CREATED} AND d.claim_no = 0 ORDER BY d.tenant, d.id /*FOR UPDATE OF d*/
            """,
            (gate.id,),
        )
        yield from write(STAND, [(*row[:3], gate.id, row[3], 0, None) for row in rows])
        yield from write(_DUE, [(*row[:2], None) for row in rows])
        gate = replace(gate, held=gate.held - len(rows))
    gates[gate.id] = gate
    return (yield from save(gates.values(), now))


def save(gates: Iterable[Gate], now: int, *, rest: Mapping[GateId, int] | None = None) -> Script[int | None]:
    """Write gates, and when each of them opens, those in `rest` not for so many ms; the earliest of these instants.
    A deleted queue goes when the last of its messages has gone."""
    gates = list(gates)
    rows = yield from read(FIRSTS, [(gate.id,) for gate in gates])
    firsts: dict[int, int | None] = {row[0]: row[1] for row in rows}
    openings = [
        opening if opening is None or rest is None else max(opening, now + rest.get(gate.id, 0))
        for gate in gates
        for opening in (opens_at(gate, firsts[gate.id], now),)
    ]
    yield from write(
        _SAVE, [(*gate_row(gate), opening) for gate, opening in zip(gates, openings, strict=True)]
    )
    for gate in gates:
        if gate.name is None and gate.members == 0:
            yield Query("DELETE FROM gates WHERE id = ?1", (gate.id,))
    return min((opening for opening in openings if opening is not None), default=None)


def _with_lines(gates: Sequence[Gate], now: int) -> Script[Sequence[FlowKey]]:
    """Keys with the number of attempts that are due and wait."""
    waiting: dict[int, int] = {}
    for part in slices([gate.id for gate in gates], _SLICE):
        bind = Parameters()
        rows = yield Query(
            f"SELECT waits_at, count(*) FROM gated WHERE waits_at IN {bind.several(part)}"
            f" AND place <= {bind(now)} GROUP BY waits_at",
            bind.values,
        )
        waiting.update((row[0], row[1]) for row in rows)
    return [FlowKey(gate=gate, waiting=waiting.get(gate.id, 0)) for gate in gates]
