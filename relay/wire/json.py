"""Messages, dead letters, log entries, schedules, queues, flow-control keys and URL groups as JSON objects.

The rule of the API: what does not apply is absent, never null, 0 or "". Clients test for the presence of keys.
Bytes that are not UTF-8, wherever they turn up, must not stop an answer: in a body they are shown in base64, in a
header field or an error they are replaced.
"""

from base64 import b64encode
from collections.abc import Collection, Iterable, Sequence
from hashlib import sha256
from typing import Any

from relay.domain.dead_letter import DeadLetter
from relay.domain.delivery import State
from relay.domain.event import Event
from relay.domain.fields import readable, values_by_name
from relay.domain.gates import Gate, window_count
from relay.domain.message import (
    Callback,
    FlowControl,
    Headers,
    Message,
    Origin,
    Redaction,
)
from relay.domain.selection import Order
from relay.domain.url_group import Endpoint, UrlGroup
from relay.ids import dead_letter_text, text_of
from relay.wire.cursor import Cursor, log_cursor
from relay.wire.selection import Page
from storage.protocol import FlowKey, Receipt, ScheduleView

Json = dict[str, Any]

#: A page ends early when the bodies on it are larger than this together; its cursor goes on from there.
PAGE_BYTES = 16 << 20

_NO_REDACTION = Redaction()
_RUN_STATES = {None: "IN_PROGRESS", True: "SUCCESS", False: "FAIL"}


def message_id_text(message_id: int) -> str:
    return text_of("msg_", message_id)


def receipt_json(receipt: Receipt, url: str) -> Json:
    """The answer to a publish; `url` is the destination."""
    answer: Json = {"messageId": message_id_text(receipt.message_id), "url": url}
    if receipt.deduplicated:
        answer["deduplicated"] = True
    return answer


def message_json(message: Message) -> Json:
    redaction = message.redaction or _NO_REDACTION
    request = message.request
    shown: Json = {
        "messageId": message_id_text(message.id),
        "url": request.url,
        "method": request.method,
        "header": _headers(request.headers, redaction),
        "maxRetries": message.retry.max_retries,
        "notBefore": message.not_before,
        "createdAt": message.created_at,
    }
    _put_body(shown, request.body, redaction)
    _put_origin(shown, message.origin)
    _put(shown, "sourceMessageId", message.origin.source and message_id_text(message.origin.source))
    _put(shown, "callerIP", message.origin.caller_ip)
    _put(shown, "retryDelayExpression", message.retry.delay)
    _put_callback(shown, "callback", "callbackHeader", message.callback, redaction)
    _put_callback(shown, "failureCallback", "failureCallbackHeader", message.failure_callback, redaction)
    _put_labels(shown, message.labels)
    _put_flow(shown, message.flow)
    _put(shown, "signature", message.signed_by and message.signed_by.value)
    return shown


def dead_letter_json(dead_letter: DeadLetter) -> Json:
    """The message with its last attempt; a `responseStatus` of 0 says that there was no answer, `error` why."""
    attempt = dead_letter.attempt
    shown = message_json(dead_letter.message)
    shown["dlqId"] = dead_letter_text(dead_letter.id)
    _put(shown, "retried", dead_letter.retried)
    shown["responseStatus"] = attempt.status or 0
    _put(shown, "error", attempt.error and readable(attempt.error))
    _put(shown, "responseHeader", _headers(attempt.headers, _NO_REDACTION))
    if attempt.body:
        text = _utf8(attempt.body)
        if text is None:
            shown["responseBodyBase64"] = _base64(attempt.body)
        else:
            shown["responseBody"] = text
    return shown


def dead_letter_page(dead_letters: Sequence[DeadLetter], *, count: int) -> tuple[list[Json], str | None]:
    """At most `count` entries, and the cursor to the first one left out."""
    entries: list[Json] = []
    size = 0
    for dead_letter in dead_letters:
        if len(entries) == count or size > PAGE_BYTES:
            return entries, dead_letter_text(dead_letter.id)
        entries.append(dead_letter_json(dead_letter))
        size += len(dead_letter.message.request.body) + len(dead_letter.attempt.body)
    return entries, None


def log_entries(
    event: Event, *, order: Order = Order.LATEST_FIRST, states: Collection[State] = ()
) -> list[Json]:
    """The log entries of one row of history in the given order; with `states`, only those in one of them."""
    return [entry for _, entry in _numbered_entries(event, order, states)]


