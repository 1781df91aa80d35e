"""The steps of a message's road, as contract tests take them."""

from collections.abc import Sequence

from msgspec.structs import replace

from relay.domain.dead_letter import DeadLetter
from relay.domain.delivery import Claim, Lease, State, settle
from relay.domain.event import Event
from relay.domain.gates import is_gated
from relay.domain.message import Message, MessageId, TenantId
from relay.domain.selection import Order, Selection
from storage.protocol import ClaimTerms, Published, Storage
from tests.builders import NOW, TENANT, an_attempt, next_id

LEASE_MS = 30_000
TERMS = ClaimTerms(limit=100, lease_ms=LEASE_MS)
EVERYTHING = Selection()
#: Far enough for everything to be due.
LATER = NOW + 10**9


async def accept(storage: Storage, *messages: Message, now: int = NOW) -> Published:
    """Publish without claiming anything."""
    return await storage.publish(messages, now=now)


async def start(storage: Storage, *messages: Message, now: int = NOW) -> Sequence[Claim]:
    """Publish and take at once; if one of them has a gate to pass, then with a claim of all that is due."""
    claims = (await storage.publish(messages, now=now, claim=TERMS)).claims
    if any(is_gated(message) for message in messages):
        claims = [*claims, *await take(storage, now=now)]
    return claims


async def take(storage: Storage, *, now: int = NOW) -> Sequence[Claim]:
    """Claim all that is due."""
    return (await storage.claim(TERMS, now=now)).claims


async def ask_permits(
    storage: Storage, claims: Sequence[Claim], *, now: int = NOW, sift: int = 0
) -> tuple[Sequence[Claim], Sequence[Claim]]:
    """Ask for one for each claim that has none; those that have one now, and those that stay as they are."""
    asking = [replace(claim, permit=True) for claim in claims if not claim.permit]
    leases = [
        Lease(tenant=claim.message.tenant, message_id=claim.message.id, claim_no=claim.claim_no)
        for claim in asking
    ]
    permits = await storage.ask_permits(leases, now=now, sift=sift)
    had = [claim for claim in claims if claim.permit]
    granted = [claim for claim in asking if claim.message.id in permits.granted]
    return [*had, *granted], [
        claim for claim in asking if claim.message.id not in {*permits.granted, *permits.waiting}
    ]


async def deliver(storage: Storage, *claims: Claim, now: int = NOW) -> Sequence[MessageId]:
    """Settle as delivered; the ids that were refused."""
    return await storage.settle(
        [settle(claim, an_attempt(started_at=now), next_id=next_id) for claim in claims]
    )


async def fail(storage: Storage, *claims: Claim, now: int = NOW, status: int = 500) -> Sequence[MessageId]:
    """Settle as one more failed attempt; the ids that were refused."""
    return await storage.settle(
        [
            settle(claim, an_attempt(started_at=now, status=status, body=b"no"), next_id=next_id)
            for claim in claims
        ]
    )


async def bury(storage: Storage, message: Message, *, now: int = NOW, status: int = 500) -> DeadLetter:
    """Publish a message without retries and let it fail; what is left of it."""
    assert message.retry.max_retries == 0
    claims = await start(storage, message, now=now)
    assert await fail(storage, *claims, now=now, status=status) == []
    (letter,) = await graves(storage, Selection(message_ids=(message.id,)), tenant=message.tenant)
    return letter


async def happenings(
    storage: Storage,
    selection: Selection = EVERYTHING,
    *,
    tenant: TenantId = TENANT,
    order: Order = Order.EARLIEST_FIRST,
    start: int | None = None,
    limit: int = 1000,
) -> Sequence[Event]:
    """Rows of history, oldest first."""
    history = await storage.events(tenant, selection, order=order, start=start, limit=limit)
    return list(history.events)


async def graves(
    storage: Storage,
    selection: Selection = EVERYTHING,
    *,
    tenant: TenantId = TENANT,
    order: Order = Order.EARLIEST_FIRST,
    start: int | None = None,
    limit: int = 1000,
) -> Sequence[DeadLetter]:
    """Dead letters, oldest first."""
    return await storage.dead_letters(tenant, selection, order=order, start=start, limit=limit)


async def states(storage: Storage, message: Message) -> Sequence[State]:
    """The log of one message: every state it went through."""
    events = await happenings(storage, Selection(message_ids=(message.id,)), tenant=message.tenant)
    return [state for event in events for state in event.change.states]
