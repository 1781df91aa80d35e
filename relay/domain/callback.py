"""The message that a callback is: a report about one attempt to deliver another message.

A report is an ordinary message, with an id, a log, retries and a signature of its own. It brings along nothing of
the message it is about but the number of its retries, unless it has its own, what must not be shown, and how it
is signed: labels, deduplication, the door the other came through and its forwarded headers stay behind. It has
further callbacks only when its own settings name them. It waits in no queue, but a message in a queue keeps its
lane until its callbacks are finished, which `lane_of` says; callbacks of callbacks keep nobody waiting.

Rules of the QStash documentation: the callback follows every attempt; the failure callback follows the last one of
a message that has failed for good, once, and names the dead letter that is left of it.
"""

from base64 import b64encode
from typing import TYPE_CHECKING, Any

import msgspec

from relay.domain.fields import canonical, readable, values_by_name
from relay.domain.message import (
    Callback,
    Headers,
    Message,
    MessageId,
    NextId,
    Origin,
    Redaction,
    Request,
    RetryPolicy,
)
from relay.ids import dead_letter_text, text_of

if TYPE_CHECKING:
    from relay.domain.delivery import Attempt

_CONTENT_TYPE = ("Content-Type", "application/json")


def reports(
    message: Message,
    attempt: "Attempt",
    *,
    retried: int,
    dead_letter_id: int | None,
    next_id: NextId,
    max_body_bytes: int,
) -> tuple[Message, ...]:
    """What is to be published about an attempt that ended, due at that instant.

    `dead_letter_id` says that the attempt was the last and in vain. At most `max_body_bytes` of the response body,
    and of the message's, are passed on. A publisher's body is never longer; a report about a report would be, and
    so on without end.
    """
    made = []
    if message.callback is not None:
        body = _body(message, attempt, retried, None, max_body_bytes)
        made.append(_report(message.callback, message, body, at=attempt.ended_at, next_id=next_id))
    if message.failure_callback is not None and dead_letter_id is not None:
        body = _body(message, attempt, retried, dead_letter_id, max_body_bytes)
        made.append(_report(message.failure_callback, message, body, at=attempt.ended_at, next_id=next_id))
    return tuple(made)


def _report(callback: Callback, source: Message, body: bytes, *, at: int, next_id: NextId) -> Message:
    max_retries = callback.max_retries
    return Message(
        id=MessageId(next_id(at)),
        tenant=source.tenant,
        created_at=at,
        not_before=at,
        request=Request(
            url=callback.url,
            method=callback.method,
            headers=_headers(callback.headers),
            body=body,
            timeout_ms=callback.timeout_ms,
        ),
        retry=RetryPolicy(
            max_retries=source.retry.max_retries if max_retries is None else max_retries,
            delay=callback.retry_delay,
        ),
        origin=Origin(source=source.id),
        flow=callback.flow,
        callback=callback.callback,
        failure_callback=callback.failure_callback,
        redaction=_redaction(source.redaction),
        signed_by=source.signed_by,
        lane_of=None if source.origin.queue is None else source.id,
    )


def _headers(own: Headers) -> Headers:
    """The body is JSON, whatever a forwarded header says."""
    return (_CONTENT_TYPE, *(pair for pair in own if canonical(pair[0]) != _CONTENT_TYPE[0]))


def _redaction(source: Redaction | None) -> Redaction | None:
    """The body of a report holds what the source hides."""
    return None if source is None else msgspec.structs.replace(source, body=True)


def _body(
    message: Message, attempt: "Attempt", retried: int, dead_letter_id: int | None, max_body_bytes: int
) -> bytes:
    """The JSON that the receiver of a callback gets. What does not apply is left out; a status of 0 says that no
    response came, and `error` why none did, or not the whole of it."""
    request, origin = message.request, message.origin
    told: dict[str, Any] = {
        "status": attempt.status or 0,
        "header": values_by_name(attempt.headers),
        "body": _base64(attempt.body[:max_body_bytes]),
    }
    if attempt.error is not None:
        told["error"] = readable(attempt.error)
    # The documentation has no number of retries on the first attempt.
    if retried:
        told["retried"] = retried
    told["maxRetries"] = message.retry.max_retries
    if dead_letter_id is not None:
        told["dlqId"] = dead_letter_text(dead_letter_id)
    told["sourceMessageId"] = text_of("msg_", message.id)
    if origin.url_group is not None:
        told["topicName"] = origin.url_group
    if origin.endpoint is not None:
        told["endpointName"] = origin.endpoint
    told["url"] = request.url
    told["method"] = request.method
    told["sourceHeader"] = values_by_name(request.headers)
    told["sourceBody"] = _base64(request.body[:max_body_bytes])
    told["notBefore"] = message.not_before
    told["createdAt"] = message.created_at
    if origin.schedule_id is not None:
        told["scheduleId"] = origin.schedule_id
    if origin.caller_ip is not None:
        told["callerIP"] = origin.caller_ip
    return msgspec.json.encode(told)


def _base64(value: bytes) -> str:
    return b64encode(value).decode()