def log_page(
    events: Sequence[Event], page: Page, states: Collection[State], *, next_position: int | None
) -> tuple[list[Json], str | None]:
    """A page of log entries out of rows in page order, which begin with the cursor's, and the next cursor.

    `next_position` is where to go on behind these rows, None when nothing follows them. A row is several entries or
    none, so that a page may end inside of one, or hold fewer entries than were asked for although more follow.
    """
    entries: list[Json] = []
    size = 0
    start = page.cursor or Cursor(position=-1)
    for event in events:
        seen = start.index if event.position == start.position else 0
        for index, entry in _numbered_entries(event, page.order, states):
            if index < seen:
                continue
            if len(entries) == page.count or size > PAGE_BYTES:
                return entries, log_cursor(Cursor(position=event.position, index=index))
            entries.append(entry)
            size += len(event.message.request.body) + len(event.response_body)
    return entries, None if next_position is None else log_cursor(Cursor(position=next_position))


def url_group_json(group: UrlGroup) -> Json:
    shown: Json = {
        "name": group.name,
        "createdAt": group.created_at,
        "updatedAt": group.updated_at,
        "endpoints": [_endpoint_json(endpoint) for endpoint in group.endpoints],
    }
    _put(shown, "headers", values_by_name(group.headers))
    return shown


