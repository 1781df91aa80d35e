"""Rows and domain values, each made of the other; the only place that knows the order of columns.

Structured columns are JSON text. Header values may hold lone surrogates (bytes a peer sent that were not UTF-8):
JSON escapes carry them through text columns that would refuse them.
"""

import json
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from relay.domain.dead_letter import DeadLetter, DeadLetterId
from relay.domain.delivery import FINAL, Attempt, Change
from relay.domain.event import Event
from relay.domain.gates import Gate, GateId, GateKind
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
    SignedBy,
    TenantId,
)
from relay.domain.place import place_of
from relay.domain.publish import Draft
from relay.domain.schedule import CatchUp, Overlap, Run, RunOutcome, Schedule
from relay.domain.tenant import Principal, Tenant, TenantLimits, Token
from relay.domain.url_group import Endpoint, UrlGroup

#: One row as a driver returns it, or as it is bound.
Row = Sequence[Any]
T = TypeVar("T")

#: `deliveries.state`; the numbers are stored.
CREATED, ACTIVE, RETRY = 1, 2, 3

#: Changes after which nothing follows.
FINAL_CHANGES = frozenset(change for change in Change if not FINAL.isdisjoint(change.states))

#: What every message has, then what most do without.
MESSAGE_COMMON = "id, tenant, created_at, not_before, url, method, headers, max_retries, body, host, path"
MESSAGE_RARE = (
    "caller_ip, retry_delay, timeout_ms, url_group, endpoint, schedule_id, queue, labels, terms, dedup_key, "
    "flow_key"
)
#: The columns a message is read from: the others only serve filters.
MESSAGE_READ = ", ".join(
    f"m.{name}" for name in (*MESSAGE_COMMON.split(", ")[:9], *MESSAGE_RARE.split(", ")[:10])
)

EVENT_COLUMNS = (
    "tenant, position, at, change, message_id, retried, next_at, duration_ms, status, error, response_headers, "
    "response_body"
)
DEAD_LETTER_COLUMNS = (
    "tenant, id, message_id, failed_at, retried, started_at, ended_at, status, error, response_headers, "
    "response_body"
)
GATE_COLUMNS = (
    "id, tenant, kind, name, created_at, updated_at, used_at, parallelism, rate, period_ms, paused, "
    "parallelism_pinned, rate_pinned, held, window_at, window_count, members, accepted"
)
SCHEDULE_COLUMNS = (
    "tenant, id, cron, draft, created_at, revision, catch_up, overlap, paused, next_at, last_fired_at, error"
)
URL_GROUP_COLUMNS = "tenant, name, created_at, updated_at, endpoints, headers"
TENANT_COLUMNS = "id, user_id, current_key, next_key, limits, disabled_at, signed_by"
TOKEN_COLUMNS = "hash, tenant, read_only, created_at, expires_at, label, issued"  # noqa: S105 - no password

_NO_HEADERS = "[]"


_log = logging.getLogger("relay.storage")


class _Terms(Struct, frozen=True, omit_defaults=True):
    """What most messages do without, in one column."""

    flow: FlowControl | None = None
    callback: Callback | None = None
    failure_callback: Callback | None = None
    redaction: Redaction | None = None
    source: int | None = None
    signed_by: SignedBy | None = None
    lane_of: int | None = None


_NO_TERMS = _Terms()

#: SQLite's drivers look for an adapter before they bind bytes, not before a bytearray: a short copy is cheaper.
_CHEAPLY_COPIED = 8192

_encoder = msgspec.json.Encoder()
_headers_decoder = msgspec.json.Decoder(Headers)
_labels_decoder = msgspec.json.Decoder(tuple[str, ...])
_terms_decoder = msgspec.json.Decoder(_Terms)
_draft_decoder = msgspec.json.Decoder(Draft)
_ids_decoder = msgspec.json.Decoder(tuple[int, ...])
_endpoints_decoder = msgspec.json.Decoder(tuple[Endpoint, ...])
_limits_decoder = msgspec.json.Decoder(TenantLimits)


