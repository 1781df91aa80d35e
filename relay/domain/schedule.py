"""Recurring publishes: what a schedule is, and what is due of it at a given time.

The rule, for a schedule whose ticks up to `now` have not been dealt with:

- The latest tick is *on time* when it is at most a minute old; it is run, whatever the schedule says about
  catching up. Every other tick has been *missed*.
- Missed ticks older than the grace period are skipped. Of the others, `last` runs the latest, unless there is one
  on time to stand for it; `none` skips them; `all` runs them, at most the latest hundred.
- With overlap `skip` at most one tick is run, the latest, and none while an earlier run is unfinished.
- Whatever is not run is recorded as skipped, with the reason. After a long absence only the tick at which it
  began and the latest ones are recorded, so that a year costs no more than half an hour.
- The schedule goes on with the first tick after `now`. A clock that was set back therefore repeats nothing: the
  schedule waits until its next tick comes again.
"""

from collections.abc import Sequence
from enum import Enum
from functools import lru_cache

from msgspec import Struct
from msgspec.structs import replace

from relay.domain.cron import Cron
from relay.domain.errors import NotFound, quoted
from relay.domain.message import Message, MessageId, NextId, TenantId
from relay.domain.publish import Draft, message_of
from relay.domain.url_group import UrlGroup, fan_out

#: A tick this old is still on time: the loop that fires looks every few seconds, and a busy minute takes a while.
ON_TIME_MS = 60_000
#: What `all` runs at once at most.
MAX_CATCH_UP_RUNS = 100
#: Skips recorded at once at most. Thousands of schedules may wake up together from the same absence.
MAX_RECORDED_SKIPS = 25

_MINUTE_MS = 60_000


class CatchUp(Enum):
    """What happens to runs missed while nothing could fire them (Relay-Schedule-Catch-Up)."""

    LAST = "last"
    NONE = "none"
    ALL = "all"


class Overlap(Enum):
    """Whether a run may start while an earlier one's messages are unfinished (Relay-Schedule-Overlap)."""

    ALLOW = "allow"
    SKIP = "skip"


class Schedule(Struct, frozen=True, kw_only=True):
    """A cron, and the draft that becomes a message at every tick.

    `next_at` is the next tick that has not been dealt with; None while paused, or when the cron has no further
    tick. `revision` rises with every replacement of the definition, pause and resume, and together with
    `next_at` it is what a firing compares before it writes. `created_at` survives replacement.
    """

    tenant: TenantId
    id: str
    cron: str
    draft: Draft
    created_at: int
    revision: int
    catch_up: CatchUp = CatchUp.LAST
    overlap: Overlap = Overlap.ALLOW
    paused: bool = False
    next_at: int | None = None
    last_fired_at: int | None = None
    error: str | None = None


class RunOutcome(Enum):
    """What became of one tick. A tick is run or its skip is recorded with a reason; there is nothing else."""

    FIRED = "fired"
    SKIPPED_MISSED = "skipped: the relay was not running and the schedule does not catch up on this run"
    SKIPPED_OVERLAP = "skipped: an earlier run was still in progress"
    FAILED = "failed"


class Run(Struct, frozen=True, kw_only=True):
    """One tick of a schedule. `tick_at` is when it was due, `fired_at` when it was dealt with."""

    tick_at: int
    fired_at: int
    outcome: RunOutcome
    message_ids: tuple[MessageId, ...] = ()


class Plan(Struct, frozen=True, kw_only=True):
    """What to do about a schedule now: ticks to run and skips to record, oldest first, and its next tick.

    No skip is later than a tick to run.
    """

    ticks: tuple[int, ...] = ()
    skips: tuple[Run, ...] = ()
    next_at: int | None


