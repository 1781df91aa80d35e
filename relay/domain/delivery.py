"""Where a message stands: every change of a delivery's state is decided in this file.

A delivery rests in CREATED, ACTIVE or RETRY while it is alive and ends in DELIVERED, FAILED or CANCELED.
What an attempt changes is a `Settlement`, built by `settle()` or by a named constructor, and written by
storage in one transaction.
"""

from collections.abc import Iterator
from enum import Enum, IntEnum
from itertools import combinations
from typing import NewType

from msgspec import Struct
from msgspec.structs import replace

from relay.domain.backoff import next_delay_ms
from relay.domain.callback import reports
from relay.domain.expression import RetryDelay
from relay.domain.message import Headers, Message, MessageId, NextId, TenantId
from relay.domain.tenant import Limits

DeadLetterId = NewType("DeadLetterId", int)

#: A delivery whose lease is lost this many times in a row counts as a failed attempt, so that a message
#: that kills its worker ends in the dead-letter queue instead of in a loop.
MAX_LOST_LEASES = 5

NON_RETRYABLE_STATUS = 489
NON_RETRYABLE_HEADER = "upstash-nonretryable-error"


class State(Enum):
    """The states of the API. ERROR and CANCEL_REQUESTED are passed through, never rested in."""

    CREATED = "CREATED"
    ACTIVE = "ACTIVE"
    RETRY = "RETRY"
    ERROR = "ERROR"
    DELIVERED = "DELIVERED"
    FAILED = "FAILED"
    CANCEL_REQUESTED = "CANCEL_REQUESTED"
    CANCELED = "CANCELED"


#: Which state may follow which. ACTIVE follows ACTIVE when a lost lease is claimed again.
TRANSITIONS: dict[State, frozenset[State]] = {
    State.CREATED: frozenset({State.ACTIVE, State.CANCEL_REQUESTED}),
    State.ACTIVE: frozenset({State.ACTIVE, State.DELIVERED, State.ERROR, State.CANCEL_REQUESTED}),
    State.ERROR: frozenset({State.RETRY, State.FAILED, State.CANCELED}),
    State.RETRY: frozenset({State.ACTIVE, State.CANCEL_REQUESTED}),
    State.CANCEL_REQUESTED: frozenset({State.CANCELED, State.DELIVERED, State.ERROR}),
    State.DELIVERED: frozenset(),
    State.FAILED: frozenset(),
    State.CANCELED: frozenset(),
}

FINAL = frozenset({State.DELIVERED, State.FAILED, State.CANCELED})


class Change(IntEnum):
    """One transaction's effect on a delivery, and so one row of history; `states` are its log entries in order.

    Entries of one change share its instant. The numbers are stored: never renumber.
    """

    CREATED = 1
    STARTED_AT_ONCE = 2
    STARTED = 3
    DELIVERED = 4
    RETRIED = 5
    FAILED = 6
    CANCELED_AFTER_ERROR = 7
    CANCEL_REQUESTED = 8
    CANCELED = 9
    #: Handed back unsent at shutdown: no attempt was made, so the log says nothing.
    RELEASED = 10

    @property
    def states(self) -> tuple[State, ...]:
        return _STATES[self]


_STATES: dict[Change, tuple[State, ...]] = {
    Change.CREATED: (State.CREATED,),
    Change.STARTED_AT_ONCE: (State.CREATED, State.ACTIVE),
    Change.STARTED: (State.ACTIVE,),
    Change.DELIVERED: (State.DELIVERED,),
    Change.RETRIED: (State.ERROR, State.RETRY),
    Change.FAILED: (State.ERROR, State.FAILED),
    Change.CANCELED_AFTER_ERROR: (State.ERROR, State.CANCELED),
    Change.CANCEL_REQUESTED: (State.CANCEL_REQUESTED,),
    Change.CANCELED: (State.CANCEL_REQUESTED, State.CANCELED),
    Change.RELEASED: (),
}


class Claim(Struct, frozen=True, kw_only=True):
    """The right to make one attempt.

    `claim_no` rises with every claim of the message and fences its settlement: whoever settles under an older
    number is refused. `retried` counts the retries before this attempt (0 on the first). `lost_leases` counts
    the workers in a row that took this delivery and never came back. `permit`: it holds one of those that its
    tenant is limited to, or may hold one, when the answer to that question was lost.
    """

    message: Message
    claim_no: int
    claimed_at: int
    retried: int = 0
    lost_leases: int = 0
    permit: bool = False


class Lease(Struct, frozen=True, kw_only=True):
    """The identity of a claim without its message: enough to renew it."""

    tenant: TenantId
    message_id: MessageId
    claim_no: int


class Attempt(Struct, frozen=True, kw_only=True):
    """One exchange with a destination, whatever came of it.

    `status` is None when no complete response head arrived; then `error` says why, as a sentence. Both are set
    when the head arrived and the body did not. `body` is cut at the configured bound.
    """

    started_at: int
    ended_at: int
    status: int | None = None
    headers: Headers = ()
    body: bytes = b""
    error: str | None = None

    @property
    def succeeded(self) -> bool:
        """Only a complete 2xx answer is a success; a redirect is a failure like any other."""
        return self.error is None and self.status is not None and 200 <= self.status <= 299


