"""Request headers: what a publisher asks for, read into a draft, a schedule or the change of a redrive.

A header with a value of its own is a line of `SETTINGS`; the kinds of header that come with any name are the
branches of `_meaning_of`. What cannot be honoured is refused by its name. Only `Upstash-*` names that nobody knows,
telemetry among them, are passed over, as the QStash documentation says.

A callback is a message itself, configured as `Upstash-Callback-X` where a publish has `Upstash-X`. So its headers
are collected, shortened by that prefix, and read by the same table.
"""

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import lru_cache

from msgspec import Struct
from msgspec.structs import replace

from relay.domain.cron import Cron
from relay.domain.errors import Invalid, OverLimit, TooLarge, quoted
from relay.domain.fields import canonical
from relay.domain.message import Callback, FlowControl, Headers, Message, Request, RetryPolicy
from relay.domain.publish import Draft
from relay.domain.schedule import CatchUp, Overlap
from relay.domain.tenant import Limits
from relay.domain.url_group import UrlGroup
from relay.wire.settings import FIELD_NAME, READERS, SETTINGS, AboveLimitError, Context, Door, Terms
from relay.wire.target import Refusal, parse_url, refuse_address

#: What this version has no delivery for; its headers are refused. Take a word out when it is delivered.
NOT_OFFERED = frozenset({"workflows"})

#: Characters of all header fields that go out with a message: common servers refuse more.
MAX_FORWARDED_LENGTH = 64 << 10
_MAX_NAME_LENGTH = 256
#: Control characters no field value may hold; a tab may stand inside.
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")

#: Fields that frame or route the request they came with, and the signature of whoever sent it: they would be
#: false on any other request. Nor is it for the publisher to say which encodings the relay can read.
NEVER_FORWARDED = frozenset(
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
    to: str | UrlGroup,
    body: bytes,
    caller_ip: str | None,
    now: int,
    limits: Limits,
    refusal: Refusal,
    config: Sequence[tuple[str, str]] = (),
    authorization_is_ours: bool = True,
    not_offered: Collection[str] = NOT_OFFERED,
) -> Draft:
    """What a publish to a URL, or to a URL group, asks for.

    `config` is the query's share of the settings; a header of the same name wins, and either wins over a header of
    the group. `authorization_is_ours` says that the Authorization field holds the relay's own token, which no
    destination may see. Raises `Invalid` or `OverLimit` naming the header, `TooLarge` for the body.
    """
    context = Context(limits=limits, refusal=refusal, now=now, not_offered=not_offered)
    given, terms = _parse(headers, config, Door.PUBLISH, context, to)
    return _draft(given, terms, context, to, body, caller_ip, authorization_is_ours)


def parse_schedule(
    headers: Fields,
    *,
    to: str | UrlGroup,
    body: bytes,
    caller_ip: str | None,
    now: int,
    limits: Limits,
    refusal: Refusal,
    config: Sequence[tuple[str, str]] = (),
    authorization_is_ours: bool = True,
    not_offered: Collection[str] = NOT_OFFERED,
) -> ScheduleRequest:
    """What a request to create a schedule asks for; arguments and errors as with `parse_draft`."""
    context = Context(limits=limits, refusal=refusal, now=now, not_offered=not_offered)
    given, terms = _parse(headers, config, Door.SCHEDULE, context, to)
    if terms.cron is None:
        raise Invalid("Upstash-Cron", "is required for a schedule")
    return ScheduleRequest(
        cron=terms.cron,
        schedule_id=terms.schedule_id,
        catch_up=terms.catch_up,
        overlap=terms.overlap,
        draft=_draft(given, terms, context, to, body, caller_ip, authorization_is_ours),
    )


def parse_override(
    headers: Fields,
    *,
    now: int,
    limits: Limits,
    refusal: Refusal,
    config: Sequence[tuple[str, str]] = (),
    not_offered: Collection[str] = NOT_OFFERED,
) -> Callable[[Message], Message]:
    """What a request to send dead letters again changes about each of their messages.

    The plain Content-Type of that request describes its own body and changes nothing; a forwarded one does.
    A delay counts from `now`. Raises `Invalid` or `OverLimit`.
    """
    context = Context(limits=limits, refusal=refusal, now=now, not_offered=not_offered)
    given, terms = _parse(headers, config, Door.RETRY, context)
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
            signed_by=terms.signed_by or message.signed_by,
        )

    return override


def parse_group_headers(
    headers: Fields,
    *,
    now: int,
    limits: Limits,
    refusal: Refusal,
    not_offered: Collection[str] = NOT_OFFERED,
) -> Headers:
    """Headers for every publish to a URL group: whatever a publish could say on its own.

    Raises what `parse_draft` does. The values are kept as they were given: they are read again with each publish.
    """
    headers = tuple(headers)
    for name, value in headers:
        _sendable(value, "", name)
    _require_small(headers)
    parse_draft(
        headers,
        to="",
        body=b"",
        caller_ip=None,
        now=now,
        limits=limits,
        refusal=refusal,
        not_offered=not_offered,
    )
    return headers


# --- which header means what


_NAMES = frozenset(setting.name.lower() for setting in SETTINGS)
_DEFAULT_RETRIES = RetryPolicy().max_retries

# What a header is to us. Plain numbers: these are compared for every header of every publish.
_IGNORED, _PLAIN, _CONTENT_TYPE, _SETTING, _FORWARD, _CALLBACK, _FAILURE_CALLBACK = range(7)