def decoded(rows: Iterable[Row], decode: Callable[[Row], T]) -> Sequence[T]:
    """What the rows say. One that cannot be read is reported and left out, so that it spoils no list."""
    values = []
    for row in rows:
        try:
            values.append(decode(row))
        except Exception:
            _log.exception("a stored row cannot be read; it begins with %r", tuple(row[:2]))
    return values


def message_row(message: Message) -> Row:
    """In the order of MESSAGE_COMMON."""
    request = message.request
    body = request.body
    host, path = place_of(request.url)
    return (
        message.id,
        message.tenant,
        message.created_at,
        message.not_before,
        request.url,
        request.method,
        headers_text(request.headers),
        message.retry.max_retries,
        bytearray(body) if len(body) < _CHEAPLY_COPIED else body,
        host,
        path,
    )


def rare_row(message: Message) -> Row:
    """In the order of MESSAGE_RARE."""
    origin = message.origin
    flow = message.flow
    terms = None
    if (
        flow is not None
        or message.callback is not None
        or message.failure_callback is not None
        or message.redaction is not None
        or origin.source is not None
        or message.signed_by is not None
    ):
        terms = _encode(
            _Terms(
                flow=flow,
                callback=message.callback,
                failure_callback=message.failure_callback,
                redaction=message.redaction,
                source=origin.source,
                signed_by=message.signed_by,
                lane_of=message.lane_of,
            )
        )
    return (
        origin.caller_ip,
        message.retry.delay,
        message.request.timeout_ms,
        origin.url_group,
        origin.endpoint,
        origin.schedule_id,
        origin.queue,
        _encode(message.labels) if message.labels else None,
        terms,
        message.dedup_key,
        None if flow is None else flow.key,
    )


def message_of(row: Row) -> Message:
    """From the columns of MESSAGE_READ."""
    (
        id_,
        tenant,
        created_at,
        not_before,
        url,
        method,
        headers,
        max_retries,
        body,
        caller_ip,
        retry_delay,
        timeout_ms,
        url_group,
        endpoint,
        schedule_id,
        queue,
        labels,
        terms,
        dedup_key,
    ) = row
    rare = _NO_TERMS if terms is None else _decode(terms, _terms_decoder)
    return Message(
        id=id_,
        tenant=tenant,
        created_at=created_at,
        not_before=not_before,
        request=Request(
            url=url, method=method, headers=headers_of(headers), body=body, timeout_ms=timeout_ms
        ),
        retry=RetryPolicy(max_retries=max_retries, delay=retry_delay),
        origin=Origin(
            caller_ip=caller_ip,
            url_group=url_group,
            endpoint=endpoint,
            schedule_id=schedule_id,
            queue=queue,
            source=None if rare.source is None else MessageId(rare.source),
        ),
        labels=() if labels is None else _decode(labels, _labels_decoder),
        flow=rare.flow,
        callback=rare.callback,
        failure_callback=rare.failure_callback,
        redaction=rare.redaction,
        signed_by=rare.signed_by,
        dedup_key=dedup_key,
        lane_of=None if rare.lane_of is None else MessageId(rare.lane_of),
    )


def lane_of(terms: str | None) -> MessageId | None:
    """`Message.lane_of`, from the column that keeps it."""
    if terms is None or '"lane_of"' not in terms:
        return None
    held = _decode(terms, _terms_decoder).lane_of
    return None if held is None else MessageId(held)


def event_of(row: Row, message: Message) -> Event:
    """From the columns of EVENT_COLUMNS and the message they are about."""
    _, position, at, change, _, retried, next_at, duration_ms, status, error, headers, body = row
    return Event(
        position=position,
        at=at,
        change=Change(change),
        message=message,
        retried=retried,
        next_at=next_at,
        duration_ms=duration_ms,
        status=status,
        error=error,
        response_headers=() if headers is None else headers_of(headers),
        response_body=body or b"",
    )


