"""From what a client asked for to the messages it becomes."""

from collections.abc import Callable

from msgspec import Struct

from relay.domain.message import (
    Callback,
    FlowControl,
    Message,
    MessageId,
    Origin,
    Redaction,
    Request,
    RetryPolicy,
    SignedBy,
    TenantId,
    content_dedup_key,
    explicit_dedup_key,
)


class Draft(Struct, frozen=True, kw_only=True):
    """A parsed publish: what to send, before there is a message.

    `request.url` is the destination. A draft to a URL group has `url_group` instead and no URL, until
    `url_group.fan_out` makes a draft to each of its endpoints. `not_before` (Unix ms) wins over `delay_ms`. A
    schedule stores a draft and makes messages of it at every tick.
    """

    request: Request
    url_group: str | None = None
    #: The name of the endpoint of the group, if it has one.
    endpoint: str | None = None
    retry: RetryPolicy = RetryPolicy()
    delay_ms: int | None = None
    not_before: int | None = None
    caller_ip: str | None = None
    labels: tuple[str, ...] = ()
    flow: FlowControl | None = None
    queue: str | None = None
    callback: Callback | None = None
    failure_callback: Callback | None = None
    redaction: Redaction | None = None
    signed_by: SignedBy | None = None
    deduplication_id: str | None = None
    content_based_deduplication: bool = False


def message_of(
    draft: Draft, *, tenant: TenantId, id: MessageId, now: int, schedule_id: str | None = None
) -> Message:
    """The message a draft becomes when it is accepted at `now`. A not-before in the past means now.

    With a URL group there is one decision about duplicates for each endpoint.
    """
    assert draft.request.url, "a draft to a URL group becomes messages by way of fan_out"
    not_before = now
    if draft.not_before is not None:
        not_before = max(now, draft.not_before)
    elif draft.delay_ms is not None:
        not_before = now + draft.delay_ms
    dedup_key = None
    if draft.deduplication_id is not None:
        endpoint_url = None if draft.url_group is None else draft.request.url
        dedup_key = explicit_dedup_key(draft.deduplication_id, endpoint_url)
    elif draft.content_based_deduplication:
        dedup_key = content_dedup_key(draft.request)
    return Message(
        id=id,
        tenant=tenant,
        created_at=now,
        not_before=not_before,
        request=draft.request,
        retry=draft.retry,
        origin=Origin(
            caller_ip=draft.caller_ip,
            url_group=draft.url_group,
            endpoint=draft.endpoint,
            schedule_id=schedule_id,
            queue=draft.queue,
        ),
        labels=draft.labels,
        flow=draft.flow,
        callback=draft.callback,
        failure_callback=draft.failure_callback,
        redaction=draft.redaction,
        signed_by=draft.signed_by,
        dedup_key=dedup_key,
    )


def redrive(message: Message, *, id: MessageId, now: int, override: Callable[[Message], Message]) -> Message:
    """A dead letter's message sent again as a new one, due now.

    `override` applies what the request to retry asked to change. Deduplication does not apply: whoever redrives
    means it.
    """
    changed = override(message)
    return Message(
        id=id,
        tenant=message.tenant,
        created_at=now,
        not_before=max(now, changed.not_before),
        request=changed.request,
        retry=changed.retry,
        origin=changed.origin,
        labels=changed.labels,
        flow=changed.flow,
        callback=changed.callback,
        failure_callback=changed.failure_callback,
        redaction=changed.redaction,
        signed_by=changed.signed_by,
    )
