"""Every table as rows in the order of its key, to be carried to another database."""

from collections.abc import Sequence

from msgspec import Struct

from storage.codec import Row
from storage.protocol import Page
from storage.sql.script import Bulk, Parameters, Query, Script, marks

#: What belongs to one database and not to the relay that uses it.
PROBE, UNFINISHED = "ping", "unfinished_copy"

#: A page ends with the row that reaches this.
_PAGE_BYTES = 4 << 20

_ALL = "TRUE"


class _Table(Struct, frozen=True, kw_only=True):
    """`weight` is about the bytes of a row's wide column; `ordered` says that all databases sort its key alike,
    which they do for numbers and bytes, and not for texts."""

    key: tuple[str, ...]
    rest: tuple[str, ...]
    weight: str | None = None
    ordered: bool = True
    where: str = _ALL
    #: Columns that are not read as they are.
    read_as: tuple[tuple[str, str], ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        return self.key + self.rest


#: What is alive comes last: nothing could be delivered that is not complete.
_TABLES = {
    "tenants": _Table(
        key=("id",),
        rest=("user_id", "current_key", "next_key", "created_at", "limits", "disabled_at", "signed_by"),
    ),
    "tokens": _Table(
        key=("hash",), rest=("tenant", "read_only", "created_at", "expires_at", "label", "issued")
    ),
    "settings": _Table(
        key=("name",),
        rest=("value",),
        ordered=False,
        where=f"name NOT IN ('{PROBE}', '{UNFINISHED}')",
    ),
    "schedules": _Table(
        key=("tenant", "id"),
        rest=(
            "cron", "draft", "created_at", "revision", "catch_up", "overlap", "paused", "next_at",
            "last_fired_at", "error",
        ),
        weight="length(draft)",
        ordered=False,
    ),
    "url_groups": _Table(
        key=("tenant", "name"), rest=("created_at", "updated_at", "endpoints", "headers"), ordered=False
    ),
    "runs": _Table(
        key=("tenant", "schedule_id", "tick_at"),
        rest=("fired_at", "outcome", "message_ids", "states"),
        ordered=False,
    ),
    "messages": _Table(
        key=("id",),
        rest=(
            "tenant", "created_at", "not_before", "url", "host", "path", "method", "headers", "max_retries",
            "retry_delay", "timeout_ms", "caller_ip", "url_group", "endpoint", "schedule_id", "queue",
            "flow_key", "labels", "terms", "dedup_key", "body",
        ),
        weight="length(body)",
    ),
    "message_labels": _Table(key=("tenant", "label", "message_id"), rest=(), ordered=False),
    "events": _Table(
        key=("tenant", "position"),
        rest=(
            "at", "change", "message_id", "retried", "next_at", "duration_ms", "status", "error",
            "response_headers", "response_body",
        ),
        weight="coalesce(length(response_body), 0)",
    ),
    "dead_letters": _Table(
        key=("tenant", "id"),
        rest=(
            "message_id", "failed_at", "retried", "started_at", "ended_at", "status", "error",
            "response_headers", "response_body",
        ),
        weight="length(response_body)",
    ),
    "dedup": _Table(key=("tenant", "key"), rest=("message_id", "expires_at")),
    "gates": _Table(
        key=("id",),
        rest=(
            "tenant", "kind", "name", "created_at", "updated_at", "used_at", "parallelism", "rate", "period_ms",
            "paused", "parallelism_pinned", "rate_pinned", "held", "window_at", "window_count", "members",
            "accepted", "opens_at",
        ),
    ),
    "gated": _Table(
        key=("tenant", "id"),
        rest=(
            "queue",
            "flow",
            "crowd",
            "owner",
            "seq",
            "eligible_at",
            "waits_at",
            "place",
            "callbacks",
            "has_slot",
            "finished",
        ),
    ),
    "deliveries": _Table(
        key=("tenant", "id"),
        rest=("state", "due_at", "retried", "claim_no", "lost_leases", "cancel_requested", "claimed_at"),
        # Whoever held the lease is gone: it has run out.
        read_as=(("due_at", "CASE WHEN state = 2 THEN claimed_at ELSE due_at END"),),
    ),
}  # fmt: skip

TABLES = tuple(_TABLES)

#: Those that hold other rows as well.
PARTLY = frozenset(name for name, table in _TABLES.items() if table.where != _ALL)


def columns(name: str) -> Sequence[str]:
    """What the values of a row are, in their order."""
    return _TABLES[name].columns


def read(name: str, *, after: Row | None, limit: int) -> Script[Page]:
    """At most `limit` rows that come after a key, fewer when they are wide."""
    table = _TABLES[name]
    key = ", ".join(table.key)
    bind = Parameters()
    following = "" if after is None else f" AND ({key}) > {bind.several(after)}"
    source = f"FROM {name} WHERE {table.where}{following} ORDER BY {key}"
    if table.weight is not None:
        weights = yield Query(f"SELECT {table.weight} {source} LIMIT {bind(limit)}", bind.values)
        limit = _room([row[0] for row in weights])
        bind.values.pop()
    read_as = dict(table.read_as)
    values = ", ".join(read_as.get(column, column) for column in table.columns)
    rows = yield Query(f"SELECT {values} {source} LIMIT {bind(limit)}", bind.values)
    return Page(rows=[tuple(row) for row in rows], end=tuple(rows[-1][: len(table.key)]) if rows else None)


def write(name: str, rows: Sequence[Row]) -> Script[int]:
    """How many of the rows were not there before."""
    table = _TABLES[name]
    bulk = Bulk(
        f"INSERT INTO {name} ({', '.join(table.columns)})",
        marks(len(table.columns)),
        " ON CONFLICT DO NOTHING RETURNING 1",
    )
    written = 0
    for query in bulk.queries(rows):
        written += len((yield query))
    return written


def clear(name: str) -> Script[None]:
    yield Query(f"DELETE FROM {name} WHERE {_TABLES[name].where}")


def count(name: str) -> Script[int]:
    rows = yield Query(f"SELECT count(*) FROM {name} WHERE {_TABLES[name].where}")
    return int(rows[0][0])


def last(name: str) -> Script[Row | None]:
    """The greatest key, where all databases agree which one that is."""
    table = _TABLES[name]
    if not table.ordered:
        return None
    order = ", ".join(f"{column} DESC" for column in table.key)
    rows = yield Query(f"SELECT {', '.join(table.key)} FROM {name} ORDER BY {order} LIMIT 1")
    return tuple(rows[0]) if rows else None


def _room(weights: Sequence[int]) -> int:
    """How many rows reach the size of a page: at least one."""
    total = 0
    for number, weight in enumerate(weights, 1):
        total += weight
        if total >= _PAGE_BYTES:
            return number
    return max(1, len(weights))
