"""A `Selection` as SQL: conditions on a message `m`, and which of its filters a search begins with."""

from collections.abc import Iterator, Sequence

from relay.domain.delivery import Change, State
from relay.domain.message import TenantId
from relay.domain.selection import Selection
from storage.sql.script import Parameters, Query, Script

#: A search begins with a filter that at most this many messages pass. Beyond it rows are walked in their order:
#: a filter so common fills a page soon.
_FEW = 1000

#: Filters with an index of their own, each yielding message ids.
_INDEXED = (
    ("labels", "SELECT message_id FROM message_labels WHERE tenant = {0} AND label IN {1}"),
    ("schedule_ids", "SELECT id FROM messages WHERE tenant = {0} AND schedule_id IN {1}"),
    ("url_groups", "SELECT id FROM messages WHERE tenant = {0} AND url_group IN {1}"),
    ("queues", "SELECT id FROM messages WHERE tenant = {0} AND queue IN {1}"),
    ("flow_keys", "SELECT id FROM messages WHERE tenant = {0} AND flow_key IN {1}"),
)


def conditions(selection: Selection, tenant: TenantId, bind: Parameters) -> Iterator[str]:
    """What must hold of the message `m`; ids, states, statuses and instants are left to the caller."""
    for column, values in (
        ("url", selection.urls),
        ("host", [host.lower() for host in selection.hosts]),
        ("path", selection.paths),
        ("url_group", selection.url_groups),
        ("queue", selection.queues),
        ("schedule_id", selection.schedule_ids),
        ("flow_key", selection.flow_keys),
        ("caller_ip", selection.caller_ips),
    ):
        if values:
            yield f"m.{column} IN {bind.several(values)}"
    if selection.labels:
        yield (
            f"EXISTS (SELECT 1 FROM message_labels l WHERE l.tenant = {bind(tenant)}"
            f" AND l.label IN {bind.several(selection.labels)} AND l.message_id = m.id)"
        )


def instants(column: str, selection: Selection, bind: Parameters) -> Iterator[str]:
    """`from_at` and `to_at`, both inclusive, on a column of Unix ms."""
    if selection.from_at is not None:
        yield f"{column} >= {bind(storable_number(selection.from_at))}"
    if selection.to_at is not None:
        yield f"{column} <= {bind(storable_number(selection.to_at))}"


def narrow(selection: Selection, tenant: TenantId) -> Script[Sequence[int] | None]:
    """The ids among which all selected messages are, when they are few; None when rows are better walked."""
    if selection.message_ids is not None:
        return selection.message_ids
    for name, text in _INDEXED:
        values = getattr(selection, name)
        if values:
            bind = Parameters()
            rows = yield Query(
                f"{text.format(bind(tenant), bind.several(values))} LIMIT {_FEW + 1}", bind.values
            )
            if len(rows) <= _FEW:
                return sorted({row[0] for row in rows})
    return None


def storable_number(number: int) -> int:
    """The nearest number a column can hold: beyond 64 bits lies nothing, and comparisons come out the same."""
    return max(-(1 << 63), min(number, (1 << 63) - 1))


def changes_of(states: Sequence[State]) -> Sequence[int]:
    """The changes that pass through any of the states."""
    wanted = frozenset(states)
    return [change.value for change in Change if not wanted.isdisjoint(change.states)]