def _meaning_of(name: str) -> tuple[int, str, str | None]:
    """What a field name means, the name it is kept under, and the feature it belongs to.

    Kept under: settings in lower case, forwarded fields canonical, and a callback's settings with the callback's
    prefix replaced by `upstash-`. ValueError for what cannot be a field name and for unknown `Relay-*` names.
    """
    if FIELD_NAME.fullmatch(name) is None:
        raise ValueError("is not the name of a header")
    key = name.lower()
    if key in _NAMES:
        return _SETTING, key, None
    if key.startswith("relay-"):
        raise ValueError("is not a header the relay knows")
    if key.startswith("upstash-"):
        return _meaning_of_upstash(key)
    if key == "content-type":
        return _CONTENT_TYPE, "Content-Type", None
    return _IGNORED if key in NEVER_FORWARDED else _PLAIN, canonical(key), None


def _meaning_of_upstash(key: str) -> tuple[int, str, str | None]:
    if key.startswith("upstash-forward-"):
        forwarded = key.removeprefix("upstash-forward-")
        if not forwarded:
            raise ValueError("does not say which header to forward")
        if forwarded in NEVER_FORWARDED:
            return _IGNORED, key, None
        return _FORWARD, canonical(forwarded), None
    if key.startswith("upstash-failure-callback-"):
        return _FAILURE_CALLBACK, "upstash-" + key.removeprefix("upstash-failure-callback-"), None
    if key.startswith("upstash-callback-"):
        return _CALLBACK, "upstash-" + key.removeprefix("upstash-callback-"), None
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


def _parse(
    headers: Fields,
    config: Sequence[tuple[str, str]],
    door: Door,
    context: Context,
    to: str | UrlGroup | None = None,
) -> tuple[_Given, Terms]:
    headers = _merged(headers, config)
    if isinstance(to, UrlGroup):
        headers = _merged(headers, to.headers)
    given = _collect(headers, context, "")
    return given, _read(given, door, context, "")


def _merged(headers: Fields, others: Sequence[tuple[str, str]]) -> Fields:
    """Headers, and those of the others whose name is none of theirs."""
    if not others:
        return headers
    headers = list(headers)
    names = {name.lower() for name, _ in headers}
    return headers + [(name, value) for name, value in others if name.lower() not in names]


def _collect(headers: Fields, context: Context, prefix: str) -> _Given:
    """`prefix` stood where the names begin with `Upstash`; it is put back where a problem is named."""
    given = _Given()
    settings, forwarded, plain = given.settings, given.forwarded, given.plain
    for name, value in headers:
        try:
            if len(name) > _MAX_NAME_LENGTH:
                raise ValueError(f"is longer than {_MAX_NAME_LENGTH} characters")
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


def _read(given: _Given, door: Door, context: Context, prefix: str) -> Terms:
    terms = Terms()
    readers = READERS[door]
    for key, value in given.settings.items():
        try:
            read = readers.get(key)
            if read is None:
                raise ValueError(f"cannot be used with {door.value}")
            read(terms, _text(value), context)
        except AboveLimitError as problem:
            raise OverLimit(_field(prefix, key), str(problem)) from None
        except ValueError as problem:
            raise Invalid(_field(prefix, key), str(problem)) from None
    return terms


def _draft(
    given: _Given,
    terms: Terms,
    context: Context,
    to: str | UrlGroup,
    body: bytes,
    caller_ip: str | None,
    authorization_is_ours: bool,
) -> Draft:
    if len(body) > context.limits.max_message_bytes:
        raise TooLarge("the message body", context.limits.max_message_bytes)
    return Draft(
        request=Request(
            url=to if isinstance(to, str) else "",
            method=terms.method or "POST",
            headers=_headers(given, terms, authorization_is_ours),
            body=body,
            timeout_ms=terms.timeout_ms,
        ),
        url_group=None if isinstance(to, str) else to.name,
        retry=RetryPolicy(
            max_retries=min(_DEFAULT_RETRIES, context.limits.max_retries)
            if terms.max_retries is None
            else terms.max_retries,
            delay=terms.retry_delay,
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
        signed_by=terms.signed_by,
        deduplication_id=terms.deduplication_id,
        content_based_deduplication=terms.content_based_deduplication,
    )


def _headers(given: _Given, terms: Terms, authorization_is_ours: bool) -> Headers:
    """What goes out with the message: the content type first, the rest in the order it was given."""
    fields = given.forwarded
    if given.content_type:
        fields = {"Content-Type": given.content_type} | fields
        # The plain one counts, should another be forwarded.
        fields["Content-Type"] = given.content_type
    if terms.forwards_all:
        fields = {**fields, **_all_forwarded(given, authorization_is_ours), **fields}
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


def _due_at(terms: Terms, now: int) -> int | None:
    if terms.not_before is not None:
        return terms.not_before
    return None if terms.delay_ms is None else now + terms.delay_ms


def _flow(terms: Terms, prefix: str) -> FlowControl | None:
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
    url: str | None, settings: Sequence[tuple[str, str]], prefix: str, context: Context
) -> Callback | None:
    """The callback that `settings`, named as if for a publish, configure. `prefix` is its own header's name."""
    if url is None:
        if settings:
            raise Invalid(_field(prefix, settings[0][0]), f"needs {prefix}, the URL")
        return None
    given = _collect(settings, context, prefix)
    terms = _read(given, Door.CALLBACK, context, prefix)
    _require_small(given.forwarded.items())
    url = parse_url(url, prefix)
    refuse_address(url, prefix, context.refusal)
    return Callback(
        url=url,
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
    if FIELD_NAME.fullmatch(name) is None:
        return f"header {quoted(name)}"
    shown = canonical(name.lower()) if len(name) <= _MAX_NAME_LENGTH else quoted(name)
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
