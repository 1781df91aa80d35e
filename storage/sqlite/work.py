"""The hot operations, on as many messages as a group brings: insert, claim, settle, renew.

Each is a handful of statements whatever the number of messages. They run inside the writer's transaction, so a
crash anywhere in one of them undoes all of it; what that means for the road of a message is said at each.
"""

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence

from msgspec.structs import replace

from relay.domain.delivery import Change, Claim, Lease, Settlement
from relay.domain.fairness import Crowd
from relay.domain.gates import Gate, GateId, GateKind, is_gated, may_hold
from relay.domain.message import Message, MessageId
from storage.codec import (
    ACTIVE,
    CREATED,
    DEAD_LETTER_COLUMNS,
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
from storage.protocol import DEDUP_WINDOW_MS, Claimed, ClaimTerms, Permits, Published, Receipt, SetAside, When
from storage.sql import crowds, gates, permits
from storage.sql.cancel import requested
from storage.sql.crowds import STANDS_ASIDE
from storage.sql.gates import Member, Rest, Waiter, rest_of
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
from storage.sql.script import Bulk, Parameters, Query, Script, marks, most, slices
from storage.sqlite.writer import Tx

_MESSAGE = f"INSERT INTO messages ({MESSAGE_COMMON}"
#: Most messages have nothing rare but the address they came from.
_INSERT_PLAIN = Bulk(f"{_MESSAGE}, caller_ip)", marks(12))
_INSERT_MESSAGES = Bulk(f"{_MESSAGE}, {MESSAGE_RARE})", marks(22))
#: Where the body is among the columns of a claim.
_BODY = 7 + 8
_NOTHING_RARE = (None,) * 10
_INSERT_LABELS = Bulk("INSERT INTO message_labels (tenant, label, message_id)", marks(3))

_DELIVERY = (
    "INSERT INTO deliveries"
    " (tenant, id, due_at, claimed_at, state, retried, claim_no, lost_leases, cancel_requested)"
)
_INSERT_WAITING = Bulk(_DELIVERY, f"(?, ?, ?, NULL, {CREATED}, 0, 0, 0, 0)")
_INSERT_STARTED = Bulk(_DELIVERY, f"(?, ?, ?, ?, {ACTIVE}, 0, 1, 0, 0)")

_EVENT = "INSERT INTO events (tenant, position, at, message_id, change, retried"
_ADD_CREATED = Bulk(f"{_EVENT})", f"(?, ?, ?, ?, {Change.CREATED.value}, 0)")
_ADD_DELAYED = Bulk(f"{_EVENT}, next_at)", f"(?, ?, ?, ?, {Change.CREATED.value}, 0, ?)")
_ADD_STARTED_AT_ONCE = Bulk(f"{_EVENT})", f"(?, ?, ?, ?, {Change.STARTED_AT_ONCE.value}, 0)")
_ADD_STARTED = Bulk(f"{_EVENT})", f"(?, ?, ?, ?, {Change.STARTED.value}, ?)")
_ADD_STARTED_AGAIN = Bulk(f"{_EVENT}, error)", f"(?, ?, ?, ?, {Change.STARTED.value}, ?, '{LOST}')")
_ADD_DELIVERED = Bulk(f"{_EVENT}, duration_ms, status)", f"(?, ?, ?, ?, {Change.DELIVERED.value}, ?, ?, ?)")
_ADD_FAILED = Bulk(
    f"{_EVENT}, duration_ms, status, next_at, error, response_headers, response_body)", marks(12)
)
_INSERT_DEAD_LETTERS = Bulk(f"INSERT INTO dead_letters ({DEAD_LETTER_COLUMNS})", marks(11))

_PUT_DEDUP = Bulk(
    "INSERT INTO dedup (tenant, key, message_id, expires_at)",
    marks(4),
    " ON CONFLICT (tenant, key) DO UPDATE SET message_id = excluded.message_id, expires_at = excluded.expires_at",
)
_READ_DEDUP = Bulk(
    "WITH k (tenant, key) AS (",
    marks(2),
    """) SELECT d.tenant, d.key, d.message_id, d.expires_at
    FROM k JOIN dedup d ON d.tenant = k.tenant AND d.key = k.key""",
)
_FREE_DEDUP = Bulk("DELETE FROM dedup WHERE (tenant, key, message_id) IN (", marks(3), ")")

#: One row with the numbers of those that are not what they are taken for, NULL when all are.
_MISMATCHES = Bulk(
    "WITH j (n, tenant, id, claim_no) AS (",
    marks(4),
    f""") SELECT group_concat(j.n)
    FROM j LEFT JOIN deliveries d ON d.tenant = j.tenant AND d.id = j.id
    WHERE d.claim_no IS NOT j.claim_no OR d.state <> {ACTIVE} OR d.cancel_requested""",
)
_DELETE_DELIVERIES = Bulk("DELETE FROM deliveries WHERE (tenant, id) IN (", marks(2), ")")
_KEEP_DELIVERIES = Bulk(
    "WITH j (tenant, id, state, due_at, retried, lost_leases) AS (",
    marks(6),
    """) UPDATE deliveries
    SET state = j.state, due_at = j.due_at, retried = j.retried, lost_leases = j.lost_leases, claimed_at = NULL
    FROM j WHERE deliveries.tenant = j.tenant AND deliveries.id = j.id""",
)
_EXTEND_LEASES = Bulk(
    "WITH j (tenant, id, due_at) AS (",
    marks(3),
    """) UPDATE deliveries SET due_at = j.due_at
    FROM j WHERE deliveries.tenant = j.tenant AND deliveries.id = j.id""",
)
_LEASE = Bulk(
    "WITH j (tenant, id, claimed_at, due_at) AS (",
    marks(4),
    f""") UPDATE deliveries
    SET state = {ACTIVE}, claim_no = claim_no + 1, claimed_at = j.claimed_at, due_at = j.due_at
    FROM j WHERE deliveries.tenant = j.tenant AND deliveries.id = j.id""",
)

#: What a claim is made of.
_CLAIMED = (
    "d.tenant, d.id, d.state, d.retried, d.claim_no, d.lost_leases, d.cancel_requested, " + MESSAGE_READ
)
_CONTENT = Bulk(
    "WITH k (tenant, id) AS (",
    marks(2),
    f""") SELECT {_CLAIMED} FROM k CROSS JOIN deliveries d LEFT JOIN messages m ON m.id = d.id
    WHERE d.tenant = k.tenant AND d.id = k.id""",
)

_SIFT = f"""
    INSERT INTO temp.sifted SELECT d.tenant, d.id, d.due_at
    FROM (SELECT tenant, id FROM deliveries WHERE due_at <= ?1 ORDER BY due_at LIMIT {most("?2")}) f
    JOIN deliveries d ON d.tenant = f.tenant AND d.id = f.id JOIN messages m ON m.id = d.id
    WHERE d.state <> {ACTIVE} AND d.tenant = ?3 AND m.host = ?4 AND m.queue IS NULL AND m.flow_key IS NULL
"""
_PUT_ASIDE = """
    INSERT INTO gated (tenant, id, crowd, seq, eligible_at, waits_at, place, callbacks, has_slot, finished)
    SELECT tenant, id, ?1, 0, due_at, ?1, due_at, 0, 0, 0 FROM temp.sifted
"""

_log = logging.getLogger("relay.storage")


def publish(
    tx: Tx, calls: Sequence[Acceptance], *, stored: frozenset[int] = frozenset()
) -> Sequence[Published]:
    """Accept what every call brings. Messages in `stored` are there already and only get their receipt.

    Message, delivery, history and dedup key are one commit, and the answer to the client follows it: killed
    before, nothing was promised; killed after, everything that was promised is there. What is handed out
    at once is under a lease from the start, so that it is found again if this process dies with it.
    """
    keys = _dedup_keys(tx, [message for call in calls for message in call.messages])
    taken: list[Row] = []
    messages: list[Message] = []
    started: list[Row] = []
    started_events: list[Row] = []
    waiting: list[Row] = []
    created_events: list[Row] = []
    delayed_events: list[Row] = []
    gated: list[tuple[Message, int]] = []
    crowded: list[tuple[Message, int]] = []
    answers = []
    for accepted, now, terms, _ in calls:
        receipts = []
        claims: list[Claim] = []
        terms = terms or NO_TERMS
        for message in accepted:
            id_ = message.id
            tenant = message.tenant
            key = message.dedup_key
            if id_ in stored:
                receipts.append(Receipt(message_id=id_))
                continue
            if key is not None:
                earlier = keys.get((tenant, key))
                if earlier is not None and earlier[1] > now:
                    receipts.append(Receipt(message_id=earlier[0], deduplicated=earlier[0] != id_))
                    continue
                keys[tenant, key] = (id_, now + DEDUP_WINDOW_MS)
                taken.append((tenant, key, id_, now + DEDUP_WINDOW_MS))
            receipts.append(Receipt(message_id=id_))
            messages.append(message)
            due_at = message.not_before
            event = (tenant, tx.position(now), now, id_)
            if is_gated(message):
                gated.append((message, now))
                waiting.append((tenant, id_, None))
                if due_at > now:
                    delayed_events.append((*event, due_at))
                else:
                    created_events.append(event)
            elif due_at > now:
                waiting.append((tenant, id_, due_at))
                delayed_events.append((*event, due_at))
                tx.due(due_at)
            elif id_ in terms.aside:
                crowded.append((message, now))
                waiting.append((tenant, id_, None))
                created_events.append(event)
            elif len(claims) < terms.limit:
                claims.append(Claim(message=message, claim_no=1, claimed_at=now))
                started.append((tenant, id_, now + terms.lease_ms, now))
                started_events.append(event)
            else:
                # Nothing is claimed at an instant before the one it was accepted at.
                waiting.append((tenant, id_, now))
                created_events.append(event)
                tx.due(now)
        answers.append(Published(receipts=receipts, claims=claims))
    _insert(tx, messages)
    tx.write(_INSERT_STARTED, started)
    tx.write(_ADD_STARTED_AT_ONCE, started_events)
    tx.write(_INSERT_WAITING, waiting)
    tx.write(_ADD_CREATED, created_events)
    tx.write(_ADD_DELAYED, delayed_events)
    tx.write(_PUT_DEDUP, taken)
    if gated:
        tx.due(tx.run(gates.accept(gated)))
    if crowded:
        tx.due(tx.run(crowds.accept(crowded)))
    tx.live += len(messages)
    return answers


def publish_again(tx: Tx, call: Acceptance) -> Published:
    """Accept one call that spoiled its group: perhaps because it is the repetition of one that went through."""
    stored: set[int] = set()
    for part in slices(call.messages, 500):
        bind = Parameters()
        rows = tx.rows(
            f"SELECT id FROM messages WHERE id IN {bind.several(message.id for message in part)}"
            f" AND tenant = {bind(part[0].tenant)}",
            bind.values,
        )
        stored.update(row[0] for row in rows)
    return publish(tx, [call], stored=frozenset(stored))[0]


def claim(tx: Tx, terms: ClaimTerms, when: When) -> Claimed:
    """Lease the oldest of what is due; leases that ran out are in the same range of the same index. Before that,
    let pass whom an open gate lets pass.

    The claim is durable before anyone acts on it. Killed with it in hand, the lease runs out and whoever
    claims then knows (`lost_leases`) that the endpoint may have seen the message. Slots that it holds are given
    back by that claim, in the same commit as its lease is.
    """
    # Only here: the writer has the lock it may have waited for.
    now = instant(when)
    opens_at = tx.run(gates.next_opening())
    admitted: Sequence[Row] = ()
    holders: Collection[int] = ()
    passed_over = False
    if opens_at is not None and opens_at <= now and terms.limit > 0:
        admitted, holders, terms, passed_over = _admitted(tx, terms, now)
        opens_at = tx.run(gates.next_opening())
    rows = _due(tx, terms, now)
    lost = [(row[0], row[1]) for row in rows if row[2] == ACTIVE and not row[6]]
    if lost:
        back = tx.run(gates.back_in_line(lost, now))
        rows = [row for row in rows if (row[0], row[1]) not in back]
        opens_at = tx.run(gates.next_opening())
    if rows:
        tx.rows(
            f"""
            UPDATE deliveries
            SET state = {ACTIVE}, claim_no = claim_no + 1, claimed_at = ?1, due_at = ?3,
                lost_leases = lost_leases + (state = {ACTIVE})
            WHERE (tenant, id) IN (
                SELECT tenant, id FROM deliveries WHERE due_at <= ?1 ORDER BY due_at, tenant, id
                LIMIT {most("?2")}
            )
            """,
            (now, len(rows), now + terms.lease_ms),
        )
    tx.write(_LEASE, [(row[0], row[1], now, now + terms.lease_ms) for row in admitted])
    claims = []
    abandoned = []
    started: list[Row] = []
    started_again: list[Row] = []
    for tenant, id_, state, retried, claim_no, lost_leases, cancel_requested, *content in (*rows, *admitted):
        taken_over = state == ACTIVE
        try:
            message = message_of(content)
        except Exception:
            # Out of the way for the length of a lease, like a message that kills its worker.
            _log.exception("message %s of tenant %s cannot be read", id_, tenant)
            continue
        one = Claim(
            message=message,
            claim_no=claim_no + 1,
            claimed_at=now,
            retried=retried,
            lost_leases=lost_leases + taken_over,
            permit=id_ in holders,
        )
        if cancel_requested:
            abandoned.append(one)
            continue
        claims.append(one)
        again = taken_over or (message.flow is not None and lost_leases > 0)
        (started_again if again else started).append((tenant, tx.position(now), now, id_, retried))
    tx.write(_ADD_STARTED, started)
    tx.write(_ADD_STARTED_AGAIN, started_again)
    if abandoned:
        _apply(tx, tx.run(requested([stopped(one, now) for one in abandoned])))
        opens_at = tx.run(gates.next_opening())
    edge = tx.rows("SELECT due_at FROM deliveries WHERE due_at IS NOT NULL ORDER BY due_at LIMIT 1")
    instants = [at for at in (opens_at, edge[0][0] if edge else None) if at is not None]
    return Claimed(claims=claims, at=now, next_due_at=min(instants, default=None), passed_over=passed_over)


def settle(tx: Tx, calls: Sequence[Sequence[Settlement]]) -> Sequence[Sequence[MessageId]]:
    """Write every settlement whose claim is still the current one; the ids of the others, call by call.

    State, history, dead letter and the messages that follow are one commit. Killed before it, the lease runs
    out and the attempt is made again: at least once. Killed after it, the repeated settlement is refused.
    """
    refused: list[list[MessageId]] = [[] for _ in calls]
    fresh = distinct(calls, refused)
    good: list[Settlement] = []
    mismatched = _mismatches(tx, list(fresh))
    for n, ((tenant, id_, claim_no), (number, settlement)) in enumerate(fresh.items()):
        if n not in mismatched:
            good.append(settlement)
            continue
        held = tx.rows(
            f"SELECT 1 FROM deliveries WHERE tenant = ?1 AND id = ?2 AND claim_no = ?3 AND state = {ACTIVE}",
            (tenant, id_, claim_no),
        )
        if held:
            good += tx.run(requested([canceled(settlement)]))
        else:
            refused[number].append(settlement.claim.message.id)
    _apply(tx, good)
    return refused


def settle_and_claim(tx: Tx, settlements: Sequence[Settlement], terms: ClaimTerms, when: When) -> Claimed:
    """Write settlements, and claim in the same commit when that made something due.

    Killed before it, the leases of what was attempted run out, and nobody was let pass in their place; killed
    after it, the attempts are over, and the leases of what was claimed run out.
    """
    now = instant(when)
    due_at, tx.due_at = tx.due_at, None
    (refused,) = settle(tx, [settlements])
    claimed = Claimed(claims=(), at=now, next_due_at=tx.due_at)
    if tx.due_at is not None and tx.due_at <= now:
        claimed = claim(tx, terms, when)
        # Whoever claims hears of what is left by the answer.
        tx.due_at = None
    tx.due(due_at)
    return replace(claimed, refused=refused)


def renew(tx: Tx, leases: Sequence[Lease], until: int) -> Sequence[MessageId]:
    """Extend the leases that are still held; the ids of the others."""
    identities = [(lease.tenant, lease.message_id, lease.claim_no) for lease in leases]
    gone = {
        n
        for n in _mismatches(tx, identities)
        if not tx.rows(
            f"SELECT 1 FROM deliveries WHERE tenant = ?1 AND id = ?2 AND claim_no = ?3 AND state = {ACTIVE}",
            identities[n],
        )
    }
    tx.write(
        _EXTEND_LEASES,
        [(tenant, id_, until) for n, (tenant, id_, _) in enumerate(identities) if n not in gone],
    )
    return [leases[n].message_id for n in sorted(gone)]


def set_aside(tx: Tx, surplus: Mapping[Crowd, Sequence[Lease]], now: int, limit: int) -> SetAside:
    """Let leased deliveries, and others like them, wait in their crowds.

    Killed before the commit, their leases run out; killed after it, any claim finds them in their crowds.
    """
    answer, opens_at = tx.run(crowds.set_aside(surplus, now=now, limit=limit, sift=_sift))
    tx.due(opens_at)
    return answer


def _sift(crowd: Crowd, gate: GateId, now: int, limit: int) -> Script[int]:
    yield Query("CREATE TEMP TABLE IF NOT EXISTS sifted (tenant INTEGER, id INTEGER, due_at INTEGER) STRICT")
    yield Query(_SIFT, (now, limit, crowd.tenant, crowd.host))
    yield Query(_PUT_ASIDE, (gate,))
    yield Query(
        f"UPDATE deliveries SET {STANDS_ASIDE} WHERE (tenant, id) IN (SELECT tenant, id FROM temp.sifted)"
    )
    return len((yield Query("DELETE FROM temp.sifted RETURNING 1")))


def ask_permits(tx: Tx, leases: Sequence[Lease], now: int, sift: int) -> Permits:
    """Let leased deliveries have a permit of their tenant, or wait in its line.

    Killed before the commit, their leases run out; killed after it, so do those of who has a permit, and whoever
    takes them over has it then, while any claim finds the others in their line.
    """
    answer, opens_at = tx.run(permits.ask(leases, now=now, sift=sift))
    tx.due(opens_at)
    return answer


def _admitted(tx: Tx, terms: ClaimTerms, now: int) -> tuple[Sequence[Row], Collection[int], ClaimTerms, bool]:
    """What passes the gates that are open, with its content; which of it has a permit of its tenant; the terms for
    what is due besides; and whether somebody was passed over.

    Lanes of queues cost no room: whoever gets one is due like anything else. Permits are taken and used at once,
    because they count from then; while there is more than room for, gates and the due get half of it each, of the
    gates keys and crowds half again, and the only place there is goes to whoever waited longer.
    """
    queues = tx.run(gates.open_gates((GateKind.QUEUE,), now))
    if queues:
        tx.run(gates.give_lanes(queues, now))
    # Only now: whoever got a lane may have gone on to a key.
    keys = tx.run(gates.open_gates((GateKind.FLOW, GateKind.TENANT), now))
    waiting: Sequence[tuple[Gate, int]] = ()
    passed_over = False
    if terms.shares is not None:
        waiting, passed_over = tx.run(crowds.open_crowds(terms.shares, now))
    if not keys and not waiting:
        return (), (), terms, passed_over
    due = tx.rows(
        f"SELECT due_at FROM deliveries WHERE due_at <= ?1 ORDER BY due_at LIMIT {most('?2')}",
        (now, terms.limit),
    )
    room = max(terms.limit - len(due), terms.limit // 2)
    if room == 0 and (tx.run(gates.next_opening()) or now) <= due[0][0]:
        room = 1
    passing: Sequence[Waiter] = ()
    if keys:
        for_keys = room - room // 2 if waiting else room
        passing, kept = tx.run(
            gates.give_permits(keys, room=for_keys, max_bytes=terms.max_bytes, room_for=terms.shares, now=now)
        )
        passed_over = passed_over or kept
    rest = left(terms, [one.size for one in passing])
    room -= len(passing)
    if waiting and terms.shares and rest.limit and room > 0:
        let_in = crowds.let_in(waiting, room=room, max_bytes=rest.max_bytes, room_for=terms.shares, now=now)
        passing = [*passing, *tx.run(let_in)]
        rest = left(terms, [one.size for one in passing])
    found = {(row[0], row[1]): row for row in tx.bulk(_CONTENT, [(one.tenant, one.id) for one in passing])}
    holders = {one.id for one in passing if one.owner is not None}
    return [found[one.tenant, one.id] for one in passing], holders, rest, passed_over


def _due(tx: Tx, terms: ClaimTerms, now: int) -> Sequence[Row]:
    """What is due with its content, in the order of the index, as far as the terms allow."""
    found: list[Row] = []
    room = terms.max_bytes
    for row in tx.stream(
        f"""
        SELECT {_CLAIMED} FROM deliveries d LEFT JOIN messages m ON m.id = d.id
        WHERE d.due_at <= ?1 ORDER BY d.due_at, d.tenant, d.id LIMIT {most("?2")}
        """,
        (now, max(0, terms.limit)),
    ):
        found.append(row)
        if room is not None:
            room -= len(row[_BODY] or b"")
            if room <= 0:
                break
    return found


def _apply(tx: Tx, settlements: Sequence[Settlement]) -> None:
    """Write settlements that hold. Every change but RELEASED comes with its attempt."""
    ended: list[Row] = []
    kept: list[Row] = []
    delivered: list[Row] = []
    failed: list[Row] = []
    dead_letters: list[Row] = []
    freed: list[Row] = []
    followers: list[Acceptance] = []
    rests: list[Rest] = []
    reported: list[Member] = []
    for settlement in settlements:
        change = settlement.change
        one = settlement.claim
        message = one.message
        tenant, id_, at, due_at = message.tenant, message.id, settlement.at, settlement.due_at
        wakes_at = due_at
        if may_hold(one):
            rests.append(rest_of(settlement))
            if message.flow is not None:
                wakes_at = None
        if change in FINAL_CHANGES:
            ended.append((tenant, id_))
            if message.lane_of is not None:
                reported.append((tenant, message.lane_of))
        elif change is Change.RELEASED:
            # Nothing was attempted: no retry counted, no lost lease forgiven, nothing to tell.
            state = CREATED if one.retried == 0 else RETRY
            kept.append((tenant, id_, state, wakes_at, one.retried, one.lost_leases))
        else:
            kept.append((tenant, id_, RETRY, wakes_at, one.retried + 1, 0))
        tx.due(wakes_at)
        if settlement.publishes:
            followers.append(Acceptance(settlement.publishes, at, None))
        attempt = settlement.attempt
        if attempt is None:
            continue
        position = tx.position(at)
        duration_ms = attempt.ended_at - attempt.started_at
        if change is Change.DELIVERED:
            delivered.append((tenant, position, at, id_, one.retried, duration_ms, attempt.status))
            continue
        failed.append(
            (
                tenant,
                position,
                at,
                id_,
                change.value,
                one.retried,
                duration_ms,
                attempt.status,
                due_at,
                storable(attempt.error),
                headers_text(attempt.headers),
                attempt.body,
            )
        )
        letter = settlement.dead_letter_id
        if letter is not None:
            dead_letters.append(dead_letter_row(letter, message, retried=one.retried, attempt=attempt))
        if change in FINAL_CHANGES and message.dedup_key is not None:
            freed.append((tenant, message.dedup_key, id_))
    tx.write(_DELETE_DELIVERIES, ended)
    tx.write(_KEEP_DELIVERIES, kept)
    tx.write(_ADD_DELIVERED, delivered)
    tx.write(_ADD_FAILED, failed)
    tx.write(_INSERT_DEAD_LETTERS, dead_letters)
    tx.write(_FREE_DEDUP, freed)
    if rests or reported:
        tx.due(tx.run(gates.settled(rests, reported, max(one.at for one in settlements))))
    tx.live -= len(ended)
    tx.dead_letters += len(dead_letters)
    if followers:
        publish(tx, followers)


def _mismatches(tx: Tx, identities: Sequence[Identity]) -> set[int]:
    """Numbers of the (tenant, id, claim_no) that are not ACTIVE under that claim, or asked to be cancelled."""
    answers = tx.bulk(_MISMATCHES, [(n, *identity) for n, identity in enumerate(identities)])
    return {int(n) for (numbers,) in answers if numbers is not None for n in str(numbers).split(",")}


def _insert(tx: Tx, messages: Sequence[Message]) -> None:
    plain: list[Row] = []
    full: list[Row] = []
    for message in messages:
        rare = rare_row(message)
        if rare[1:] == _NOTHING_RARE:
            plain.append((*message_row(message), rare[0]))
        else:
            full.append((*message_row(message), *rare))
    tx.write(_INSERT_PLAIN, plain)
    tx.write(_INSERT_MESSAGES, full)
    labelled = [(message.tenant, label, message.id) for message in messages for label in set(message.labels)]
    tx.write(_INSERT_LABELS, labelled)


def _dedup_keys(tx: Tx, messages: Iterable[Message]) -> dict[tuple[int, bytes], tuple[MessageId, int]]:
    """Who holds the keys that these messages bring, and until when."""
    wanted = {(message.tenant, message.dedup_key) for message in messages if message.dedup_key is not None}
    rows = tx.bulk(_READ_DEDUP, list(wanted)) if wanted else ()
    return {(tenant, key): (id_, expires_at) for tenant, key, id_, expires_at in rows}
