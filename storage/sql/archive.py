"""History, dead letters, and forgetting: what is read and removed after the fact."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

from relay.domain.dead_letter import DeadLetter, DeadLetterId
from relay.domain.delivery import Change
from relay.domain.message import Message, MessageId, TenantId
from relay.domain.selection import Order, Selection
from relay.ids import first_at
from storage.codec import (
    DEAD_LETTER_COLUMNS,
    EVENT_COLUMNS,
    FINAL_CHANGES,
    MESSAGE_READ,
    Row,
    dead_letter_of,
    decoded,
    event_of,
    labels_of,
    message_of,
)
from storage.protocol import History, Retention
from storage.sql import gates
from storage.sql.schedules import remember_outcomes
from storage.sql.script import Parameters, Query, Script, slices
from storage.sql.selection import changes_of, conditions, instants, narrow, storable_number

T = TypeVar("T")

#: Values in one IN list.
_SLICE = 500

#: Row positions are time-ordered, but a row may tell of an instant this long before its position (an attempt that
#: waited for storage to come back, a clock that was set back). Never of a later one.
_TARDY_MS = 24 * 3_600_000

#: Rows with a state that people look for, which have an index of their own.
_UNUSUAL = "e.change > 4"

_DIRECTION = {Order.EARLIEST_FIRST: "ASC", Order.LATEST_FIRST: "DESC"}
_ONWARDS = {Order.EARLIEST_FIRST: ">=", Order.LATEST_FIRST: "<="}
_UP_TO = {Order.EARLIEST_FIRST: "<=", Order.LATEST_FIRST: ">="}
_STEP = {Order.EARLIEST_FIRST: 1, Order.LATEST_FIRST: -1}

_EVENT_READ = ", ".join(f"e.{name}" for name in EVENT_COLUMNS.split(", "))
_DEAD_LETTER_READ = ", ".join(f"d.{name}" for name in DEAD_LETTER_COLUMNS.split(", "))


class Removed(NamedTuple):
    """How many rows went, and how many of them were dead letters."""

    rows: int
    dead_letters: int


def message(tenant: TenantId, message_id: MessageId) -> Script[Message | None]:
    rows = yield Query(
        f"SELECT {MESSAGE_READ} FROM messages m WHERE m.id = ?1 AND m.tenant = ?2", (message_id, tenant)
    )
    return message_of(rows[0]) if rows else None


def messages(tenant: TenantId, ids: Iterable[int]) -> Script[dict[int, Message]]:
    """The messages with these ids that exist, by id."""
    found: dict[int, Message] = {}
    for part in slices(sorted(set(ids)), _SLICE):
        bind = Parameters()
        rows = yield Query(
            f"SELECT {MESSAGE_READ} FROM messages m"
            f" WHERE m.id IN {bind.several(part)} AND m.tenant = {bind(tenant)}",
            bind.values,
        )
        found.update((message.id, message) for message in decoded(rows, message_of))
    return found


def events(
    tenant: TenantId,
    selection: Selection,
    *,
    order: Order,
    start: int | None,
    limit: int,
    walk: int | None = None,
) -> Script[History]:
    """A page of history.

    Filters on URL, host, path and address have no index: history is walked in its order until the page is full, or
    `walk` rows were looked at.
    """
    begun = yield from _begun(tenant, selection, "e", "position", "at")
    if begun is None:
        return History()
    where, bind, narrowed = begun
    filters = len(where)
    unusual = False
    if selection.states:
        changes = changes_of(selection.states)
        where.append(f"e.change IN {bind.several(changes)}")
        unusual = min(changes) > Change.DELIVERED
        if unusual:
            where.append(_UNUSUAL)
    if selection.response_statuses:
        # Only an attempt that ended has a duration; one without an answer counts as status 0.
        statuses = bind.several(selection.response_statuses)
        where.append(f"e.duration_ms IS NOT NULL AND coalesce(e.status, 0) IN {statuses}")
    join = _joined("e", selection, tenant, where, bind)
    end = None
    # A range of positions holds rows of other instants, too.
    may_pass_over = len(where) > filters or selection.from_at is not None or selection.to_at is not None
    if walk is not None and not narrowed and may_pass_over:
        end = yield from _end_of_walk(tenant, selection, unusual, order=order, start=start, walk=walk)
    page = _Page(
        f"SELECT {_EVENT_READ} FROM events e{join} WHERE {' AND '.join(where)}", "e.position", 4, bind
    )
    found = yield from page.read(tenant, event_of, order=order, start=start, limit=limit, end=end)
    last = found[-1].position if len(found) >= limit else end
    return History(events=found, next_position=None if last is None else last + _STEP[order])


def _end_of_walk(
    tenant: TenantId, selection: Selection, unusual: bool, *, order: Order, start: int | None, walk: int
) -> Script[int | None]:
    """The position of the last of `walk` rows, whether selected or not; None when there are fewer."""
    bind = Parameters()
    where = [f"e.tenant = {bind(tenant)}", *_range("e.position", selection, bind)]
    if unusual:
        where.append(_UNUSUAL)
    if start is not None:
        where.append(f"e.position {_ONWARDS[order]} {bind(storable_number(start))}")
    rows = yield Query(
        f"SELECT e.position FROM events e WHERE {' AND '.join(where)}"
        f" ORDER BY e.position {_DIRECTION[order]} LIMIT 1 OFFSET {bind(walk - 1)}",
        bind.values,
    )
    return rows[0][0] if rows else None


def dead_letter(tenant: TenantId, dead_letter_id: DeadLetterId) -> Script[DeadLetter | None]:
    selection = Selection(dead_letter_ids=(dead_letter_id,))
    found = yield from dead_letters(tenant, selection, order=Order.EARLIEST_FIRST, start=None, limit=1)
    return found[0] if found else None


def dead_letters(
    tenant: TenantId, selection: Selection, *, order: Order, start: int | None, limit: int
) -> Script[Sequence[DeadLetter]]:
    """A page of dead letters. When `dead_letter_ids` are given no other filter counts."""
    if selection.dead_letter_ids is not None:
        return (
            yield from _dead_letters_with(
                tenant, selection.dead_letter_ids, order=order, start=start, limit=limit
            )
        )
    begun = yield from _begun(tenant, selection, "d", "id", "failed_at")
    if begun is None:
        return []
    where, bind, _ = begun
    if selection.response_statuses:
        where.append(f"coalesce(d.status, 0) IN {bind.several(selection.response_statuses)}")
    join = _joined("d", selection, tenant, where, bind)
    page = _Page(
        f"SELECT {_DEAD_LETTER_READ} FROM dead_letters d{join} WHERE {' AND '.join(where)}", "d.id", 2, bind
    )
    return (yield from page.read(tenant, dead_letter_of, order=order, start=start, limit=limit))


def delete_dead_letters(
    tenant: TenantId, ids: Sequence[DeadLetterId]
) -> Script[dict[DeadLetterId, MessageId]]:
    """Those that existed, with the messages they were about. The messages stay: see `forget`."""
    deleted: dict[DeadLetterId, MessageId] = {}
    for part in slices(ids, _SLICE):
        bind = Parameters()
        rows = yield Query(
            f"DELETE FROM dead_letters WHERE tenant = {bind(tenant)} AND id IN {bind.several(part)}"
            " RETURNING id, message_id",
            bind.values,
        )
        deleted.update((row[0], row[1]) for row in rows)
    return deleted


def forget(ids: Iterable[int]) -> Script[int]:
    """Delete those of the messages that no delivery, event or dead letter refers to; returns how many."""
    count = 0
    for part in slices(sorted(set(ids)), _SLICE):
        bind = Parameters()
        rows = yield Query(
            f"""
            SELECT m.id, m.tenant, m.labels FROM messages m
            WHERE m.id IN {bind.several(part)}
            AND NOT EXISTS (SELECT 1 FROM events e WHERE e.message_id = m.id)
            AND NOT EXISTS (SELECT 1 FROM dead_letters d WHERE d.message_id = m.id)
            AND NOT EXISTS (SELECT 1 FROM deliveries v WHERE v.tenant = m.tenant AND v.id = m.id)
            """,
            bind.values,
        )
        for id_, tenant, labels in rows:
            if labels is not None:
                bind = Parameters()
                yield Query(
                    f"DELETE FROM message_labels WHERE tenant = {bind(tenant)}"
                    f" AND label IN {bind.several(labels_of(labels))} AND message_id = {bind(id_)}",
                    bind.values,
                )
        if rows:
            bind = Parameters()
            yield Query(
                f"DELETE FROM messages WHERE id IN {bind.several(row[0] for row in rows)}", bind.values
            )
        count += len(rows)
    return count


def prune(retention: Retention, *, now: int, limit: int) -> Script[Removed]:
    """One bounded bite off the old end of everything; only indexes of old rows are touched, never the living."""
    rows = dead = 0
    for tenant in (yield from tenants_in("events")):
        if rows < limit:
            before = retention.of(TenantId(tenant)).events_before
            rows += yield from _prune_events(tenant, before, limit - rows)
    for tenant in (yield from tenants_in("dead_letters")):
        if rows < limit:
            before = retention.of(TenantId(tenant)).dead_letters_before
            letters, forgotten = yield from _prune_dead_letters(tenant, before, limit - rows)
            dead += letters
            rows += letters + forgotten
    gone = yield Query(
        """
        DELETE FROM dedup WHERE (tenant, key) IN (
            SELECT tenant, key FROM dedup WHERE expires_at <= ?1 ORDER BY expires_at LIMIT ?2
            /*FOR UPDATE SKIP LOCKED*/
        ) RETURNING 1
        """,
        (now, max(0, limit - rows)),
    )
    rows += len(gone)
    # The last run that produced messages stays: the state of a schedule is read from it. The others are shown
    # to nobody, and go by the same instant for all tenants.
    gone = yield Query(
        """
        DELETE FROM runs WHERE (tenant, schedule_id, tick_at) IN (
            SELECT r.tenant, r.schedule_id, r.tick_at FROM runs r
            WHERE r.tick_at < ?1 AND EXISTS (
                SELECT 1 FROM runs n
                WHERE n.tenant = r.tenant AND n.schedule_id = r.schedule_id AND n.tick_at > r.tick_at
                AND n.outcome = 'FIRED'
            )
            ORDER BY r.tick_at LIMIT ?2
        ) RETURNING 1
        """,
        (retention.events_before, max(0, limit - rows)),
    )
    rows += len(gone)
    rows += yield from gates.forget(now, limit=max(0, limit - rows))
    return Removed(rows, dead)


def _prune_events(tenant: int, before: int, limit: int) -> Script[int]:
    """The oldest events go, and with the one that ended a delivery its message (unless it is a dead letter's).

    Old events of a message that is still alive may go: those to come will end it.
    """
    rows = yield Query(
        "SELECT position, message_id, change FROM events WHERE tenant = ?1 AND position < ?2"
        " ORDER BY position LIMIT ?3",
        (tenant, first_at(before), limit),
    )
    if not rows:
        return 0
    ended = {row[1]: Change(row[2]) is Change.DELIVERED for row in rows if row[2] in FINAL_CHANGES}
    yield from remember_outcomes(tenant, ended)
    yield Query("DELETE FROM events WHERE tenant = ?1 AND position <= ?2", (tenant, rows[-1][0]))
    forgotten = yield from forget(ended)
    return len(rows) + forgotten


def _prune_dead_letters(tenant: int, before: int, limit: int) -> Script[tuple[int, int]]:
    """Dead letters and messages that went. A message with events left goes with the last of those."""
    rows = yield Query(
        "SELECT id FROM dead_letters WHERE tenant = ?1 AND id < ?2 ORDER BY id LIMIT ?3",
        (tenant, first_at(before), limit),
    )
    deleted = yield from delete_dead_letters(TenantId(tenant), [row[0] for row in rows])
    forgotten = yield from forget(deleted.values())
    return len(deleted), forgotten


def tenants_in(table: str) -> Script[Sequence[int]]:
    """The tenants that have rows, by one step down the key each."""
    tenants: list[int] = []
    while True:
        rows = yield Query(
            f"SELECT min(tenant) FROM {table} WHERE tenant > ?1", (tenants[-1] if tenants else -1,)
        )
        if rows[0][0] is None:
            return tenants
        tenants.append(rows[0][0])


def _begun(
    tenant: TenantId, selection: Selection, row: str, key: str, at: str
) -> Script[tuple[list[str], Parameters, bool] | None]:
    """The first conditions on a `row` about a message, with its `key` and the instant `at`; whether they narrow the
    search to few messages. None when nothing can be selected."""
    ids = yield from narrow(selection, tenant)
    if ids is not None and not ids:
        return None
    bind = Parameters()
    where = [f"{row}.tenant = {bind(tenant)}"]
    if ids is not None:
        # The sign keeps the planner from walking the whole tenant instead.
        where = [f"+{where[0]} AND {row}.message_id IN {bind.several(ids)}"]
    where += _range(f"{row}.{key}", selection, bind)
    where += instants(f"{row}.{at}", selection, bind)
    return where, bind, ids is not None


def _joined(row: str, selection: Selection, tenant: TenantId, where: list[str], bind: Parameters) -> str:
    """The join with messages, when there are conditions on them, which are added to `where`."""
    of_message = list(conditions(selection, tenant, bind))
    if not of_message:
        return ""
    where += [f"m.id = {row}.message_id", *of_message]
    # CROSS JOIN is how SQLite is told the order: these rows first, their messages by key.
    return " CROSS JOIN messages m"


def _dead_letters_with(
    tenant: TenantId, ids: Iterable[int], *, order: Order, start: int | None, limit: int
) -> Script[Sequence[DeadLetter]]:
    found: list[DeadLetter] = []
    for part in slices(sorted(set(ids), reverse=order is Order.LATEST_FIRST), _SLICE):
        bind = Parameters()
        page = _Page(
            f"SELECT {_DEAD_LETTER_READ} FROM dead_letters d"
            f" WHERE d.tenant = {bind(tenant)} AND d.id IN {bind.several(part)}",
            "d.id",
            2,
            bind,
        )
        found += yield from page.read(
            tenant, dead_letter_of, order=order, start=start, limit=limit - len(found)
        )
        if len(found) >= limit:
            break
    return found


class _Page:
    """A query to be read in the order of its `key`, the second column, with the message named in a later one."""

    def __init__(self, text: str, key: str, message_column: int, bind: Parameters) -> None:
        self._text = text
        self._key = key
        self._message_column = message_column
        self._bound = bind.values

    def read(
        self,
        tenant: TenantId,
        decode: Callable[[Row, Message], T],
        *,
        order: Order,
        start: int | None,
        limit: int,
        end: int | None = None,
    ) -> Script[Sequence[T]]:
        """Rows that cannot be read, or whose message was forgotten between two steps, leave no gap: a page is only
        short when there is nothing behind it up to `end`."""
        column = self._message_column
        found: list[T] = []
        while True:
            bind = Parameters(self._bound)
            text = self._text
            if start is not None:
                text += f" AND {self._key} {_ONWARDS[order]} {bind(storable_number(start))}"
            if end is not None:
                text += f" AND {self._key} {_UP_TO[order]} {bind(end)}"
            wanted = limit - len(found)
            text += f" ORDER BY {self._key} {_DIRECTION[order]} LIMIT {bind(wanted)}"
            rows = yield Query(text, bind.values)
            about = yield from messages(tenant, (row[column] for row in rows))
            known = [(*row, about[row[column]]) for row in rows if row[column] in about]
            found += decoded(known, lambda row: decode(row[:-1], row[-1]))
            if len(rows) < wanted or len(found) >= limit:
                return found
            start = rows[-1][1] + _STEP[order]


def _range(key: str, selection: Selection, bind: Parameters) -> Iterator[str]:
    """The range of keys that the selected instants can have."""
    if selection.from_at is not None:
        yield f"{key} >= {bind(storable_number(first_at(selection.from_at)))}"
    if selection.to_at is not None:
        yield f"{key} < {bind(storable_number(first_at(selection.to_at + _TARDY_MS)))}"
