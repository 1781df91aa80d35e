"""Gates: what may hold a delivery back although it is due, and who may pass now.

A queue is passed once by each message, in the order they were accepted, and its slot (a lane) is kept until the
message is finished, retries and callbacks included. So passing has nothing to do with time: the first in line takes
a free lane, and when it is not due yet it waits in it, and the lane with it.

A flow-control key is passed by each attempt, oldest due time first. Its slot is kept for that attempt, and starts
are counted in fixed windows of which each begins with the first start in it.

A message with both takes its lane first and asks the key from there: the head of the queue needs the key's permit
too, and nobody overtakes it while it waits. That order, queue before key, is the same for everyone, so no two can
wait for each other.

A crowd is what exceeds the share of its host (see `fairness.py`). It has no limits: how many may leave it is for
whoever has the room to say. Who has left it is in it no longer.

A tenant that may have only so many deliveries in flight is a gate, too, passed by each attempt of all that it has,
last: who has a lane waits inside it, and who needs the permit of a key gets both or neither.

All of it is values: storage reads a gate and its first waiters, asks here, and writes what it was told.
"""

from collections.abc import Sequence
from enum import IntEnum
from typing import NewType, Protocol, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from relay.domain.delivery import Claim
from relay.domain.message import FlowControl, Message, TenantId

GateId = NewType("GateId", int)

#: What a gate without a limit permits.
UNLIMITED = 1 << 31

#: An unused flow-control key is forgotten this long after its last use, unless it is paused or pinned.
KEY_LIFETIME_MS = 3_600_000

DEFAULT_PERIOD_MS = 1_000

#: No call is under way for longer.
_LATE_MS = 60_000


class GateKind(IntEnum):
    """The numbers are stored, and gates are locked in their order: never renumber."""

    QUEUE = 1
    FLOW = 2
    CROWD = 3
    TENANT = 4


class Gate(Struct, frozen=True, kw_only=True):
    """One gate with its limits and its counts; a limit that is not set is None.

    A queue that was deleted has no name any more, only messages to get rid of.
    `held` counts the slots in use, `members` the unfinished messages that name the gate, `accepted` all there ever
    were, which numbers the places in a queue. `window_count` starts were made in the window that began at
    `window_at`. `used_at` is when a message last came or went, `updated_at` when the settings last changed.
    """

    id: GateId
    tenant: TenantId
    kind: GateKind
    name: str | None
    created_at: int
    updated_at: int
    used_at: int
    parallelism: int | None = None
    rate: int | None = None
    period_ms: int = DEFAULT_PERIOD_MS
    paused: bool = False
    parallelism_pinned: bool = False
    rate_pinned: bool = False
    held: int = 0
    window_at: int | None = None
    window_count: int = 0
    members: int = 0
    accepted: int = 0


class Waits(Protocol):
    """Whoever stands before a gate; `eligible_at` is when it is due."""

    @property
    def eligible_at(self) -> int: ...


W = TypeVar("W", bound=Waits)


def default_parallelism(kind: GateKind) -> int | None:
    """A queue that nobody configured hands out one message at a time; a key has the limits it is given."""
    return 1 if kind is GateKind.QUEUE else None


def is_gated(message: Message) -> bool:
    """Whether a message has a gate to pass."""
    return message.flow is not None or message.origin.queue is not None


def may_hold(claim: Claim) -> bool:
    """Whether an attempt may hold something of a gate: who took over a lost lease does not know what came along."""
    return claim.permit or claim.lost_leases > 0 or is_gated(claim.message)


def moves_gates(claim: Claim) -> bool:
    """Whether the end of an attempt can change a gate: its own, or the queue of the message it reports on."""
    return may_hold(claim) or claim.message.lane_of is not None


# --- who may pass


def as_of(gate: Gate, now: int) -> Gate:
    """The gate by a clock that says `now`. A window from the far future, left by a clock that was set back, begins
    now; one that is ahead by less than its period or a minute holds: it may be another node's, and `now` may have
    been long on its way to storage."""
    if gate.window_at is None or gate.window_at - now <= max(gate.period_ms, _LATE_MS):
        return gate
    return replace(gate, window_at=now)


def permits(gate: Gate, now: int) -> int:
    """How many may pass at `now`, whoever they are."""
    if gate.paused:
        return 0
    slots = UNLIMITED if gate.parallelism is None else gate.parallelism - gate.held
    return max(0, min(slots, _starts_left(gate, now)))


def admit(gate: Gate, waiters: Sequence[W], *, room: int, now: int) -> tuple[Sequence[W], Gate]:
    """Who passes of the first waiters in line, at most `room` of them, and the gate behind them.

    Whoever loads the line needs no more of it than `min(permits(gate, now), room)`.
    """
    due = waiters
    if gate.kind is not GateKind.QUEUE:
        due = [waiter for waiter in waiters if waiter.eligible_at <= now]
    passing = due[: max(0, min(permits(gate, now), room))]
    return passing, _passed(gate, len(passing), now)


