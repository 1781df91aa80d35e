"""Schedules, the runs they made, and what became of those."""

from collections.abc import Iterable, Mapping, Sequence

import msgspec
from msgspec.structs import replace

from relay.domain.delivery import Change
from relay.domain.message import MessageId, TenantId
from relay.domain.schedule import Run, RunOutcome, Schedule
from relay.domain.url_group import UrlGroup
from storage.codec import (
    FINAL_CHANGES,
    SCHEDULE_COLUMNS,
    Row,
    decoded,
    ids_of,
    run_of,
    run_row,
    schedule_of,
    schedule_row,
)
from storage.protocol import DueSchedule, Firing, ScheduleView
from storage.sql.script import Bulk, Parameters, Query, Script, marks, slices, write
from storage.sql.url_groups import named

_READ = ", ".join(f"s.{name}" for name in SCHEDULE_COLUMNS.split(", "))

#: A schedule with the latest of its runs that produced messages.
_VIEW = f"""
    SELECT {_READ}, r.message_ids, r.states FROM schedules s
    LEFT JOIN runs r ON r.tenant = s.tenant AND r.schedule_id = s.id AND r.tick_at = (
        SELECT max(l.tick_at) FROM runs l
        WHERE l.tenant = s.tenant AND l.schedule_id = s.id AND l.outcome = 'FIRED'
    )
"""
_WIDTH = 12
_SLICE = 500

#: A tick can come twice when the clock was set back and the schedule put again; the later word counts.
_INSERT_RUNS = Bulk(
    "INSERT INTO runs (tenant, schedule_id, tick_at, fired_at, outcome, message_ids)",
    marks(6),
    """ ON CONFLICT (tenant, schedule_id, tick_at) DO UPDATE
    SET fired_at = excluded.fired_at, outcome = excluded.outcome, message_ids = excluded.message_ids,
        states = NULL""",
)


def put_schedule(schedule: Schedule, *, limit: int) -> Script[Schedule | None]:
    """What is not part of the definition survives: `created_at`, and when it last fired."""
    rows = yield Query(
        "SELECT created_at, revision, last_fired_at FROM schedules WHERE tenant = ?1 AND id = ?2 /*FOR UPDATE*/",
        (schedule.tenant, schedule.id),
    )
    if rows:
        created_at, revision, last_fired_at = rows[0]
        schedule = replace(
            schedule,
            created_at=created_at,
            revision=revision + 1,
            last_fired_at=last_fired_at if schedule.last_fired_at is None else schedule.last_fired_at,
        )
        yield Query("DELETE FROM schedules WHERE tenant = ?1 AND id = ?2", (schedule.tenant, schedule.id))
    else:
        count = yield Query("SELECT count(*) FROM schedules WHERE tenant = ?1", (schedule.tenant,))
        if count[0][0] >= limit:
            return None
    bind = Parameters()
    yield Query(
        f"INSERT INTO schedules ({SCHEDULE_COLUMNS}) VALUES {bind.several(schedule_row(schedule))}",
        bind.values,
    )
    return schedule


def schedule(tenant: TenantId, schedule_id: str) -> Script[ScheduleView | None]:
    rows = yield Query(f"{_VIEW} WHERE s.tenant = ?1 AND s.id = ?2", (tenant, schedule_id))
    views = yield from _views(rows)
    return views[0] if views else None


def schedules(tenant: TenantId) -> Script[Sequence[ScheduleView]]:
    """Oldest first."""
    rows = yield Query(f"{_VIEW} WHERE s.tenant = ?1 ORDER BY s.created_at, s.id", (tenant,))
    return (yield from _views(rows))


def delete_schedule(tenant: TenantId, schedule_id: str) -> Script[bool]:
    rows = yield Query(
        "DELETE FROM schedules WHERE tenant = ?1 AND id = ?2 RETURNING 1", (tenant, schedule_id)
    )
    yield Query("DELETE FROM runs WHERE tenant = ?1 AND schedule_id = ?2", (tenant, schedule_id))
    return bool(rows)


def pause_schedule(tenant: TenantId, schedule_id: str, *, paused: bool, next_at: int | None) -> Script[bool]:
    """Pausing clears the next tick, whatever `next_at` says."""
    yield Query(
        """
        UPDATE schedules SET paused = ?3, next_at = ?4, revision = revision + 1
        WHERE tenant = ?1 AND id = ?2 AND paused <> ?3
        """,
        (tenant, schedule_id, int(paused), None if paused else next_at),
    )
    rows = yield Query("SELECT 1 FROM schedules WHERE tenant = ?1 AND id = ?2", (tenant, schedule_id))
    return bool(rows)


def due_schedules(*, now: int, limit: int) -> Script[tuple[Sequence[DueSchedule], int | None]]:
    rows = yield Query(f"{_VIEW} WHERE s.next_at <= ?1 ORDER BY s.next_at LIMIT ?2", (now, limit + 1))
    due, others = rows[:limit], rows[limit:]
    if others:
        next_at = others[0][9]
    else:
        later = yield Query("SELECT min(next_at) FROM schedules WHERE next_at > ?1", (now,))
        next_at = later[0][0]
    alive = yield from _alive(id_ for row in due for id_ in _last_ids(row))
    disabled: set[int] = set()
    if due:
        tenants = yield Query("SELECT id FROM tenants WHERE disabled_at IS NOT NULL")
        disabled.update(row[0] for row in tenants)

    def due_schedule(row: Row) -> DueSchedule:
        return DueSchedule(
            schedule=schedule_of(row[:_WIDTH]),
            in_progress=not alive.isdisjoint(_last_ids(row)),
            disabled=row[0] in disabled,
        )

    found = decoded(due, due_schedule)
    return (yield from _with_groups(found)), next_at