def dead_letter_row(id_: int, message: Message, *, retried: int, attempt: Attempt) -> Row:
    """In the order of DEAD_LETTER_COLUMNS."""
    return (
        message.tenant,
        id_,
        message.id,
        attempt.ended_at,
        retried,
        attempt.started_at,
        attempt.ended_at,
        attempt.status,
        storable(attempt.error),
        headers_text(attempt.headers),
        attempt.body,
    )


def dead_letter_of(row: Row, message: Message) -> DeadLetter:
    """From the columns of DEAD_LETTER_COLUMNS and the message that died."""
    _, id_, _, failed_at, retried, started_at, ended_at, status, error, headers, body = row
    return DeadLetter(
        id=DeadLetterId(id_),
        failed_at=failed_at,
        message=message,
        attempt=Attempt(
            started_at=started_at,
            ended_at=ended_at,
            status=status,
            headers=headers_of(headers),
            body=body,
            error=error,
        ),
        retried=retried,
    )


def schedule_row(schedule: Schedule) -> Row:
    """In the order of SCHEDULE_COLUMNS."""
    return (
        schedule.tenant,
        schedule.id,
        schedule.cron,
        _encode(schedule.draft),
        schedule.created_at,
        schedule.revision,
        schedule.catch_up.value,
        schedule.overlap.value,
        int(schedule.paused),
        schedule.next_at,
        schedule.last_fired_at,
        storable(schedule.error),
    )


def schedule_of(row: Row) -> Schedule:
    """From the columns of SCHEDULE_COLUMNS."""
    (
        tenant,
        id_,
        cron,
        draft,
        created_at,
        revision,
        catch_up,
        overlap,
        paused,
        next_at,
        last_fired_at,
        error,
    ) = row
    return Schedule(
        tenant=TenantId(tenant),
        id=id_,
        cron=cron,
        draft=_decode(draft, _draft_decoder),
        created_at=created_at,
        revision=revision,
        catch_up=CatchUp(catch_up),
        overlap=Overlap(overlap),
        paused=bool(paused),
        next_at=next_at,
        last_fired_at=last_fired_at,
        error=error,
    )


def gate_row(gate: Gate) -> Row:
    """In the order of GATE_COLUMNS."""
    return (
        gate.id,
        gate.tenant,
        gate.kind.value,
        gate.name,
        gate.created_at,
        gate.updated_at,
        gate.used_at,
        gate.parallelism,
        gate.rate,
        gate.period_ms,
        int(gate.paused),
        int(gate.parallelism_pinned),
        int(gate.rate_pinned),
        gate.held,
        gate.window_at,
        gate.window_count,
        gate.members,
        gate.accepted,
    )


def gate_of(row: Row) -> Gate:
    """From the columns of GATE_COLUMNS."""
    (
        id_,
        tenant,
        kind,
        name,
        created_at,
        updated_at,
        used_at,
        parallelism,
        rate,
        period_ms,
        paused,
        parallelism_pinned,
        rate_pinned,
        held,
        window_at,
        window_count,
        members,
        accepted,
    ) = row
    return Gate(
        id=GateId(id_),
        tenant=TenantId(tenant),
        kind=GateKind(kind),
        name=name,
        created_at=created_at,
        updated_at=updated_at,
        used_at=used_at,
        parallelism=parallelism,
        rate=rate,
        period_ms=period_ms,
        paused=bool(paused),
        parallelism_pinned=bool(parallelism_pinned),
        rate_pinned=bool(rate_pinned),
        held=held,
        window_at=window_at,
        window_count=window_count,
        members=members,
        accepted=accepted,
    )


def run_row(schedule: Schedule, run: Run) -> Row:
    """tenant, schedule_id, tick_at, fired_at, outcome, message_ids."""
    return (
        schedule.tenant,
        schedule.id,
        run.tick_at,
        run.fired_at,
        run.outcome.name,
        _encode(run.message_ids),
    )