class Settlement(Struct, frozen=True, kw_only=True):
    """Everything one attempt changes, as a value: state, due time, history, dead letter, messages to publish.

    Storage refuses it when `claim` is no longer the current one. `due_at` is set when the delivery stays alive.
    A FAILED change, and no other, leaves a dead letter carrying the attempt: `dead_letter_id` is its id.
    `publishes` are the callbacks. They are written with the rest or not at all, so that however often a settlement
    is repeated, they exist once.
    """

    claim: Claim
    change: Change
    at: int
    attempt: Attempt | None = None
    due_at: int | None = None
    dead_letter_id: DeadLetterId | None = None
    publishes: tuple[Message, ...] = ()

    def canceled(self) -> "Settlement":
        """The same outcome for a delivery whose cancellation was asked for while it was in flight.

        A success stands, since the endpoint has acted on it; a failure ends the delivery instead of retrying
        or dead-lettering it, and nobody is called back.
        """
        if self.change not in (Change.RETRIED, Change.FAILED):
            return self
        return Settlement(
            claim=self.claim, change=Change.CANCELED_AFTER_ERROR, at=self.at, attempt=self.attempt
        )


def lesser(settlement: Settlement) -> Iterator[Settlement]:
    """What may be written of a settlement that storage cannot hold as it is, the most first.

    Whatever the delivery came to, it comes to. What can be given up is what the endpoint answered, of which the
    status is kept, and the callbacks: better none than the same attempt again and again.
    """
    answers = [settlement.attempt]
    if settlement.attempt is not None:
        answers.append(_without_answer(settlement.attempt))
    count = len(settlement.publishes)
    kept = [some for size in range(count, -1, -1) for some in combinations(settlement.publishes, size)]
    for attempt in answers:
        for publishes in kept:
            less = replace(settlement, attempt=attempt, publishes=publishes)
            if less != settlement:
                yield less


def _without_answer(attempt: Attempt) -> Attempt:
    return Attempt(
        started_at=attempt.started_at,
        ended_at=attempt.ended_at,
        status=attempt.status,
        error=None if attempt.succeeded else "the attempt failed, and what came of it cannot be stored",
    )


def settle(
    claim: Claim,
    attempt: Attempt,
    *,
    next_id: NextId,
    retry_after_ms: int | None = None,
    max_report_bytes: int = Limits().max_message_bytes,
) -> Settlement:
    """What an attempt means. `retry_after_ms` is what the response's headers asked for, if they did.

    2xx delivers. Status 489 with its marker header, or no retries left, fails. Anything else is retried after
    the delay of `backoff.next_delay_ms`, counted from the end of the attempt. `next_id` names the dead letter and
    the callbacks, in which at most `max_report_bytes` of either body go along.
    """
    at = attempt.ended_at
    message = claim.message
    due_at = dead_letter_id = None
    if attempt.succeeded:
        change = Change.DELIVERED
    elif claim.retried >= message.retry.max_retries or _is_non_retryable(attempt):
        change = Change.FAILED
        dead_letter_id = DeadLetterId(next_id(at))
    else:
        change = Change.RETRIED
        expression = None if message.retry.delay is None else RetryDelay(message.retry.delay)
        due_at = at + next_delay_ms(claim.retried, expression, retry_after_ms)
    publishes: tuple[Message, ...] = ()
    if message.callback is not None or message.failure_callback is not None:
        publishes = reports(
            message,
            attempt,
            retried=claim.retried,
            dead_letter_id=dead_letter_id,
            next_id=next_id,
            max_body_bytes=max_report_bytes,
        )
    return Settlement(
        claim=claim,
        change=change,
        at=at,
        attempt=attempt,
        due_at=due_at,
        dead_letter_id=dead_letter_id,
        publishes=publishes,
    )


def lost(claim: Claim, *, now: int, next_id: NextId) -> Settlement | None:
    """The settlement of a claim that too many workers have died on, or None when it should be attempted."""
    if claim.lost_leases < MAX_LOST_LEASES:
        return None
    return settle(
        claim,
        Attempt(
            started_at=claim.claimed_at,
            ended_at=now,
            error=f"the relay stopped {claim.lost_leases} times in a row while this message was in flight",
        ),
        next_id=next_id,
    )


def is_last_chance(claim: Claim) -> bool:
    """Whether one more lost lease makes it a failed attempt."""
    return claim.lost_leases == MAX_LOST_LEASES - 1


def released(claim: Claim, *, now: int, due_at: int | None = None) -> Settlement:
    """The claim handed back unsent: due at once unless `due_at` says otherwise, no try spent."""
    return Settlement(claim=claim, change=Change.RELEASED, at=now, due_at=now if due_at is None else due_at)


def _is_non_retryable(attempt: Attempt) -> bool:
    """Status and marker together, as the QStash documentation names them; either alone is an ordinary failure."""
    return attempt.status == NON_RETRYABLE_STATUS and any(
        name.lower() == NON_RETRYABLE_HEADER and value.strip().lower() == "true"
        for name, value in attempt.headers
    )
