"""Request headers: what a publisher asks for, read into a draft, a schedule or the change of a redrive.

Every header is one line of `_SETTINGS`, or one branch of `_meaning`. A header is read, refused by its name, or
named in the documentation as one that does not count (`Upstash-*` names nobody knows, telemetry among them):
nothing that was asked for is passed over in silence.

A callback is a message itself, configured as `Upstash-Callback-X` where a publish has `Upstash-X`. So its headers
are collected, shortened by that prefix, and read by the same table.
"""

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from enum import Enum
from functools import lru_cache
from typing import TypeVar

from msgspec import Struct
from msgspec.structs import replace

from relay.domain.cron import Cron
from relay.domain.duration import parse_duration
from relay.domain.errors import Invalid, OverLimit, TooLarge, quoted
from relay.domain.expression import RetryDelay
from relay.domain.message import (
    METHODS,
    Callback,
    FlowControl,
    Headers,
    Message,
    Redaction,
    Request,
    RetryPolicy,
)
from relay.domain.publish import Draft
from relay.domain.schedule import CatchUp, Overlap
from relay.domain.tenant import Limits
from relay.wire.target import MAX_NAME_LENGTH, parse_url

#: What this version has no delivery for; its headers are refused. Take a word out when it is delivered.
NOT_OFFERED = frozenset({"callbacks", "flow control", "queues", "workflows"})

#: Characters of all header fields that go out with a message: common servers refuse more.
MAX_FORWARDED_LENGTH = 64 << 10
MAX_FLOW_PERIOD_MS = 7 * 86_400_000
MAX_FLOW_KEY_LENGTH = 1024

_MAX_FIELD_NAME_LENGTH = 256
_MAX_FLOW_LIMIT = (1 << 31) - 1
_FIELD_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_NAME = re.compile(rf"[A-Za-z0-9._-]{{1,{MAX_NAME_LENGTH}}}")
#: Control characters no field value may hold; a tab may stand inside.
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_UNIX_SECONDS = re.compile(r"([0-9]{1,18})(?:\.([0-9]{1,18}))?")
_REDACTED_HEADER = re.compile(r"headers?\[([^\[\]]*)\]", re.IGNORECASE)

#: Fields that frame or route the request they came with, and the signature of whoever sent it: they would be
#: false on any other request. Nor is it for the publisher to say which encodings the relay can read.
_NEVER_FORWARDED = frozenset(
    {
        "accept-encoding",
        "connection",
        "content-length",
        "expect",
        "host",
        "http2-settings",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "upstash-signature",
    }
)

Fields = Iterable[tuple[str, str]]
_Choice = TypeVar("_Choice", bound=Enum)


class ScheduleRequest(Struct, frozen=True, kw_only=True):
    """A parsed request to create or replace a schedule; without an id the schedule gets one of its own."""

    cron: Cron
    schedule_id: str | None
    catch_up: CatchUp
    overlap: Overlap
    draft: Draft


def parse_draft(
    headers: Fields,
    *,
    url: str,
    body: bytes,
    caller_ip: str | None,
    now: int,
    limits: Limits,
    config: Sequence[tuple[str, str]] = (),
    authorization_is_ours: bool = True,
    not_offered: Collection[str] = NOT_OFFERED,
) -> Draft:
    """What a publish asks for. `config` is the query's share of the settings; a header of the same name wins.

    `authorization_is_ours` says that the Authorization field holds the relay's own token, which no destination
    may see. Raises `Invalid` or `OverLimit` naming the header, `TooLarge` for the body.
    """
    context = _Context(limits=limits, now=now, not_offered=not_offered)
    given = _collect(_merged(headers, config), context, "")
    terms = _read(given, _Door.PUBLISH, context, "")
    return _draft(given, terms, context, url, body, caller_ip, authorization_is_ours)