def due_runs(schedule: Schedule, *, now: int, grace_ms: int, in_progress: bool) -> Plan:
    """What is due of a schedule at `now`; `in_progress` says that messages of an earlier run are unfinished.

    Nothing, and `next_at` unchanged, when its next tick has not come. Raises ValueError when the stored cron can no
    longer be read (its time zone was abolished).
    """
    if schedule.paused:
        return Plan(next_at=None)
    if schedule.next_at is None or schedule.next_at > now:
        return Plan(next_at=schedule.next_at)
    cron = _parsed(schedule.cron)
    runs = MAX_CATCH_UP_RUNS if _catches_up_on_all(schedule) else 1
    due, next_at = _due_ticks(cron, schedule.next_at, now, enough=runs + MAX_RECORDED_SKIPS)
    wanted = _wanted(schedule, due, now=now, grace_ms=grace_ms)
    overlapping = in_progress and schedule.overlap is Overlap.SKIP
    skips = [
        Run(
            tick_at=tick_at,
            fired_at=now,
            outcome=RunOutcome.SKIPPED_OVERLAP if tick_at in wanted else RunOutcome.SKIPPED_MISSED,
        )
        for tick_at in due
        if overlapping or tick_at not in wanted
    ]
    return Plan(
        ticks=() if overlapping else tuple(wanted),
        skips=(*skips[:1], *skips[1:][1 - MAX_RECORDED_SKIPS :]),
        next_at=next_at,
    )


def scheduled_messages(
    schedule: Schedule, *, group: UrlGroup | None = None, next_id: NextId, now: int
) -> tuple[Message, ...]:
    """The messages a schedule's draft becomes at `now`, its delay counted from then: one, or one for each endpoint
    of `group`, which is what the URL group it names is now. Raises `NotFound` when it is no more.

    Deduplication does not apply: every run is meant, however much it resembles the one before.
    """
    draft = replace(schedule.draft, deduplication_id=None, content_based_deduplication=False)
    drafts: Sequence[Draft] = (draft,)
    if draft.url_group is not None:
        if group is None:
            raise NotFound(f"URL group {quoted(draft.url_group)}")
        drafts = fan_out(draft, group)
    return tuple(
        message_of(one, tenant=schedule.tenant, id=MessageId(next_id(now)), now=now, schedule_id=schedule.id)
        for one in drafts
    )


@lru_cache(maxsize=512)
def _parsed(cron: str) -> Cron:
    """Reading a cron costs ten times as much as asking it, and many schedules share one."""
    return Cron.parse(cron)


def _catches_up_on_all(schedule: Schedule) -> bool:
    return schedule.catch_up is CatchUp.ALL and schedule.overlap is Overlap.ALLOW


def _wanted(schedule: Schedule, due: Sequence[int], *, now: int, grace_ms: int) -> Sequence[int]:
    """Of the due ticks, those that catching up asks to run, oldest first."""
    latest = due[-1]
    if _catches_up_on_all(schedule):
        oldest_at = now - max(grace_ms, ON_TIME_MS)
        return [tick_at for tick_at in due[-MAX_CATCH_UP_RUNS:] if tick_at >= oldest_at]
    late_ms = now - latest
    if late_ms <= ON_TIME_MS or (schedule.catch_up is not CatchUp.NONE and late_ms <= grace_ms):
        return [latest]
    return []


def _due_ticks(cron: Cron, first: int, now: int, *, enough: int) -> tuple[Sequence[int], int | None]:
    """The first and the latest `enough` of the ticks up to `now`, oldest first, and the next one after it.

    `first`, the tick that was announced, is due even if the cron would not name it today (time zone rules change).
    """
    second = cron.next_after(first)
    if second is None or second > now:
        return [first], second
    latest: list[int] = []
    # Backwards in growing windows: a year of minutes must not be walked through to find the last few.
    end, minutes = now, enough
    while end > first and len(latest) < enough:
        start = max(first, end - minutes * _MINUTE_MS)
        latest[:0] = cron.ticks(start, end, minutes)
        end, minutes = start, 4 * minutes
    return [first, *latest[-enough:]], cron.next_after(now)
