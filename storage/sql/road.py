"""What publishes and settlements mean for rows, decided without a database: the part all backends share."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from relay.domain.delivery import Attempt, Change, Claim, Settlement
from relay.domain.message import Message, MessageId
from storage.protocol import ClaimTerms, When

#: What history says when a lease was taken over: nobody knows what the lost attempt did.
LOST = "the worker that held the lease was lost; the outcome of its attempt is unknown"

#: Tenant, message and claim number: what fences a settlement.
Identity = tuple[int, int, int]


#: Beyond it, an instant before another that should have come first is no delay but a clock that was set back:
#: then what it says now counts, and not what it said.
_LATE_MS = 60_000

#: What a message costs beside its body, about.
_MESSAGE_BYTES = 1_000


class Acceptance(NamedTuple):
    """One call of publish. `positions` in history for its messages, if they were taken before its transaction."""

    messages: Sequence[Message]
    now: int
    terms: ClaimTerms | None
    positions: Sequence[int] | None = None


#: Of a publish from which nothing is claimed.
NO_TERMS = ClaimTerms(limit=0, lease_ms=0)


def instant(when: When) -> int:
    """The instant, read from the clock if that was given."""
    return when if isinstance(when, int) else when()


def not_before(at: int, earlier: int) -> int:
    """`at`, for something that follows what was at `earlier`: history of one message does not go back."""
    return earlier if 0 < earlier - at <= _LATE_MS else at


def following(settlement: Settlement, at: int) -> Settlement:
    """The settlement of a delivery of which history tells something at that instant: not before it."""
    if settlement.at >= at:
        return settlement
    due_at = settlement.due_at
    return replace(
        settlement,
        at=not_before(settlement.at, at),
        due_at=None if due_at is None else not_before(due_at, at),
    )


def left(terms: ClaimTerms, sizes: Sequence[int]) -> ClaimTerms:
    """The terms for what may be claimed besides deliveries with bodies of these sizes."""
    limit, max_bytes = terms.limit - len(sizes), terms.max_bytes
    if max_bytes is not None:
        max_bytes -= sum(sizes)
        limit = limit if max_bytes > 0 else 0
    return replace(terms, limit=limit, max_bytes=max_bytes)


def cost_of_messages(messages: Iterable[Message]) -> int:
    """About the bytes that have to be written for them."""
    return sum([_MESSAGE_BYTES + len(message.request.body) for message in messages])


def cost_of_settlements(settlements: Iterable[Settlement]) -> int:
    """About the bytes that have to be written for them."""
    cost = 0
    for one in settlements:
        cost += _MESSAGE_BYTES + (0 if one.attempt is None else len(one.attempt.body))
        if one.publishes:
            cost += cost_of_messages(one.publishes)
    return cost


def distinct(
    calls: Sequence[Sequence[Settlement]], refused: Sequence[list[MessageId]]
) -> dict[Identity, tuple[int, Settlement]]:
    """The first settlement of each claim, with the number of its call; any other of the same claim is refused.

    None is before its claim.
    """
    fresh: dict[Identity, tuple[int, Settlement]] = {}
    for number, settlements in enumerate(calls):
        for settlement in settlements:
            one = settlement.claim
            identity = (one.message.tenant, one.message.id, one.claim_no)
            if identity in fresh:
                refused[number].append(one.message.id)
            else:
                fresh[identity] = (number, following(settlement, one.claimed_at))
    return fresh


def canceled(settlement: Settlement) -> Settlement:
    """What a settlement becomes when cancellation was asked for; handed back unsent, the delivery ends unsent."""
    if settlement.change is Change.RELEASED:
        return stopped(settlement.claim, settlement.at, "the relay stopped before the message was sent")
    return settlement.canceled()


def stopped(one: Claim, now: int, error: str = LOST) -> Settlement:
    """The end of a cancelled delivery whose attempt will not be heard of."""
    attempt = Attempt(started_at=one.claimed_at, ended_at=now, error=error)
    return Settlement(claim=one, change=Change.CANCELED_AFTER_ERROR, at=now, attempt=attempt)