def parse_schedule(
    headers: Fields,
    *,
    url: str,
    body: bytes,
    caller_ip: str | None,
    now: int,
    limits: Limits,
    config: Sequence[tuple[str, str]] = (),
    authorization_is_ours: bool = True,
    not_offered: Collection[str] = NOT_OFFERED,
) -> ScheduleRequest:
    """What a request to create a schedule asks for; arguments and errors as with `parse_draft`."""
    context = _Context(limits=limits, now=now, not_offered=not_offered)
    given = _collect(_merged(headers, config), context, "")
    terms = _read(given, _Door.SCHEDULE, context, "")
    if terms.cron is None:
        raise Invalid("Upstash-Cron", "is required for a schedule")
    return ScheduleRequest(
        cron=terms.cron,
        schedule_id=terms.schedule_id,
        catch_up=terms.catch_up,
        overlap=terms.overlap,
        draft=_draft(given, terms, context, url, body, caller_ip, authorization_is_ours),
    )


def parse_override(
    headers: Fields,
    *,
    now: int,
    limits: Limits,
    config: Sequence[tuple[str, str]] = (),
    not_offered: Collection[str] = NOT_OFFERED,
) -> Callable[[Message], Message]:
    """What a request to send dead letters again changes about each of their messages.

    The plain Content-Type of that request describes its own body and changes nothing; a forwarded one does.
    A delay counts from `now`. Raises `Invalid` or `OverLimit`.
    """
    context = _Context(limits=limits, now=now, not_offered=not_offered)
    given = _collect(_merged(headers, config), context, "")
    terms = _read(given, _Door.RETRY, context, "")
    _require_small(given.forwarded.items())
    forwarded = given.forwarded
    flow = _flow(terms, "")
    callback = _callback(terms.callback, given.callback, "Upstash-Callback", context)
    failure_callback = _callback(
        terms.failure_callback, given.failure_callback, "Upstash-Failure-Callback", context
    )

    def override(message: Message) -> Message:
        request, retry = message.request, message.retry
        return replace(
            message,
            request=replace(
                request,
                method=terms.method or request.method,
                headers=_overridden(request.headers, forwarded),
                timeout_ms=request.timeout_ms if terms.timeout_ms is None else terms.timeout_ms,
            ),
            retry=RetryPolicy(
                max_retries=retry.max_retries if terms.max_retries is None else terms.max_retries,
                delay=terms.retry_delay or retry.delay,
            ),
            not_before=_due_at(terms, now) or message.not_before,
            labels=message.labels if terms.labels is None else terms.labels,
            flow=flow or message.flow,
            callback=callback or message.callback,
            failure_callback=failure_callback or message.failure_callback,
            redaction=terms.redaction or message.redaction,
        )

    return override


@lru_cache(maxsize=1024)
def canonical(name: str) -> str:
    """A field name as the API shows it: the first letter and those after a hyphen in upper case, the rest lower.

    >>> canonical("x-api-KEY")
    'X-Api-Key'
    """
    return "-".join([part.capitalize() for part in name.split("-")])


# --- which header means what


class _Door(Enum):
    """Where settings come in; the value completes "cannot be used with"."""

    PUBLISH = "a publish"
    SCHEDULE = "a schedule"
    RETRY = "a retry of dead letters"
    CALLBACK = "a callback"


class _Context(Struct, frozen=True, kw_only=True):
    limits: Limits
    now: int
    not_offered: Collection[str]


class _Terms(Struct):
    """What the settings said; None, or the default, where they said nothing."""

    method: str | None = None
    timeout_ms: int | None = None
    max_retries: int | None = None
    retry_delay: str | None = None
    delay_ms: int | None = None
    not_before: int | None = None
    labels: tuple[str, ...] | None = None
    redaction: Redaction | None = None
    deduplication_id: str | None = None
    content_based_deduplication: bool = False
    forwards_all: bool = False
    flow_key: str | None = None
    flow_limits: FlowControl | None = None
    queue: str | None = None
    callback: str | None = None
    failure_callback: str | None = None
    cron: Cron | None = None
    schedule_id: str | None = None
    catch_up: CatchUp = CatchUp.LAST
    overlap: Overlap = Overlap.ALLOW


class _AboveLimitError(ValueError):
    """Becomes `OverLimit` where any other ValueError becomes `Invalid`."""