def run_of(row: Row) -> Run:
    """From tick_at, fired_at, outcome, message_ids."""
    tick_at, fired_at, outcome, message_ids = row
    return Run(
        tick_at=tick_at,
        fired_at=fired_at,
        outcome=RunOutcome[outcome],
        message_ids=ids_of(message_ids),
    )


def url_group_of(row: Row) -> UrlGroup:
    """From the columns of URL_GROUP_COLUMNS."""
    tenant, name, created_at, updated_at, endpoints, headers = row
    return UrlGroup(
        tenant=TenantId(tenant),
        name=name,
        created_at=created_at,
        updated_at=updated_at,
        endpoints=_decode(endpoints, _endpoints_decoder),
        headers=headers_of(headers),
    )


def endpoints_text(endpoints: Sequence[Endpoint]) -> str:
    """Endpoints as their JSON column."""
    return _encode(endpoints)


def ids_of(text: str) -> tuple[MessageId, ...]:
    """Message ids from their JSON column."""
    return tuple(MessageId(number) for number in _decode(text, _ids_decoder))


def labels_of(text: str) -> tuple[str, ...]:
    """Labels from their JSON column."""
    return _decode(text, _labels_decoder)


def tenant_of(row: Row) -> Tenant:
    """From TENANT_COLUMNS."""
    id_, user_id, current_key, next_key, limits, disabled_at, signed_by = row
    return Tenant(
        id=TenantId(id_),
        user_id=user_id,
        current_key=current_key,
        next_key=next_key,
        limits=limits_of(limits),
        disabled_at=disabled_at,
        signed_by=SignedBy(signed_by),
    )


def limits_text(limits: TenantLimits) -> str:
    """A tenant's limits as their JSON column."""
    return _encode(limits)


def limits_of(text: str | None) -> TenantLimits:
    """A tenant's limits from their JSON column; None stands for a tenant that has no row."""
    return _decode(text or "{}", _limits_decoder)


def principal_of(row: Row) -> Principal:
    """From tenant, read_only and expires_at of the token, limits and disabled_at of its tenant."""
    tenant, read_only, expires_at, limits, disabled_at = row
    return Principal(
        tenant=TenantId(tenant),
        read_only=bool(read_only),
        expires_at=expires_at,
        limits=limits_of(limits),
        disabled=disabled_at is not None,
    )


def token_of(row: Row) -> Token:
    """From TOKEN_COLUMNS."""
    hash_, tenant, read_only, created_at, expires_at, label, issued = row
    return Token(
        hash=hash_,
        tenant=TenantId(tenant),
        read_only=bool(read_only),
        created_at=created_at,
        expires_at=expires_at,
        label=label,
        issued=bool(issued),
    )


def token_row(token: Token) -> Row:
    """To TOKEN_COLUMNS."""
    return (
        token.hash,
        token.tenant,
        int(token.read_only),
        token.created_at,
        token.expires_at,
        token.label,
        int(token.issued),
    )


def headers_text(headers: Headers) -> str:
    """Headers as their JSON column."""
    return _encode(headers) if headers else _NO_HEADERS


def headers_of(text: str) -> Headers:
    """Headers from their JSON column."""
    return () if text == _NO_HEADERS else _decode(text, _headers_decoder)


def storable(text: str | None) -> str | None:
    """A sentence for people, made acceptable to a text column: what is not Unicode is shown as an escape."""
    if text is None or text.isascii():
        return text
    return text.encode("utf-8", "backslashreplace").decode()


def _encode(value: object) -> str:
    try:
        return _encoder.encode(value).decode()
    except UnicodeEncodeError:
        return json.dumps(msgspec.to_builtins(value), separators=(",", ":"))


def _decode(text: str, decoder: "msgspec.json.Decoder[T]") -> T:
    try:
        return decoder.decode(text)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        # A lone surrogate, which msgspec's own parser refuses.
        return msgspec.convert(json.loads(text), decoder.type)
