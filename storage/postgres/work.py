"""The hot operations, on as many messages as a group brings: insert, claim, settle, renew.

Each is one statement where it can be and one short transaction otherwise, so a crash anywhere in it undoes all of
it; what that means for the road of a message is said at each. Isolation is READ COMMITTED: whatever a statement
changes it changes on a condition, and the rows it answers tell what held.

Locks are taken in one order everywhere, so that no two transactions wait for each other: a schedule or dead
letters, then gates as `storage.sql.gates` says, then deliveries by (tenant, id), then dedup keys by (tenant, key).
Claims wait for nobody: they pass over what is locked, deliveries and gates.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from msgspec.structs import replace

from relay.domain.delivery import Change, Claim, Lease, Settlement
from relay.domain.errors import Unavailable
from relay.domain.fairness import Crowd
from relay.domain.gates import Gate, GateId, GateKind, is_gated, may_hold, moves_gates
from relay.domain.message import Message, MessageId, TenantId
from storage.codec import (
    ACTIVE,
    CREATED,
    DEAD_LETTER_COLUMNS,
    EVENT_COLUMNS,
    FINAL_CHANGES,
    MESSAGE_COMMON,
    MESSAGE_RARE,
    MESSAGE_READ,
    RETRY,
    Row,
    dead_letter_row,
    headers_text,
    message_of,
    message_row,
    rare_row,
    storable,
)
from storage.postgres.driver import Connection
from storage.postgres.horizon import Horizon
from storage.postgres.takeovers import Takeovers
from storage.postgres.tx import Transactions, Tx
from storage.protocol import DEDUP_WINDOW_MS, Claimed, ClaimTerms, Permits, Published, Receipt, SetAside, When
from storage.sql import crowds, gates, permits
from storage.sql.cancel import requested
from storage.sql.crowds import STANDS_ASIDE
from storage.sql.gates import Member, Waiter, rest_of
from storage.sql.road import (
    LOST,
    NO_TERMS,
    Acceptance,
    Identity,
    canceled,
    distinct,
    instant,
    left,
    stopped,
)
from storage.sql.script import Query, Script

_NO_LIMIT = (1 << 62) - 1

_log = logging.getLogger("relay.storage")

_TYPES = {
    **dict.fromkeys(("body", "response_body", "dedup_key", "key"), "bytea"),
    **dict.fromkeys(("state", "change"), "smallint"),
    **dict.fromkeys(("claim_no", "retried", "lost_leases"), "integer"),
    **dict.fromkeys(
        (
            "id", "tenant", "message_id", "position", "created_at", "not_before", "due_at", "claimed_at", "at",
            "next_at", "expires_at", "failed_at", "started_at", "ended_at", "timeout_ms", "duration_ms",
            "max_retries", "status",
        ),
        "bigint",
    ),
}  # fmt: skip


def _given(columns: str, first: int = 1) -> str:
    """A table `j` of the rows that are bound, one array for each column, beginning with parameter `$first`."""
    arrays = (f"${n}::{_TYPES.get(name, 'text')}[]" for n, name in enumerate(columns.split(", "), first))
    return f"unnest({', '.join(arrays)}) AS j ({columns})"


def _insert(table: str, columns: str, first: int = 1) -> str:
    return f"INSERT INTO {table} ({columns}) SELECT {columns} FROM {_given(columns, first)}"


def _arrays(rows: Sequence[Row], columns: str) -> Sequence[Sequence[Any]]:
    """The columns of the rows, to be bound where `_given` has the same columns."""
    return list(zip(*rows, strict=True)) if rows else [()] * len(columns.split(", "))


_BIRTH = "id, tenant, state, due_at, claim_no, claimed_at, position, at, change, next_at"
_LABEL = "tenant, label, message_id"
#: Most messages have nothing rare but the address they came from.
_PLAIN = f"{MESSAGE_COMMON}, caller_ip"
_FULL = f"{MESSAGE_COMMON}, {MESSAGE_RARE}"
_NOTHING_RARE = (None,) * (len(MESSAGE_RARE.split(", ")) - 1)


def _publish_text(columns: str, *, labelled: bool) -> str:
    """Messages, where they stand, how their history begins, and what they add to the ledger: one statement."""
    first = 12
    labels = f", l AS ({_insert('message_labels', _LABEL, first + len(columns.split(', ')))})"
    return f"""
    WITH born AS (SELECT * FROM {_given(_BIRTH)}),
    m AS ({_insert("messages", columns, first)}){labels if labelled else ""},
    d AS (
        INSERT INTO deliveries
            (tenant, id, state, due_at, retried, claim_no, lost_leases, cancel_requested, claimed_at)
        SELECT tenant, id, state, due_at, 0, claim_no, 0, 0, claimed_at FROM born
    ),
    e AS (
        INSERT INTO events (tenant, position, at, change, message_id, retried, next_at)
        SELECT tenant, position, at, change, id, 0, next_at FROM born
    )
    INSERT INTO depths (live, dead_letters) VALUES ($11, 0)
    """


_PUBLISH_PLAIN = _publish_text(_PLAIN, labelled=False)
_PUBLISH_FULL = _publish_text(_FULL, labelled=True)
_STORED = "SELECT id FROM messages WHERE tenant = $1 AND id = ANY ($2::bigint[])"

_HOLDING = "tenant, key, message_id, expires_at"
#: Takes the keys that are free or spent. Each row waits for whoever is taking the same key right now. Those that it
#: does not take it has locked, so that they are there when their holders are read.
_TAKE_KEYS = f"""
    {_insert("dedup", _HOLDING)}
    ON CONFLICT (tenant, key) DO UPDATE SET message_id = excluded.message_id, expires_at = excluded.expires_at
    WHERE dedup.expires_at <= excluded.expires_at - {DEDUP_WINDOW_MS}
    RETURNING tenant, key