def _method(terms: _Terms, value: str, _: _Context) -> None:
    terms.method = value.upper()
    if terms.method not in METHODS:
        raise ValueError(f"{quoted(value)} is not GET, POST, PUT, PATCH or DELETE")


def _timeout(terms: _Terms, value: str, context: _Context) -> None:
    terms.timeout_ms = parse_duration(value)
    if terms.timeout_ms == 0:
        raise ValueError("must be longer than nothing")
    if terms.timeout_ms > context.limits.max_timeout_ms:
        raise _AboveLimitError(
            f"{quoted(value)} is above the maximum of {context.limits.max_timeout_ms // 1000}s"
        )


def _retries(terms: _Terms, value: str, context: _Context) -> None:
    if not (value.isascii() and value.isdigit()):
        raise ValueError(f"{quoted(value)} is not a whole number of retries, 0 or more")
    # More than 18 digits are over any limit, and cost time to read.
    terms.max_retries = int(value[:18])
    if terms.max_retries > context.limits.max_retries or len(value) > 18:
        raise _AboveLimitError(
            f"{quoted(value)} is above the maximum of {context.limits.max_retries} retries"
        )


def _retry_delay(terms: _Terms, value: str, _: _Context) -> None:
    terms.retry_delay = RetryDelay(value).text


def _delay(terms: _Terms, value: str, context: _Context) -> None:
    terms.delay_ms = parse_duration(value)
    if terms.delay_ms > context.limits.max_delay_ms:
        raise _AboveLimitError(
            f"{quoted(value)} is above the maximum of {context.limits.max_delay_ms // 1000}s"
        )


def _not_before(terms: _Terms, value: str, context: _Context) -> None:
    match = _UNIX_SECONDS.fullmatch(value)
    if match is None:
        raise ValueError(f"{quoted(value)} is not a Unix time in seconds")
    seconds, fraction = match.groups(default="")
    terms.not_before = int(seconds) * 1000 + int((fraction + "000")[:3])
    if terms.not_before - context.now > context.limits.max_delay_ms:
        raise _AboveLimitError(
            f"{quoted(value)} is more than the maximum of {context.limits.max_delay_ms // 1000}s from now"
        )


def _deduplication_id(terms: _Terms, value: str, _: _Context) -> None:
    if not value:
        raise ValueError("must not be empty")
    terms.deduplication_id = value


def _content_based_deduplication(terms: _Terms, value: str, _: _Context) -> None:
    terms.content_based_deduplication = _boolean(value)


def _label(terms: _Terms, value: str, context: _Context) -> None:
    labels = tuple(dict.fromkeys(label for part in value.split(",") if (label := part.strip())))
    if len(labels) > context.limits.max_labels:
        raise _AboveLimitError(f"has {len(labels)} labels, above the maximum of {context.limits.max_labels}")
    for label in labels:
        if len(label) > context.limits.max_label_length:
            raise _AboveLimitError(
                f"{quoted(label)} is longer than the maximum of {context.limits.max_label_length} characters"
            )
    terms.labels = labels


def _redact_fields(terms: _Terms, value: str, _: _Context) -> None:
    body = headers = False
    names: list[str] = []
    for member in filter(None, (part.strip() for part in value.split(","))):
        if member.lower() == "body":
            body = True
        elif member.lower() in ("header", "headers"):
            headers = True
        elif match := _REDACTED_HEADER.fullmatch(member):
            name = match[1].strip().lower()
            if _FIELD_NAME.fullmatch(name) is None:
                raise ValueError(f"{quoted(member)} does not name a header")
            names.append(name)
        else:
            raise ValueError(f"{quoted(member)} is not body, header or header[Name]")
    terms.redaction = Redaction(body=body, headers=headers, header_names=tuple(dict.fromkeys(names)))


def _header_forward(terms: _Terms, value: str, _: _Context) -> None:
    terms.forwards_all = _boolean(value)


def _flow_control_key(terms: _Terms, value: str, _: _Context) -> None:
    if not 1 <= len(value) <= MAX_FLOW_KEY_LENGTH:
        raise ValueError(f"must have 1 to {MAX_FLOW_KEY_LENGTH} characters")
    terms.flow_key = value