def schedule_json(view: ScheduleView) -> Json:
    schedule, draft = view.schedule, view.schedule.draft
    redaction = draft.redaction or _NO_REDACTION
    request = draft.request
    shown: Json = {
        "scheduleId": schedule.id,
        "cron": schedule.cron,
        "destination": draft.url_group or request.url,
        "method": request.method,
        "createdAt": schedule.created_at,
        "retries": draft.retry.max_retries,
        "isPaused": schedule.paused,
    }
    _put(shown, "header", _headers(request.headers, redaction))
    _put_body(shown, request.body, redaction)
    _put(shown, "delay", (draft.delay_ms or 0) // 1000)
    _put(shown, "timeout", (request.timeout_ms or 0) // 1000)
    _put_callback(shown, "callback", "callbackHeader", draft.callback, redaction)
    _put_callback(shown, "failureCallback", "failureCallbackHeader", draft.failure_callback, redaction)
    _put(shown, "queueName", draft.queue)
    # Both spellings are in use for schedules.
    _put(shown, "callerIP", draft.caller_ip)
    _put(shown, "callerIp", draft.caller_ip)
    _put(shown, "retryDelayExpression", draft.retry.delay)
    _put_labels(shown, draft.labels)
    _put_flow(shown, draft.flow)
    _put(shown, "signature", draft.signed_by and draft.signed_by.value)
    _put(shown, "lastScheduleTime", schedule.last_fired_at)
    _put(shown, "nextScheduleTime", schedule.next_at)
    _put(
        shown,
        "lastScheduleStates",
        {message_id_text(id): _RUN_STATES[succeeded] for id, succeeded in view.last_states.items()},
    )
    _put(shown, "error", schedule.error and readable(schedule.error))
    return shown


def queue_json(queue: Gate) -> Json:
    """Every member, always."""
    return {
        "name": queue.name,
        "createdAt": queue.created_at,
        "updatedAt": queue.updated_at,
        "parallelism": queue.parallelism,
        "lag": queue.members,
        "paused": queue.paused,
    }


def flow_key_json(key: FlowKey, *, now: int) -> Json:
    """Every member, always: here 0 says that a limit is not set. Periods and their starts are in seconds."""
    gate = key.gate
    return {
        "flowControlKey": gate.name,
        "waitListSize": key.waiting,
        "parallelismMax": gate.parallelism or 0,
        "parallelismCount": gate.held,
        "rateMax": gate.rate or 0,
        "rateCount": window_count(gate, now),
        "ratePeriod": 0 if gate.rate is None else gate.period_ms // 1000,
        "ratePeriodStart": (gate.window_at or 0) // 1000,
        "isPaused": gate.paused,
        "isPinnedParallelism": gate.parallelism_pinned,
        "isPinnedRate": gate.rate_pinned,
    }


# --- log entries


def _numbered_entries(event: Event, order: Order, states: Collection[State]) -> Iterable[tuple[int, Json]]:
    """Entries with their index in page order, which no filter changes. What they share is made once."""
    in_order = event.change.states if order is Order.EARLIEST_FIRST else event.change.states[::-1]
    shared: Json | None = None
    for index, state in enumerate(in_order):
        if states and state not in states:
            continue
        shared = _event_json(event) if shared is None else shared
        yield index, _entry(event, state, shared)


def _entry(event: Event, state: State, shared: Json) -> Json:
    entry = {"time": event.at, "state": state.value, **shared}
    if state is State.ERROR:
        _put(entry, "error", _error_of(event))
        _put(entry, "responseStatus", event.status)
        headers = _headers(event.response_headers, _NO_REDACTION)
        # The documentation has the plural, the Python SDK reads the singular.
        _put(entry, "responseHeaders", headers)
        _put(entry, "responseHeader", headers)
        _put(entry, "responseBody", _base64(event.response_body))
    elif state is State.RETRY:
        _put(entry, "nextDeliveryTime", event.next_at)
    elif state is State.CREATED and event.message.not_before > event.message.created_at:
        entry["nextDeliveryTime"] = event.message.not_before
    return entry


def _error_of(event: Event) -> str | None:
    if event.error is not None:
        return readable(event.error)
    return None if event.status is None else f"the destination answered with status {event.status}"


def _event_json(event: Event) -> Json:
    """What every entry of a row says about its message."""
    message = event.message
    redaction = message.redaction or _NO_REDACTION
    request = message.request
    shown: Json = {
        "messageId": message_id_text(message.id),
        "url": request.url,
        "method": request.method,
        "maxRetries": message.retry.max_retries,
    }
    _put(shown, "header", _headers(request.headers, redaction))
    if request.body:
        shown["body"] = _redacted(request.body) if redaction.body else _base64(request.body)
    _put(shown, "timeout", request.timeout_ms)
    _put_origin(shown, message.origin)
    # The documentation has the long name, the Python SDK reads the short one.
    _put(shown, "retryDelayExpression", message.retry.delay)
    _put(shown, "retryDelayExpr", message.retry.delay)
    _put_callback(shown, "callback", "callbackHeaders", message.callback, redaction)
    _put_callback(shown, "failureCallback", "failureCallbackHeaders", message.failure_callback, redaction)
    _put_labels(shown, message.labels)
    _put_flow(shown, message.flow)
    return shown


# --- parts


def _put(shown: Json, key: str, value: object) -> None:
    """Set the key unless the value says nothing."""
    if value:
        shown[key] = value


def _endpoint_json(endpoint: Endpoint) -> Json:
    shown: Json = {"url": endpoint.url}
    _put(shown, "name", endpoint.name)
    return shown


def _put_origin(shown: Json, origin: Origin) -> None:
    _put(shown, "topicName", origin.url_group)
    _put(shown, "endpointName", origin.endpoint)
    _put(shown, "queueName", origin.queue)
    _put(shown, "scheduleId", origin.schedule_id)


def _put_body(shown: Json, body: bytes, redaction: Redaction) -> None:
    if not body:
        return
    if redaction.body:
        shown["body"] = _redacted(body)
        return
    text = _utf8(body)
    if text is None:
        shown["bodyBase64"] = _base64(body)
    else:
        shown["body"] = text


def _put_callback(
    shown: Json, key: str, headers_key: str, callback: Callback | None, redaction: Redaction
) -> None:
    if callback is not None:
        shown[key] = callback.url
        _put(shown, headers_key, _headers(callback.headers, redaction))


def _put_labels(shown: Json, labels: Sequence[str]) -> None:
    if labels:
        shown["label"] = labels[0]
        shown["labels"] = list(labels)


def _put_flow(shown: Json, flow: FlowControl | None) -> None:
    """A period goes with every key, the limits only where they were given."""
    if flow is not None:
        shown["flowControlKey"] = flow.key
        _put(shown, "parallelism", flow.parallelism)
        _put(shown, "rate", flow.rate)
        shown["period"] = flow.period_ms // 1000


def _headers(headers: Headers, redaction: Redaction) -> dict[str, list[str]]:
    """As they may be shown."""
    if redaction.headers or redaction.header_names:
        headers = tuple(
            (name, _redacted(value.encode(errors="surrogateescape")))
            if redaction.headers or name.lower() in redaction.header_names
            else (name, value)
            for name, value in headers
        )
    return values_by_name(headers)


def _redacted(value: bytes) -> str:
    return f"REDACTED:{sha256(value).hexdigest()}"


def _utf8(value: bytes) -> str | None:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return None


def _base64(value: bytes) -> str:
    return b64encode(value).decode()