"""
_HOLDERS = f"""
    SELECT d.tenant, d.key, d.message_id, d.expires_at
    FROM {_given("tenant, key")} JOIN dedup d ON d.tenant = j.tenant AND d.key = j.key
"""
_HELD = "tenant, key, message_id"
_FREE_KEYS = f"""
    DELETE FROM dedup d USING {_given(_HELD)}
    WHERE d.tenant = j.tenant AND d.key = j.key AND d.message_id = j.message_id
"""

_OPENING = "SELECT opens_at FROM gates WHERE opens_at IS NOT NULL ORDER BY opens_at LIMIT 1"

#: $1 now, $2 limit, $3 end of the lease, $4 positions, $5 bytes, $6 where to begin, $7 whether a lease that has run
#: out is lost. One row too many is looked at: it tells when to come again. What is beyond the bytes is let go by
#: the commit. Who was lost with the permit of a key needs another one: those are only named.
_CLAIM = f"""
    WITH due AS MATERIALIZED (
        SELECT tenant, id, state, due_at, cancel_requested FROM deliveries
        WHERE due_at BETWEEN $6 AND $1 AND ($7::boolean OR state <> {ACTIVE})
        ORDER BY due_at, id LIMIT $2::bigint + 1 FOR UPDATE SKIP LOCKED
    ),
    seen AS MATERIALIZED (
        SELECT due.tenant AS d_tenant, due.id AS d_id, due.state AS was, due.due_at AS was_due_at, {MESSAGE_READ},
            due.state = {ACTIVE} AND due.cancel_requested = 0 AND m.flow_key IS NOT NULL AS lost,
            row_number() OVER o AS n,
            coalesce(
                sum(octet_length(m.body)) OVER (o ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0
            ) AS bytes_before
        FROM due LEFT JOIN messages m ON m.id = due.id
        WINDOW o AS (ORDER BY due.due_at, due.id)
    ),
    taken AS (
        UPDATE deliveries d
        SET state = {ACTIVE}, claim_no = d.claim_no + 1, claimed_at = $1, due_at = $3,
            lost_leases = d.lost_leases + (d.state = {ACTIVE})::integer
        FROM seen m
        WHERE d.tenant = m.d_tenant AND d.id = m.d_id AND m.n <= $2 AND m.bytes_before < $5 AND NOT m.lost
        RETURNING m.n, m.was, d.tenant AS d_tenant, d.id AS d_id, d.retried, d.claim_no, d.lost_leases,
            d.cancel_requested, {MESSAGE_READ}
    ),
    e AS (
        INSERT INTO events (tenant, position, at, change, message_id, retried, error)
        SELECT d_tenant, ($4::bigint[])[n], $1, {Change.STARTED.value}, d_id, retried,
            CASE WHEN was = {ACTIVE} THEN '{LOST}' END
        FROM taken WHERE cancel_requested = 0
    )
    SELECT edge.*, taken.*
    FROM (
        SELECT coalesce(
            (SELECT min(was_due_at) FROM seen WHERE n > $2 OR bytes_before >= $5 OR lost),
            least(
                (SELECT due_at FROM deliveries WHERE due_at > $1 ORDER BY due_at LIMIT 1),
                (SELECT $3::bigint FROM taken LIMIT 1)
            )
        ) AS at, ({_OPENING}) AS opens_at,
        (SELECT array_agg(d_tenant ORDER BY n) FROM seen WHERE lost AND n <= $2) AS lost_tenants,
        (SELECT array_agg(d_id ORDER BY n) FROM seen WHERE lost AND n <= $2) AS lost_ids
    ) edge LEFT JOIN taken ON true ORDER BY taken.n
"""
#: Where it is asked whether a delivery is to be cancelled, among the columns of a claim.
_CANCEL_REQUESTED = 11
_EDGE = "SELECT due_at FROM deliveries WHERE due_at IS NOT NULL ORDER BY due_at LIMIT 1"

_DUE_COUNT = (
    "SELECT count(*), min(due_at) FROM"
    " (SELECT due_at FROM deliveries WHERE due_at BETWEEN $1 AND $2 ORDER BY due_at LIMIT $3) d"
)
#: Leases who has passed: $3 now, $4 end of the lease. Rows like those of `_CLAIM`.
_ADMIT = f"""
    WITH taken AS (
        UPDATE deliveries d
        SET state = {ACTIVE}, claim_no = d.claim_no + 1, claimed_at = $3, due_at = $4
        FROM unnest($1::bigint[], $2::bigint[]) WITH ORDINALITY AS j (tenant, id, n)
        WHERE d.tenant = j.tenant AND d.id = j.id
        RETURNING j.n, d.tenant AS d_tenant, d.id AS d_id, d.retried, d.claim_no, d.lost_leases
    )
    SELECT NULL, NULL, NULL, NULL, t.n, NULL, t.d_tenant, t.d_id, t.retried, t.claim_no, t.lost_leases, 0,
        {MESSAGE_READ}
    FROM taken t LEFT JOIN messages m ON m.id = t.d_id ORDER BY t.n
"""
_STARTED = "tenant, position, at, change, message_id, retried, error"
_ADD_STARTED = _insert("events", _STARTED)

_SUCCESS = "tenant, id, claim_no, position, at, retried, duration_ms, status"
#: The common end: what was asked of a delivery in flight does not matter any more, the endpoint has acted.
_DELIVER = f"""
    WITH gone AS (
        DELETE FROM deliveries d USING {_given(_SUCCESS)}
        WHERE d.tenant = j.tenant AND d.id = j.id AND d.claim_no = j.claim_no AND d.state = {ACTIVE}
        RETURNING j.*
    ),
    e AS (
        INSERT INTO events (tenant, position, at, change, message_id, retried, duration_ms, status)
        SELECT tenant, position, at, {Change.DELIVERED.value}, id, retried, duration_ms, status FROM gone
    ),
    c AS (
        INSERT INTO depths (live, dead_letters) SELECT -count(*), 0 FROM gone HAVING count(*) > 0
    )
    SELECT tenant, id, claim_no FROM gone
"""

_IDENTITY = "tenant, id, claim_no"
_HOLD = f"""
    SELECT d.tenant, d.id, d.claim_no, d.cancel_requested
    FROM {_given(_IDENTITY)} JOIN deliveries d ON d.tenant = j.tenant AND d.id = j.id
    WHERE d.claim_no = j.claim_no AND d.state = {ACTIVE}
    ORDER BY d.tenant, d.id FOR UPDATE OF d
"""
_END = f"DELETE FROM deliveries d USING {_given('tenant, id')} WHERE d.tenant = j.tenant AND d.id = j.id"
_KEPT = "tenant, id, state, due_at, retried, lost_leases"
_KEEP = f"""
    UPDATE deliveries d
    SET state = j.state, due_at = j.due_at, retried = j.retried, lost_leases = j.lost_leases, claimed_at = NULL
    FROM {_given(_KEPT)} WHERE d.tenant = j.tenant AND d.id = j.id
"""
_ADD_EVENTS = _insert("events", EVENT_COLUMNS)
_BURY = _insert("dead_letters", DEAD_LETTER_COLUMNS)

#: $4 is the end of all the leases.
_RENEW = f"""
    UPDATE deliveries d SET due_at = $4 FROM {_given(_IDENTITY)}
    WHERE d.tenant = j.tenant AND d.id = j.id AND d.claim_no = j.claim_no AND d.state = {ACTIVE}
    RETURNING d.tenant, d.id, d.claim_no
"""


#: $1 now, $2 how many of the due to look at, $3 tenant, $4 host, $5 the gate.
_SIFT = f"""
    WITH alike AS MATERIALIZED (
        SELECT d.tenant, d.id, d.due_at
        FROM (SELECT tenant, id FROM deliveries WHERE due_at <= $1 ORDER BY due_at LIMIT $2) f
        JOIN deliveries d ON d.tenant = f.tenant AND d.id = f.id JOIN messages m ON m.id = d.id
        WHERE d.due_at <= $1 AND d.state <> {ACTIVE} AND d.tenant = $3 AND m.host = $4
            AND m.queue IS NULL AND m.flow_key IS NULL
        FOR UPDATE OF d SKIP LOCKED
    ),
    moved AS (
        UPDATE deliveries d SET {STANDS_ASIDE} FROM alike WHERE d.tenant = alike.tenant AND d.id = alike.id
        RETURNING d.tenant, d.id, alike.due_at
    ),
    put AS (
        INSERT INTO gated
            (tenant, id, crowd, seq, eligible_at, waits_at, place, callbacks, has_slot, finished)
        SELECT tenant, id, $5, 0, due_at, $5, due_at, 0, 0, 0 FROM moved
        RETURNING 1
    )
    SELECT count(*) FROM put
"""


class Claiming(NamedTuple):
    """One call of claim; `now` is read anew before everything that may have to wait."""

    terms: ClaimTerms
    now: When


class Settling(NamedTuple):
    """One call of settle for what has gates, and what may be claimed in its transaction."""

    settlements: Sequence[Settlement]
    claiming: Claiming | None = None


class _Plan(NamedTuple):
    """What a group of publishes writes, and answers once it is written."""

    answers: Sequence[Published]
    messages: Sequence[Message]
    births: Sequence[Row]
    gated: Sequence[tuple[Message, int]]
    crowded: Sequence[tuple[Message, int]]


class _Admitted(NamedTuple):
    """Who passes the gates that are open, since when others are due who got a lane, whether a crowd was passed
    over, and what may be claimed besides."""

    claims: Sequence[Claim]
    lanes_at: int | None
    passed_over: bool
    rest: Claiming


class Road:
    """The hot operations of one process."""

    def __init__(self, transactions: Transactions, horizon: Horizon, takeovers: Takeovers) -> None:
        self._transactions = transactions
        self._horizon = horizon
        self._takeovers = takeovers

    async def publish(self, connection: Connection, calls: Sequence[Acceptance]) -> Sequence[Published]:
        """Accept what every call brings.

        Message, delivery, history and dedup key are one commit, and the answer to the client follows it: killed
        before, nothing was promised; killed after, everything that was promised is there. What is handed out
        at once is under a lease from the start, so that it is found again if this process dies with it.
        """
        messages = [message for call in calls for message in call.messages]
        if any(message.dedup_key is not None or is_gated(message) for message in messages) or any(
            call.terms is not None and call.terms.aside for call in calls
        ):
            return await self._transactions.run(connection, lambda tx: accept(tx, calls))
        return await self._transactions.at_once(connection, lambda tx: _write(tx, _plan(tx, calls, {})))

    async def publish_again(self, connection: Connection, call: Acceptance) -> Published:
        """Accept one call that spoiled its group: perhaps because it is the repetition of one that went through."""

        async def again(tx: Tx) -> Published:
            stored: set[int] = set()
            if call.messages:
                ids = [message.id for message in call.messages]
                stored.update(row[0] for row in await tx.rows(_STORED, call.messages[0].tenant, ids))
            return (await accept(tx, [call], stored=frozenset(stored)))[0]

        return await self._transactions.run(connection, again)

    async def claim(self, connection: Connection, calls: Sequence[Claiming]) -> Sequence[Claimed]:
        """Lease for one call after the other: a process has one loop that claims, so there is hardly a second."""
        return [await self.claim_alone(connection, call) for call in calls]

    async def claim_alone(self, connection: Connection, call: Claiming) -> Claimed:
        """Lease the oldest of what is due; leases that ran out are in the same range of the same index. Before
        that, let pass whom an open gate lets pass.

        The claim is durable before anyone acts on it. Killed with it in hand, the lease runs out and whoever
        claims then knows (`lost_leases`) that the endpoint may have seen the message. What passes a gate is leased
        in a commit of its own. Without gates it is one statement, which also tells whether a gate is open: so one
        that was opened elsewhere comes second, but never later than that.
        """
        claims: list[Claim] = []
        served = passed_over = False
        lanes_at: int | None = None
        try:
            while True:
                if self._open(call):
                    served = True
                    admitted, lanes_at, passed_over, call = await self._pass(connection, call)
                    claims += admitted
                now = instant(call.now)
                due, next_due_at, call = await self._claim_due(connection, call, now)
                claims = [*due, *claims]
                if served or not self._open(call):
                    break
        except Unavailable as problem:
            if not claims:
                raise
            # What is leased already is not left to its lease.
            _log.warning("not all that is due could be claimed: %s", problem)
            now = next_due_at = instant(call.now)
        if lanes_at is not None and next_due_at is not None and next_due_at <= now:
            self._transactions.tell(lanes_at)
        return Claimed(claims=claims, at=now, next_due_at=next_due_at, passed_over=passed_over)

    def _open(self, call: Claiming) -> bool:
        opens_at = self._transactions.opens_at
        return opens_at is not None and opens_at <= instant(call.now) and call.terms.limit > 0

    async def _pass(self, connection: Connection, call: Claiming) -> "_Admitted":
        begin = self._horizon.begin(instant(call.now))
        admitted = await self._transactions.run(connection, lambda tx: _admit(tx, call, begin))
        if admitted.lanes_at is not None:
            self._horizon.hear(admitted.lanes_at)
        return admitted

    async def _claim_due(
        self, connection: Connection, call: Claiming, now: int
    ) -> tuple[Sequence[Claim], int | None, Claiming]:
        """What is due, when to come again, and what may be claimed besides."""
        terms = call.terms
        limit = max(0, terms.limit)
        max_bytes = _NO_LIMIT if terms.max_bytes is None else max(1, terms.max_bytes)
        begin = self._horizon.begin(now)
        takes_over = self._takeovers.allowed(terms.lease_ms)
        # Gates that this process opens meanwhile count from now on.
        self._transactions.opens_at = None

        async def claim(tx: Tx) -> Sequence[Row]:
            positions = [tx.position(now) for _ in range(limit)]
            rows: Sequence[Row] = await tx.rows(
                _CLAIM, now, limit, now + terms.lease_ms, positions, max_bytes, begin, takes_over
            )
            return rows

        rows = await self._transactions.at_once(connection, claim)
        next_due_at, opens_at, lost_tenants, lost_ids = rows[0][:4]
        if takes_over:
            self._horizon.seen(now if next_due_at is None else min(next_due_at, now), now)
        self._transactions.opens(opens_at)
        abandoned: list[Claim] = []
        claims: list[Claim] = []
        for row in rows:
            one = _claim_of(row, now)
            if one is not None:
                (abandoned if row[_CANCEL_REQUESTED] else claims).append(one)
        if abandoned or lost_ids:
            try:
                if lost_ids:
                    lost = list(zip(lost_tenants, lost_ids, strict=True))
                    await self._transactions.run(connection, lambda tx: _put_back(tx, lost, now))
                if abandoned:
                    await self.settle(connection, [[stopped(one, now) for one in abandoned]])
                edge = await connection.rows(_EDGE)
                next_due_at = edge[0][0] if edge else None
            except Unavailable as problem:
                if not claims:
                    raise
                _log.warning("lost attempts could not be put back: %s", problem)
                next_due_at = now
        return claims, _earliest(next_due_at, self._transactions.opens_at), _rest(call, claims)

    async def settle(
        self, connection: Connection, calls: Sequence[Sequence[Settlement]]
    ) -> Sequence[Sequence[MessageId]]:
        """Write every settlement whose claim is still the current one; the ids of the others, call by call.

        State, history, dead letter and the messages that follow are one commit. Killed before it, the lease runs
        out and the attempt is made again: at least once. Killed after it, the repeated settlement is refused.
        """
        refused: list[list[MessageId]] = [[] for _ in calls]
        fresh = distinct(calls, refused)
        if _are_delivered(fresh) and not any(moves_gates(one.claim) for _, one in fresh.values()):
            held = await self._transactions.at_once(connection, lambda tx: _deliver(tx, fresh))
        else:
            held = await self._transactions.run(connection, lambda tx: _settle(tx, fresh))
        for identity, (number, _) in fresh.items():
            if identity not in held:
                refused[number].append(MessageId(identity[1]))
        return refused

    async def settle_alone(
        self, connection: Connection, settlements: Sequence[Settlement]
    ) -> Sequence[MessageId]:
        """`settle` for one call."""
        return (await self.settle(connection, [settlements]))[0]

    async def settle_and_claim(self, connection: Connection, calls: Sequence[Settling]) -> Sequence[Claimed]:
        """Settle one call after the other: a process has one loop that settles, so there is hardly a second."""
        return [await self.settle_and_claim_alone(connection, call) for call in calls]

    async def settle_and_claim_alone(self, connection: Connection, call: Settling) -> Claimed:
        """`settle`, and in the same transaction let pass and lease who waits for what it frees.

        Killed before the commit, the leases of what was attempted run out, and nobody was let pass in their place;
        killed after it, the attempts are over, and the leases of what was claimed run out. Who gets a lane is due
        then like anybody else: claims tell each other where to begin, and this is none of them.
        """
        refused: list[MessageId] = []
        fresh = distinct([call.settlements], [refused])
        begin = self._horizon.floor
        held, claimed = await self._transactions.run(
            connection, lambda tx: _settle_and_admit(tx, fresh, call.claiming, begin)
        )
        refused += [MessageId(identity[1]) for identity in fresh if identity not in held]
        return replace(claimed, refused=refused)

    async def renew(self, connection: Connection, leases: Sequence[Lease], until: int) -> Sequence[MessageId]:
        """Extend the leases that are still held; the ids of the others."""
        identities = [(lease.tenant, lease.message_id, lease.claim_no) for lease in leases]
        rows = await connection.rows(_RENEW, *_arrays(sorted(set(identities)), _IDENTITY), until)
        held = {tuple(row) for row in rows}
        return [identity[1] for identity in identities if identity not in held]


async def accept(
    tx: Tx, calls: Sequence[Acceptance], *, stored: frozenset[int] = frozenset()
) -> Sequence[Published]:
    """Accept inside an open transaction. Messages in `stored` are there already and only get their receipt."""
    arrivals = [
        (message, call.now)
        for call in calls
        for message in call.messages
        if message.id not in stored and is_gated(message)
    ]
    crowded = [
        (message, call.now)
        for call in calls
        for message in call.messages
        if call.terms is not None and message.id in call.terms.aside and message.id not in stored
    ]
    keys = {**gates.keys_in(arrivals), **crowds.keys_in(crowded)}
    made = await tx.run(gates.lock((), keys)) if keys else ()
    answers = await _write(tx, _plan(tx, calls, await _take_keys(tx, calls, stored), stored))
    if made:
        await tx.run(gates.unmake(made))
    return answers


async def _take_keys(
    tx: Tx, calls: Sequence[Acceptance], stored: frozenset[int]
) -> dict[tuple[int, bytes], tuple[MessageId, int]]:
    """Take the keys that these messages bring; who holds those that could not be had, and until when."""
    wanted: dict[tuple[int, bytes], tuple[int, int]] = {}
    for call in calls:
        for message in call.messages:
            if message.dedup_key is not None and message.id not in stored:
                identity = (message.tenant, message.dedup_key)
                wanted.setdefault(identity, (message.id, call.now + DEDUP_WINDOW_MS))
    if not wanted:
        return {}
    rows = [(*identity, *holding) for identity, holding in sorted(wanted.items())]
    taken = {(tenant, key) for tenant, key in await tx.rows(_TAKE_KEYS, *_arrays(rows, _HOLDING))}
    missed = [identity for identity in wanted if identity not in taken]
    if not missed:
        return {}
    holders = await tx.rows(_HOLDERS, *_arrays(missed, "tenant, key"))
    return {(tenant, key): (id_, expires_at) for tenant, key, id_, expires_at in holders}


def _plan(
    tx: Tx,
    calls: Sequence[Acceptance],
    keys: dict[tuple[int, bytes], tuple[MessageId, int]],
    stored: frozenset[int] = frozenset(),
) -> _Plan:
    messages: list[Message] = []
    births: list[Row] = []
    gated: list[tuple[Message, int]] = []
    crowded: list[tuple[Message, int]] = []
    answers = []
    for accepted, now, terms, positions in calls:
        receipts = []
        claims: list[Claim] = []
        terms = terms or NO_TERMS
        for number, message in enumerate(accepted):
            id_ = message.id
            key = message.dedup_key
            if id_ in stored:
                receipts.append(Receipt(message_id=id_))
                continue
            if key is not None:
                earlier = keys.get((message.tenant, key))
                if earlier is not None and earlier[1] > now:
                    receipts.append(Receipt(message_id=earlier[0], deduplicated=earlier[0] != id_))
                    continue
                keys[message.tenant, key] = (id_, now + DEDUP_WINDOW_MS)
            receipts.append(Receipt(message_id=id_))
            messages.append(message)
            due_at = message.not_before
            if is_gated(message):
                gated.append((message, now))
                stand: Row = (CREATED, None, 0, None)
                change, next_at = Change.CREATED, due_at if due_at > now else None
            elif due_at <= now and id_ in terms.aside:
                crowded.append((message, now))
                stand = (CREATED, None, 0, None)
                change, next_at = Change.CREATED, None
            elif due_at <= now and len(claims) < terms.limit:
                claims.append(Claim(message=message, claim_no=1, claimed_at=now))
                stand = (ACTIVE, now + terms.lease_ms, 1, now)
                change, next_at = Change.STARTED_AT_ONCE, None
            else:
                # Nothing is claimed at an instant before the one it was accepted at.
                tx.due(max(due_at, now), now)
                stand = (CREATED, max(due_at, now), 0, None)
                change, next_at = Change.CREATED, due_at if due_at > now else None
            position = tx.position(now) if positions is None else positions[number]
            births.append((id_, message.tenant, *stand, position, now, change.value, next_at))
        answers.append(Published(receipts=receipts, claims=claims))
    return _Plan(answers, messages, births, gated, crowded)


async def _write(tx: Tx, plan: _Plan) -> Sequence[Published]:
    messages = plan.messages
    if not messages:
        return plan.answers
    births = _arrays(plan.births, _BIRTH)
    rare = [rare_row(message) for message in messages]
    if all(one[1:] == _NOTHING_RARE for one in rare):
        rows = [(*message_row(message), one[0]) for message, one in zip(messages, rare, strict=True)]
        await tx.rows(_PUBLISH_PLAIN, *births, len(messages), *_arrays(rows, _PLAIN))
    else:
        rows = [(*message_row(message), *one) for message, one in zip(messages, rare, strict=True)]
        labels = [
            (message.tenant, label, message.id) for message in messages for label in set(message.labels)
        ]
        await tx.rows(_PUBLISH_FULL, *births, len(messages), *_arrays(rows, _FULL), *_arrays(labels, _LABEL))
    if plan.gated:
        tx.opens(await tx.run(gates.accept(plan.gated)), max(now for _, now in plan.gated))
    if plan.crowded:
        tx.opens(await tx.run(crowds.accept(plan.crowded)), max(now for _, now in plan.crowded))
    return plan.answers


def _claim_of(row: Row, now: int) -> Claim | None:
    """From a row of _CLAIM; None for the row without a delivery, and for a message that cannot be read."""
    _, _, _, _, n, _, tenant, id_, retried, claim_no, lost_leases, _, *content = row
    if n is None:
        return None
    try:
        message = message_of(content)
    except Exception:
        # Out of the way for the length of a lease, like a message that kills its worker.
        _log.exception("message %s of tenant %s cannot be read", id_, tenant)
        return None
    return Claim(message=message, claim_no=claim_no, claimed_at=now, retried=retried, lost_leases=lost_leases)


async def set_aside(tx: Tx, surplus: Mapping[Crowd, Sequence[Lease]], now: int, limit: int) -> SetAside:
    """Let leased deliveries, and others like them, wait in their crowds.

    Killed before the commit, their leases run out; killed after it, any claim finds them in their crowds.
    """
    answer, opens_at = await tx.run(crowds.set_aside(surplus, now=now, limit=limit, sift=_sift))
    tx.opens(opens_at, now)
    return answer


def _sift(crowd: Crowd, gate: GateId, now: int, limit: int) -> Script[int]:
    rows = yield Query(_SIFT, (now, limit, crowd.tenant, crowd.host, gate))
    return int(rows[0][0])


async def ask_permits(tx: Tx, leases: Sequence[Lease], now: int, sift: int) -> Permits:
    """Let leased deliveries have a permit of their tenant, or wait in its line. As in `storage.sqlite.work`."""
    answer, opens_at = await tx.run(permits.ask(leases, now=now, sift=sift))
    tx.opens(opens_at, now)
    return answer


async def _admit(tx: Tx, call: Claiming, begin: int) -> _Admitted:
    """Inside a transaction: give lanes and permits, lease who has a permit. As in `storage.sqlite.work`."""
    terms = call.terms
    now = instant(call.now)
    queues = await tx.run(gates.open_gates((GateKind.QUEUE,), now))
    lanes_at = await tx.run(gates.give_lanes(queues, now)) if queues else None
    keys = await tx.run(gates.open_gates((GateKind.FLOW, GateKind.TENANT), now))
    waiting: Sequence[tuple[Gate, int]] = ()
    passed_over = False
    if terms.shares is not None:
        waiting, passed_over = await tx.run(crowds.open_crowds(terms.shares, now))
    if not keys and not waiting:
        return _Admitted((), lanes_at, passed_over, call)
    # Whatever this had to wait for, the gates are ours from here: what passes them passes now.
    now = max(now, instant(call.now))
    if lanes_at is not None:
        begin = min(begin, lanes_at)
    due, oldest = (await tx.rows(_DUE_COUNT, begin, now, terms.limit))[0]
    room = max(terms.limit - due, terms.limit // 2)
    if room == 0 and (await tx.run(gates.next_opening()) or now) <= oldest:
        room = 1
    passing: Sequence[Waiter] = ()
    if keys:
        for_keys = room - room // 2 if waiting else room
        passing, kept = await tx.run(
            gates.give_permits(keys, room=for_keys, max_bytes=terms.max_bytes, room_for=terms.shares, now=now)
        )
        passed_over = passed_over or kept
    rest = left(terms, [one.size for one in passing])
    room -= len(passing)
    if waiting and terms.shares and rest.limit and room > 0:
        let_in = crowds.let_in(waiting, room=room, max_bytes=rest.max_bytes, room_for=terms.shares, now=now)
        passing = [*passing, *await tx.run(let_in)]
    if not passing:
        return _Admitted((), lanes_at, passed_over, call)
    rows = await tx.rows(
        _ADMIT, [one.tenant for one in passing], [one.id for one in passing], now, now + terms.lease_ms
    )
    holders = {one.id for one in passing if one.owner is not None}
    claims = [
        replace(claim, permit=claim.message.id in holders)
        for row in rows
        if (claim := _claim_of(row, now)) is not None
    ]
    started = [
        (
            claim.message.tenant,
            tx.position(now),
            now,
            Change.STARTED.value,
            claim.message.id,
            claim.retried,
            LOST if claim.lost_leases and claim.message.flow is not None else None,
        )
        for claim in claims
    ]
    await tx.rows(_ADD_STARTED, *_arrays(started, _STARTED))
    return _Admitted(claims, lanes_at, passed_over, _rest(call, claims))


async def _put_back(tx: Tx, lost: Sequence[tuple[TenantId, int]], now: int) -> None:
    """Attempts whose lease ran out give the permits of their keys back and stand in line again."""
    await tx.run(gates.back_in_line(lost, now))
    tx.opens(await tx.run(gates.next_opening()), now)


def _rest(call: Claiming, claims: Sequence[Claim]) -> Claiming:
    """What may be claimed when these are."""
    return Claiming(left(call.terms, [len(claim.message.request.body) for claim in claims]), call.now)


def _earliest(*instants: int | None) -> int | None:
    return min((at for at in instants if at is not None), default=None)


def _are_delivered(fresh: dict[Identity, tuple[int, Settlement]]) -> bool:
    """Whether all are the common end, with nothing that follows."""
    return all(one.change is Change.DELIVERED and not one.publishes for _, one in fresh.values())


async def _deliver(tx: Tx, fresh: dict[Identity, tuple[int, Settlement]]) -> set[Identity]:
    """Settle what was delivered, but for its gates; the claims that were held."""
    rows = []
    for identity in sorted(fresh):
        settlement = fresh[identity][1]
        attempt = settlement.attempt
        assert attempt is not None
        duration_ms = attempt.ended_at - attempt.started_at
        at = settlement.at
        rows.append((*identity, tx.position(at), at, settlement.claim.retried, duration_ms, attempt.status))
    return {tuple(row) for row in await tx.rows(_DELIVER, *_arrays(rows, _SUCCESS))} if rows else set()


def nothing_claimed(settlements: Sequence[Settlement]) -> Claimed:
    """The answer to whoever settles and takes nothing; what that makes due is told like ever."""
    return Claimed(claims=(), at=max((one.at for one in settlements), default=0), next_due_at=None)


async def _settle_and_admit(
    tx: Tx, fresh: dict[Identity, tuple[int, Settlement]], claiming: Claiming | None, begin: int
) -> tuple[set[Identity], Claimed]:
    """Settle, and let pass whom the gates that this opened let pass; the claims that were held."""
    held = await _settle(tx, fresh)
    if claiming is None or tx.opens_at is None or claiming.terms.limit <= 0:
        return held, nothing_claimed([one for _, one in fresh.values()])
    # Only here: whoever had the gates in hand before has let go of them.
    now = instant(claiming.now)
    if tx.opens_at > now:
        return held, nothing_claimed([one for _, one in fresh.values()])
    admitted = await _admit(tx, claiming, begin)
    # They are as they were left now, and not as the settlements left them.
    tx.opens_at = await tx.run(gates.next_opening())
    if admitted.lanes_at is not None:
        tx.due(admitted.lanes_at, now)
    return held, Claimed(
        claims=admitted.claims,
        at=now,
        next_due_at=_earliest(tx.opens_at, admitted.lanes_at),
        passed_over=admitted.passed_over,
    )


async def _settle(tx: Tx, fresh: dict[Identity, tuple[int, Settlement]]) -> set[Identity]:
    """Settle whatever there is; the claims that were held."""
    identities = sorted(fresh)
    members = []
    for tenant, id_, claim_no in identities:
        claim = fresh[tenant, id_, claim_no][1].claim
        if may_hold(claim):
            members.append((tenant, id_))
        if claim.message.lane_of is not None:
            members.append((tenant, claim.message.lane_of))
    arrivals = [(message, one.at) for _, one in fresh.values() for message in one.publishes]
    keys = gates.keys_in(arrivals)
    made = await tx.run(gates.lock(members, keys)) if members or keys else ()
    held = {
        (tenant, id_, claim_no): cancel_requested
        for tenant, id_, claim_no, cancel_requested in await tx.rows(_HOLD, *_arrays(identities, _IDENTITY))
    }
    good = [one for identity, (_, one) in fresh.items() if held.get(identity) == 0]
    if len(good) == len(held) and _are_delivered(fresh):
        await _deliver(tx, {identity: fresh[identity] for identity in held})
        await _leave_gates(tx, good)
        return set(held)
    ending = [canceled(one) for identity, (_, one) in fresh.items() if held.get(identity)]
    await _apply(tx, [*good, *(await tx.run(requested(ending)) if ending else ())])
    if made:
        await tx.run(gates.unmake(made))
    return set(held)


async def _apply(tx: Tx, settlements: Sequence[Settlement]) -> None:
    """Write settlements whose deliveries are locked. Every change but RELEASED comes with its attempt."""
    ended: list[Row] = []
    kept: list[Row] = []
    events: list[Row] = []
    dead_letters: list[Row] = []
    freed: list[tuple[int, bytes, int]] = []
    followers: list[Acceptance] = []
    for settlement in settlements:
        change = settlement.change
        one = settlement.claim
        message = one.message
        tenant, id_, at, due_at = message.tenant, message.id, settlement.at, settlement.due_at
        wakes_at = due_at if message.flow is None else None
        if change in FINAL_CHANGES:
            ended.append((tenant, id_))
        elif change is Change.RELEASED:
            # Nothing was attempted: no retry counted, no lost lease forgiven, nothing to tell.
            state = CREATED if one.retried == 0 else RETRY
            kept.append((tenant, id_, state, wakes_at, one.retried, one.lost_leases))
        else:
            kept.append((tenant, id_, RETRY, wakes_at, one.retried + 1, 0))
        if wakes_at is not None:
            tx.due(wakes_at, at)
        if settlement.publishes:
            followers.append(Acceptance(settlement.publishes, at, None))
        attempt = settlement.attempt
        if attempt is None:
            continue
        position = tx.position(at)
        duration_ms = attempt.ended_at - attempt.started_at
        answer: Row = (None, None, None)
        if change is not Change.DELIVERED:
            answer = (storable(attempt.error), headers_text(attempt.headers), attempt.body)
        events.append(
            (
                tenant,
                position,
                at,
                change.value,
                id_,
                one.retried,
                due_at,
                duration_ms,
                attempt.status,
                *answer,
            )
        )
        letter = settlement.dead_letter_id
        if letter is not None:
            dead_letters.append(dead_letter_row(letter, message, retried=one.retried, attempt=attempt))
        if change is not Change.DELIVERED and change in FINAL_CHANGES and message.dedup_key is not None:
            freed.append((tenant, message.dedup_key, id_))
    for text, rows, columns in (
        (_END, ended, "tenant, id"),
        (_KEEP, kept, _KEPT),
        (_ADD_EVENTS, events, EVENT_COLUMNS),
        (_BURY, dead_letters, DEAD_LETTER_COLUMNS),
        (_FREE_KEYS, sorted(freed), _HELD),
    ):
        if rows:
            await tx.rows(text, *_arrays(rows, columns))
    await _leave_gates(tx, settlements)
    tx.live -= len(ended)
    tx.dead_letters += len(dead_letters)
    if followers:
        await accept(tx, followers)


async def _leave_gates(tx: Tx, settlements: Sequence[Settlement]) -> None:
    """Give back what was held of gates that are locked."""
    rests = [rest_of(one) for one in settlements if may_hold(one.claim)]
    reported: list[Member] = [
        (one.claim.message.tenant, one.claim.message.lane_of)
        for one in settlements
        if one.change in FINAL_CHANGES and one.claim.message.lane_of is not None
    ]
    if rests or reported:
        now = max(one.at for one in settlements)
        tx.opens(await tx.run(gates.settled(rests, reported, now)), now)