def _flow_control_value(terms: _Terms, value: str, _: _Context) -> None:
    members: dict[str, str] = {}
    for member in value.split(","):
        name, equals, amount = (part.strip() for part in member.partition("="))
        if name not in ("parallelism", "rate", "period") or not equals:
            raise ValueError(
                f"{quoted(member.strip())} is not parallelism=<n>, rate=<n> or period=<duration>"
            )
        if name in members:
            raise ValueError(f"names {name} twice")
        members[name] = amount
    if "parallelism" not in members and "rate" not in members:
        raise ValueError("needs parallelism or rate")
    period_ms = parse_duration(members.get("period", "1s"))
    if period_ms == 0:
        raise ValueError("has a period of nothing")
    if period_ms > MAX_FLOW_PERIOD_MS:
        raise _AboveLimitError("has a period above the maximum of one week")
    terms.flow_limits = FlowControl(
        key="",
        parallelism=_flow_limit(members, "parallelism"),
        rate=_flow_limit(members, "rate"),
        period_ms=period_ms,
    )


def _flow_limit(members: dict[str, str], name: str) -> int | None:
    text = members.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and 1 <= int(text) <= _MAX_FLOW_LIMIT):
        raise ValueError(f"has a {name}, {quoted(text)}, that is not a number from 1 to {_MAX_FLOW_LIMIT}")
    return int(text)


def _queue_name(terms: _Terms, value: str, _: _Context) -> None:
    terms.queue = _name(value)


def _callback_url(terms: _Terms, value: str, _: _Context) -> None:
    terms.callback = value


def _failure_callback_url(terms: _Terms, value: str, _: _Context) -> None:
    terms.failure_callback = value


def _cron(terms: _Terms, value: str, _: _Context) -> None:
    terms.cron = Cron.parse(value)


def _schedule_id(terms: _Terms, value: str, _: _Context) -> None:
    terms.schedule_id = _name(value)


def _catch_up(terms: _Terms, value: str, _: _Context) -> None:
    terms.catch_up = _one_of(CatchUp, value)


def _overlap(terms: _Terms, value: str, _: _Context) -> None:
    terms.overlap = _one_of(Overlap, value)


_Read = Callable[[_Terms, str, _Context], None]
_ANYWHERE = frozenset(_Door)
_ON_MESSAGES = _ANYWHERE - {_Door.CALLBACK}
_ON_NEW_MESSAGES = _ON_MESSAGES - {_Door.RETRY}


class _Setting(Struct, frozen=True):
    """A header with a value of its own: `read` raises ValueError with the problem; `feature` may not be offered."""

    name: str
    read: _Read
    doors: Collection[_Door]
    feature: str | None = None


_SETTINGS = (
    _Setting("Upstash-Method", _method, _ANYWHERE),
    _Setting("Upstash-Timeout", _timeout, _ANYWHERE),
    _Setting("Upstash-Retries", _retries, _ANYWHERE),
    _Setting("Upstash-Retry-Delay", _retry_delay, _ANYWHERE),
    # The QStash changelog of March 2025: a message with a delayed callback is refused.
    _Setting("Upstash-Delay", _delay, _ON_MESSAGES),
    _Setting("Upstash-Not-Before", _not_before, {_Door.PUBLISH, _Door.RETRY}),
    _Setting("Upstash-Deduplication-Id", _deduplication_id, {_Door.PUBLISH}),
    _Setting("Upstash-Content-Based-Deduplication", _content_based_deduplication, {_Door.PUBLISH}),
    _Setting("Upstash-Label", _label, _ON_MESSAGES),
    _Setting("Upstash-Redact-Fields", _redact_fields, _ON_MESSAGES),
    _Setting("Upstash-Header-Forward", _header_forward, _ON_NEW_MESSAGES),
    _Setting("Upstash-Flow-Control-Key", _flow_control_key, _ANYWHERE, "flow control"),
    _Setting("Upstash-Flow-Control-Value", _flow_control_value, _ANYWHERE, "flow control"),
    _Setting("Upstash-Callback", _callback_url, _ANYWHERE, "callbacks"),
    _Setting("Upstash-Failure-Callback", _failure_callback_url, _ANYWHERE, "callbacks"),
    _Setting("Upstash-Queue-Name", _queue_name, {_Door.SCHEDULE}, "queues"),
    _Setting("Upstash-Cron", _cron, {_Door.SCHEDULE}),
    _Setting("Upstash-Schedule-Id", _schedule_id, {_Door.SCHEDULE}),
    _Setting("Relay-Schedule-Catch-Up", _catch_up, {_Door.SCHEDULE}),
    _Setting("Relay-Schedule-Overlap", _overlap, {_Door.SCHEDULE}),
)
_BY_KEY = {setting.name.lower(): setting for setting in _SETTINGS}
_READERS: dict[_Door, dict[str, _Read]] = {
    door: {setting.name.lower(): setting.read for setting in _SETTINGS if door in setting.doors}
    for door in _Door
}

