"""Values for tests, with only the relevant field named: `a_message(max_retries=0)`."""

from itertools import count

from relay.domain.delivery import Attempt, Claim
from relay.domain.message import (
    Callback,
    FlowControl,
    Headers,
    Message,
    MessageId,
    Origin,
    Redaction,
    Request,
    RetryPolicy,
    TenantId,
)
from relay.ids import Ids

#: The instant tests begin at (Unix ms); `FakeClock` starts there too.
NOW = 1_800_000_000_000
TENANT = TenantId(1)
OTHER_TENANT = TenantId(2)

_ids = Ids()

#: Above the ids that `Ids` makes in one millisecond.
_counts = count(1 << 12)


def a_message_id(now: int = NOW) -> MessageId:
    """A fresh id, greater than all before it."""
    return MessageId(_ids.next(now))


def next_id(at: int) -> int:
    """What the rules ask for fresh ids: of this very instant, whatever was asked before; never `a_message_id`'s."""
    return at << 20 | next(_counts)


def a_message(
    *,
    id: MessageId | None = None,
    tenant: TenantId = TENANT,
    created_at: int = NOW,
    not_before: int | None = None,
    url: str = "https://example.com/hook",
    method: str = "POST",
    headers: Headers = (("Content-Type", "text/plain"),),
    body: bytes = b"hello",
    timeout_ms: int | None = None,
    max_retries: int = 3,
    retry_delay: str | None = None,
    caller_ip: str | None = None,
    url_group: str | None = None,
    endpoint: str | None = None,
    schedule_id: str | None = None,
    queue: str | None = None,
    source: MessageId | None = None,
    labels: tuple[str, ...] = (),
    flow: FlowControl | None = None,
    callback: Callback | None = None,
    failure_callback: Callback | None = None,
    redaction: Redaction | None = None,
    dedup_key: bytes | None = None,
    lane_of: MessageId | None = None,
) -> Message:
    """A message due at its creation unless `not_before` says otherwise."""
    return Message(
        id=a_message_id(created_at) if id is None else id,
        tenant=tenant,
        created_at=created_at,
        not_before=created_at if not_before is None else not_before,
        request=Request(url=url, method=method, headers=headers, body=body, timeout_ms=timeout_ms),
        retry=RetryPolicy(max_retries=max_retries, delay=retry_delay),
        origin=Origin(
            caller_ip=caller_ip,
            url_group=url_group,
            endpoint=endpoint,
            schedule_id=schedule_id,
            queue=queue,
            source=source,
        ),
        labels=labels,
        flow=flow,
        callback=callback,
        failure_callback=failure_callback,
        redaction=redaction,
        dedup_key=dedup_key,
        lane_of=lane_of,
    )


def an_attempt(
    *,
    started_at: int = NOW,
    ended_at: int | None = None,
    status: int | None = 200,
    headers: Headers = (),
    body: bytes = b"",
    error: str | None = None,
) -> Attempt:
    """A success that took 5 ms; `an_attempt(status=500)` failed, `an_attempt(status=None, error="...")` too."""
    return Attempt(
        started_at=started_at,
        ended_at=started_at + 5 if ended_at is None else ended_at,
        status=status,
        headers=headers,
        body=body,
        error=error,
    )


def a_claim(
    message: Message | None = None,
    *,
    claim_no: int = 1,
    claimed_at: int = NOW,
    retried: int = 0,
    lost_leases: int = 0,
) -> Claim:
    """A first claim, made at `NOW`."""
    return Claim(
        message=message or a_message(),
        claim_no=claim_no,
        claimed_at=claimed_at,
        retried=retried,
        lost_leases=lost_leases,
    )
