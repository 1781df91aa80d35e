"""Recurring publishes: what a schedule is, and what is due of it at a given time."""

from enum import Enum

from msgspec import Struct

from relay.domain.message import MessageId, TenantId
from relay.domain.publish import Draft


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