# What a header is to us. Plain numbers: these are compared for every header of every publish.
_IGNORED, _PLAIN, _CONTENT_TYPE, _SETTING, _FORWARD, _CALLBACK, _FAILURE_CALLBACK = range(7)


def _meaning_of(name: str) -> tuple[int, str, str | None]:
    """What a field name means, the name it is kept under, and the feature it belongs to.

    Kept under: settings in lower case, forwarded fields canonical, and a callback's settings with the callback's
    prefix replaced by `upstash-`. ValueError for what cannot be a field name and for unknown `Relay-*` names.
    """
    if _FIELD_NAME.fullmatch(name) is None:
        raise ValueError("is not the name of a header")
    key = name.lower()
    if key in _BY_KEY:
        return _SETTING, key, _BY_KEY[key].feature
    if key.startswith("relay-"):
        raise ValueError("is not a header the relay knows")
    if key.startswith("upstash-"):
        return _meaning_of_upstash(key)
    if key == "content-type":
        return _CONTENT_TYPE, "Content-Type", None
    return _IGNORED if key in _NEVER_FORWARDED else _PLAIN, canonical(key), None


def _meaning_of_upstash(key: str) -> tuple[int, str, str | None]:
    if key.startswith("upstash-forward-"):
        forwarded = key.removeprefix("upstash-forward-")
        if not forwarded:
            raise ValueError("does not say which header to forward")
        return _IGNORED if forwarded in _NEVER_FORWARDED else _FORWARD, canonical(forwarded), None
    if key.startswith("upstash-failure-callback-"):
        return _FAILURE_CALLBACK, "upstash-" + key.removeprefix("upstash-failure-callback-"), "callbacks"
    if key.startswith("upstash-callback-"):
        return _CALLBACK, "upstash-" + key.removeprefix("upstash-callback-"), "callbacks"
    if key.startswith("upstash-workflow-") or key == "upstash-feature-set":
        return _IGNORED, key, "workflows"
    return _IGNORED, key, None


_meaning = lru_cache(maxsize=2048)(_meaning_of)


# --- reading


class _Given(Struct):
    """Headers sorted by what they are to us; repeated ones combined."""

    settings: dict[str, str] = {}
    forwarded: dict[str, str] = {}
    plain: list[tuple[str, str]] = []
    callback: list[tuple[str, str]] = []
    failure_callback: list[tuple[str, str]] = []
    content_type: str | None = None
    #: Values of Connection: it names further fields that stay with this connection.
    connection: list[str] = []


def _merged(headers: Fields, config: Sequence[tuple[str, str]]) -> Fields:
    """Headers, and those of the query's settings that no header contradicts."""
    if not config:
        return headers
    headers = list(headers)
    names = {name.lower() for name, _ in headers}
    return headers + [(name, value) for name, value in config if name.lower() not in names]