def advance(firing: Firing) -> Script[bool]:
    """Win or lose the firing: the schedule moves on only if it is as it was read, and its runs are recorded."""
    schedule = firing.schedule
    fired = [run.fired_at for run in firing.runs if run.outcome is RunOutcome.FIRED]
    rows = yield Query(
        """
        UPDATE schedules
        SET next_at = ?5, error = ?6, last_fired_at = coalesce(?7, last_fired_at)
        WHERE tenant = ?1 AND id = ?2 AND revision = ?3 AND next_at = ?4
        RETURNING 1
        """,
        (
            schedule.tenant,
            schedule.id,
            schedule.revision,
            schedule.next_at,
            firing.next_at,
            firing.error,
            max(fired, default=None),
        ),
    )
    if not rows:
        return False
    yield from record([firing])
    return True


def record(firings: Sequence[Firing]) -> Script[None]:
    """What became of their ticks."""
    yield from write(_INSERT_RUNS, [run_row(one.schedule, run) for one in firings for run in one.runs])


def runs(tenant: TenantId, schedule_id: str, *, limit: int) -> Script[Sequence[Run]]:
    rows = yield Query(
        "SELECT tick_at, fired_at, outcome, message_ids FROM runs WHERE tenant = ?1 AND schedule_id = ?2"
        " ORDER BY tick_at DESC LIMIT ?3",
        (tenant, schedule_id, limit),
    )
    return [run_of(row) for row in rows]


def remember_outcomes(tenant: int, delivered: Mapping[int, bool]) -> Script[None]:
    """Before the events of messages are forgotten: note in the runs that made them whether they were delivered.

    Only the latest run of a schedule is ever asked; the note of an older one is not worth writing.
    """
    noted: dict[tuple[str, int], tuple[str | None, dict[MessageId, bool]]] = {}
    for part in slices(sorted(delivered), _SLICE):
        bind = Parameters()
        rows = yield Query(
            f"""
            SELECT m.id, r.schedule_id, r.tick_at, r.message_ids, r.states FROM messages m
            JOIN runs r ON r.tenant = m.tenant AND r.schedule_id = m.schedule_id AND r.tick_at = (
                SELECT max(l.tick_at) FROM runs l
                WHERE l.tenant = m.tenant AND l.schedule_id = m.schedule_id AND l.outcome = 'FIRED'
            )
            WHERE m.id IN {bind.several(part)} AND m.tenant = {bind(tenant)} AND m.schedule_id IS NOT NULL
            """,
            bind.values,
        )
        for id_, schedule_id, tick_at, message_ids, states in rows:
            if id_ in ids_of(message_ids):
                _, fresh = noted.setdefault((schedule_id, tick_at), (states, {}))
                fresh[id_] = delivered[id_]
    for (schedule_id, tick_at), (states, fresh) in noted.items():
        yield Query(
            "UPDATE runs SET states = ?4 WHERE tenant = ?1 AND schedule_id = ?2 AND tick_at = ?3",
            (tenant, schedule_id, tick_at, msgspec.json.encode(_noted(states) | fresh).decode()),
        )


def _with_groups(found: Sequence[DueSchedule]) -> Script[Sequence[DueSchedule]]:
    """What names a URL group, with what the group is now."""
    wanted: dict[TenantId, set[str]] = {}
    for one in found:
        if one.schedule.draft.url_group is not None:
            wanted.setdefault(one.schedule.tenant, set()).add(one.schedule.draft.url_group)
    groups: dict[tuple[TenantId, str | None], UrlGroup] = {}
    for tenant, names in wanted.items():
        of_tenant = yield from named(tenant, names)
        groups.update(((tenant, name), group) for name, group in of_tenant.items())
    return [
        replace(one, group=groups.get((one.schedule.tenant, one.schedule.draft.url_group))) for one in found
    ]


def _views(rows: Sequence[Row]) -> Script[Sequence[ScheduleView]]:
    wanted = {id_ for row in rows for id_ in _last_ids(row)}
    states: dict[MessageId, bool | None] = dict.fromkeys((yield from _alive(wanted)))
    for part in slices(sorted(wanted.difference(states)), _SLICE):
        bind = Parameters()
        ended = yield Query(
            f"SELECT message_id, change FROM events WHERE message_id IN {bind.several(part)}"
            f" AND change IN {bind.several(FINAL_CHANGES)}",
            bind.values,
        )
        states.update((id_, change == Change.DELIVERED) for id_, change in ended)

    def view(row: Row) -> ScheduleView:
        known = {**_noted(row[_WIDTH + 1]), **states}
        return ScheduleView(
            schedule=schedule_of(row[:_WIDTH]),
            last_states={id_: known[id_] for id_ in _last_ids(row) if id_ in known},
        )

    return decoded(rows, view)


def _alive(ids: Iterable[MessageId]) -> Script[set[MessageId]]:
    """Those that have a delivery still. Message ids are unique across tenants."""
    alive: set[MessageId] = set()
    for part in slices(sorted(set(ids)), _SLICE):
        bind = Parameters()
        rows = yield Query(
            f"SELECT d.id FROM messages m JOIN deliveries d ON d.tenant = m.tenant AND d.id = m.id"
            f" WHERE m.id IN {bind.several(part)}",
            bind.values,
        )
        alive.update(row[0] for row in rows)
    return alive


def _last_ids(row: Row) -> Sequence[MessageId]:
    return () if row[_WIDTH] is None else ids_of(row[_WIDTH])


def _noted(states: str | None) -> dict[MessageId, bool]:
    stored = {} if states is None else msgspec.json.decode(states, type=dict[int, bool])
    return {MessageId(id_): delivered for id_, delivered in stored.items()}