def opens_at(gate: Gate, first_at: int | None, now: int) -> int | None:
    """The earliest instant, from `now` on, at which somebody could pass; None while only a change can bring it.

    `first_at` is when the first in line is due, None when nobody waits. A gate that is open already says `now`, not
    since when: so of many open gates the one that was served last is the last in line.
    """
    if first_at is None or gate.paused:
        return None
    if gate.parallelism is not None and gate.held >= gate.parallelism:
        return None
    if gate.kind is GateKind.QUEUE:
        return now
    earliest = max(first_at, now)
    if _starts_left(gate, now) > 0:
        return earliest
    assert gate.window_at is not None
    return max(earliest, gate.window_at + gate.period_ms)


def shares(wants: Sequence[int], room: int) -> Sequence[int]:
    """`room` divided among gates that could use this much each: nobody gets a second before all have a first."""
    shared = [0] * len(wants)
    for n, gate in enumerate(sorted(range(len(wants)), key=lambda gate: wants[gate])):
        shared[gate] = min(wants[gate], -(-room // (len(wants) - n)))
        room -= shared[gate]
    return shared


# --- what changes a gate


def accepted(gate: Gate, limits: FlowControl | None, now: int) -> Gate:
    """After a message was accepted: the limits it brought hold, but for what is pinned or what it left out."""
    gate = replace(gate, members=gate.members + 1, accepted=gate.accepted + 1, used_at=max(gate.used_at, now))
    if limits is None:
        return gate
    if limits.parallelism is not None and not gate.parallelism_pinned:
        gate = replace(gate, parallelism=limits.parallelism)
    if limits.rate is not None and not gate.rate_pinned:
        gate = replace(gate, rate=limits.rate, period_ms=limits.period_ms)
    return gate


def joined(gate: Gate, count: int, now: int) -> Gate:
    """After so many came to a crowd, or to a tenant with a limit."""
    return replace(
        gate,
        members=gate.members + count,
        accepted=gate.accepted + count,
        used_at=max(gate.used_at, now),
    )


def freed(gate: Gate) -> Gate:
    """After a slot was given back."""
    return replace(gate, held=gate.held - 1)


def left(gate: Gate, now: int) -> Gate:
    """After a message that names the gate was finished; with a queue, its callbacks too."""
    return replace(gate, members=gate.members - 1, used_at=max(gate.used_at, now))


def limited(gate: Gate, parallelism: int | None, now: int) -> Gate:
    """The gate of a tenant with the limit an operator set. Without one it is of use until it is empty."""
    return replace(
        gate,
        parallelism=parallelism,
        parallelism_pinned=parallelism is not None,
        updated_at=now,
        used_at=max(gate.used_at, now),
    )


class Configure(Struct, frozen=True, kw_only=True):
    """Settings of a queue, and pausing or resuming any gate; None leaves a setting as it is."""

    parallelism: int | None = None
    paused: bool | None = None


class Pin(Struct, frozen=True, kw_only=True):
    """Limits that messages cannot change any more; None pins nothing. `period_ms` belongs to the rate."""

    parallelism: int | None = None
    rate: int | None = None
    period_ms: int | None = None


class Unpin(Struct, frozen=True, kw_only=True):
    """The pinned limits stay in force until a message brings others."""

    parallelism: bool = False
    rate: bool = False


class ResetRate(Struct, frozen=True):
    """No starts counted, in a window that begins now."""


GateChange = Configure | Pin | Unpin | ResetRate


def changed(gate: Gate, change: GateChange, now: int) -> Gate:
    """The gate after somebody changed it on purpose."""
    gate = replace(gate, updated_at=now)
    match change:
        case Configure():
            return replace(
                gate,
                parallelism=gate.parallelism if change.parallelism is None else change.parallelism,
                paused=gate.paused if change.paused is None else change.paused,
            )
        case Pin():
            if change.parallelism is not None:
                gate = replace(gate, parallelism=change.parallelism, parallelism_pinned=True)
            if change.rate is None and change.period_ms is None:
                return gate
            return replace(
                gate,
                rate=gate.rate if change.rate is None else change.rate,
                period_ms=gate.period_ms if change.period_ms is None else change.period_ms,
                rate_pinned=True,
                window_at=now,
                window_count=0,
            )
        case Unpin():
            return replace(
                gate,
                parallelism_pinned=gate.parallelism_pinned and not change.parallelism,
                rate_pinned=gate.rate_pinned and not change.rate,
            )
        case ResetRate():
            return replace(gate, window_at=now, window_count=0)


def window_count(gate: Gate, now: int) -> int:
    """Starts in the window that `now` falls into; 0 without a rate."""
    return 0 if gate.rate is None or _window_is_over(gate, now) else gate.window_count


# --- windows


def _starts_left(gate: Gate, now: int) -> int:
    return UNLIMITED if gate.rate is None else gate.rate - window_count(gate, now)


def _window_is_over(gate: Gate, now: int) -> bool:
    return gate.window_at is None or now >= gate.window_at + gate.period_ms


def _passed(gate: Gate, count: int, now: int) -> Gate:
    if not count:
        return gate
    if gate.kind is GateKind.CROWD:
        return replace(gate, members=gate.members - count, used_at=max(gate.used_at, now))
    gate = replace(gate, held=gate.held + count)
    if gate.rate is None:
        return gate
    if _window_is_over(gate, now):
        return replace(gate, window_at=now, window_count=count)
    return replace(gate, window_count=gate.window_count + count)