def _collect(headers: Fields, context: _Context, prefix: str) -> _Given:
    """`prefix` stood where the names begin with `Upstash`; it is put back where a problem is named."""
    given = _Given()
    settings, forwarded, plain = given.settings, given.forwarded, given.plain
    for name, value in headers:
        try:
            if len(name) > _MAX_FIELD_NAME_LENGTH:
                raise ValueError(f"is longer than {_MAX_FIELD_NAME_LENGTH} characters")
            kind, key, feature = _meaning(name)
            if feature is not None and feature in context.not_offered:
                raise ValueError("is not offered by this version")
        except ValueError as problem:
            raise Invalid(_field(prefix, name), str(problem)) from None
        if kind == _PLAIN:
            plain.append((key, value))
        elif kind == _SETTING:
            settings[key] = f"{settings[key]}, {value}" if key in settings else value
        elif kind == _FORWARD:
            value = _sendable(value, prefix, name)
            forwarded[key] = f"{forwarded[key]}, {value}" if key in forwarded else value
        elif kind == _CONTENT_TYPE:
            value = _sendable(value, prefix, name)
            given.content_type = f"{given.content_type}, {value}" if given.content_type else value
        elif kind == _CALLBACK:
            given.callback.append((key, value))
        elif kind == _FAILURE_CALLBACK:
            given.failure_callback.append((key, value))
        elif key == "Connection":
            given.connection.append(value)
    return given


def _read(given: _Given, door: _Door, context: _Context, prefix: str) -> _Terms:
    terms = _Terms()
    readers = _READERS[door]
    for key, value in given.settings.items():
        try:
            read = readers.get(key)
            if read is None:
                raise ValueError(f"cannot be used with {door.value}")
            read(terms, _text(value), context)
        except _AboveLimitError as problem:
            raise OverLimit(_field(prefix, key), str(problem)) from None
        except ValueError as problem:
            raise Invalid(_field(prefix, key), str(problem)) from None
    return terms


def _draft(
    given: _Given,
    terms: _Terms,
    context: _Context,
    url: str,
    body: bytes,
    caller_ip: str | None,
    authorization_is_ours: bool,
) -> Draft:
    if len(body) > context.limits.max_message_bytes:
        raise TooLarge("the message body", context.limits.max_message_bytes)
    max_retries = terms.max_retries
    return Draft(
        request=Request(
            url=url,
            method=terms.method or "POST",
            headers=_headers(given, terms, authorization_is_ours),
            body=body,
            timeout_ms=terms.timeout_ms,
        ),
        retry=(
            RetryPolicy(delay=terms.retry_delay)
            if max_retries is None
            else RetryPolicy(max_retries=max_retries, delay=terms.retry_delay)
        ),
        delay_ms=terms.delay_ms,
        not_before=terms.not_before,
        caller_ip=caller_ip,
        labels=terms.labels or (),
        flow=_flow(terms, ""),
        queue=terms.queue,
        callback=_callback(terms.callback, given.callback, "Upstash-Callback", context),
        failure_callback=_callback(
            terms.failure_callback, given.failure_callback, "Upstash-Failure-Callback", context
        ),
        redaction=terms.redaction,
        deduplication_id=terms.deduplication_id,
        content_based_deduplication=terms.content_based_deduplication,
    )


def _headers(given: _Given, terms: _Terms, authorization_is_ours: bool) -> Headers:
    """What goes out with the message: the content type first, the rest in the order it was given."""
    fields = given.forwarded
    if given.content_type:
        fields = {"Content-Type": given.content_type} | fields
        fields["Content-Type"] = given.content_type
    if terms.forwards_all:
        fields = _all_forwarded(given, authorization_is_ours) | fields
    if fields:
        _require_small(fields.items())
    return tuple(fields.items())


def _all_forwarded(given: _Given, authorization_is_ours: bool) -> dict[str, str]:
    """The request's own headers, as far as they are not about this very request."""
    kept_back = {canonical(name.strip().lower()) for value in given.connection for name in value.split(",")}
    if authorization_is_ours:
        kept_back.add("Authorization")
    fields: dict[str, str] = {}
    for name, value in given.plain:
        if name not in kept_back:
            value = _sendable(value, "", name)
            fields[name] = f"{fields[name]}, {value}" if name in fields else value
    return fields


def _require_small(fields: Fields) -> None:
    if sum(len(name) + len(value) for name, value in fields) > MAX_FORWARDED_LENGTH:
        raise Invalid("Upstash-Forward", f"headers have more than {MAX_FORWARDED_LENGTH} characters in all")


def _overridden(headers: Headers, forwarded: dict[str, str]) -> Headers:
    kept = tuple(pair for pair in headers if canonical(pair[0]) not in forwarded)
    return kept + tuple(forwarded.items())


def _due_at(terms: _Terms, now: int) -> int | None:
    if terms.not_before is not None:
        return terms.not_before
    return None if terms.delay_ms is None else now + terms.delay_ms


def _flow(terms: _Terms, prefix: str) -> FlowControl | None:
    key, limits = terms.flow_key, terms.flow_limits
    if key is None and limits is None:
        return None
    key_field, limits_field = (
        _field(prefix, "upstash-flow-control-key"),
        _field(prefix, "upstash-flow-control-value"),
    )
    if limits is None:
        raise Invalid(key_field, f"needs {limits_field}")
    if key is None:
        raise Invalid(limits_field, f"needs {key_field}")
    return replace(limits, key=key)


def _callback(
    url: str | None, settings: Sequence[tuple[str, str]], prefix: str, context: _Context
) -> Callback | None:
    """The callback that `settings`, named as if for a publish, configure. `prefix` is its own header's name."""
    if url is None:
        if settings:
            raise Invalid(_field(prefix, settings[0][0]), f"needs {prefix}, the URL")
        return None
    given = _collect(settings, context, prefix)
    terms = _read(given, _Door.CALLBACK, context, prefix)
    _require_small(given.forwarded.items())
    return Callback(
        url=parse_url(url, prefix),
        method=terms.method or "POST",
        headers=tuple(given.forwarded.items()),
        timeout_ms=terms.timeout_ms,
        max_retries=terms.max_retries,
        retry_delay=terms.retry_delay,
        flow=_flow(terms, prefix),
        callback=_callback(terms.callback, given.callback, f"{prefix}-Callback", context),
        failure_callback=_callback(
            terms.failure_callback, given.failure_callback, f"{prefix}-Failure-Callback", context
        ),
    )


def _field(prefix: str, name: str) -> str:
    """A header as its sender spells it, for an error."""
    if _FIELD_NAME.fullmatch(name) is None:
        return f"header {quoted(name)}"
    shown = canonical(name.lower()) if len(name) <= _MAX_FIELD_NAME_LENGTH else quoted(name)
    return prefix + shown.removeprefix("Upstash") if prefix else shown


def _text(value: str) -> str:
    """A setting's value without surrounding blanks; ValueError when it is not a line of Unicode text."""
    value = value.strip(" \t")
    if not (value.isascii() and value.isprintable()):
        if _CONTROL.search(value):
            raise ValueError("has a control character")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError("is not valid UTF-8") from None
    return value


def _sendable(value: str, prefix: str, name: str) -> str:
    """A field value that can go out again. Bytes that are not UTF-8 are carried along as they came."""
    value = value.strip(" \t")
    if not (value.isascii() and value.isprintable()):
        if _CONTROL.search(value):
            raise Invalid(_field(prefix, name), "has a control character")
        try:
            value.encode(errors="surrogateescape")
        except UnicodeEncodeError:
            raise Invalid(_field(prefix, name), "is not valid UTF-8") from None
    return value


def _boolean(value: str) -> bool:
    lowered = value.lower()
    if lowered not in ("true", "false"):
        raise ValueError(f"{quoted(value)} is neither true nor false")
    return lowered == "true"


def _name(value: str) -> str:
    if _NAME.fullmatch(value) is None:
        raise ValueError(
            f"{quoted(value)} must be 1 to {MAX_NAME_LENGTH} of the characters A-Z a-z 0-9 . _ -"
        )
    return value


def _one_of(choices: type[_Choice], value: str) -> _Choice:
    for choice in choices:
        if choice.value == value.lower():
            return choice
    raise ValueError(f"{quoted(value)} is not one of {', '.join(str(choice.value) for choice in choices)}")
