"""The settings a header can carry: who may give each of them, and how its value is read.

`SETTINGS` is the one table of them; the functions above it read the lines of it.
"""

import re
from collections.abc import Callable, Collection
from enum import Enum
from typing import TypeVar

from msgspec import Struct

from relay.domain.cron import Cron
from relay.domain.duration import TooLongError, format_duration, parse_duration
from relay.domain.errors import quoted
from relay.domain.expression import RetryDelay
from relay.domain.message import METHODS, FlowControl, Redaction, SignedBy
from relay.domain.schedule import CatchUp, Overlap
from relay.domain.tenant import Limits
from relay.wire.target import MAX_NAME_LENGTH, Refusal
from relay.wire.texts import MAX_INDEXED_BYTES, is_indexable

MAX_FLOW_PERIOD_MS = 7 * 86_400_000

#: What may be the name of a header field.
FIELD_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")

MAX_FLOW_LIMIT = (1 << 31) - 1
_NAME = re.compile(rf"[A-Za-z0-9._-]{{1,{MAX_NAME_LENGTH}}}")
_UNIX_SECONDS = re.compile(r"([0-9]{1,18})(?:\.([0-9]{1,18}))?")
_REDACTED_HEADER = re.compile(r"headers?\[([^\[\]]*)\]", re.IGNORECASE)

_Choice = TypeVar("_Choice", bound=Enum)


class Door(Enum):
    """Where settings come in; the value completes "cannot be used with"."""

    PUBLISH = "a publish"
    SCHEDULE = "a schedule"
    RETRY = "a retry of dead letters"
    CALLBACK = "a callback"


class Context(Struct, frozen=True, kw_only=True):
    """What a value is measured by. `now` is when the request came; `refusal` is of addresses that callbacks name;
    `not_offered` names features."""

    limits: Limits
    refusal: Refusal
    now: int
    not_offered: Collection[str]


class Terms(Struct):
    """What the settings said; None, or the default, where they said nothing."""

    method: str | None = None
    timeout_ms: int | None = None
    max_retries: int | None = None
    retry_delay: str | None = None
    delay_ms: int | None = None
    not_before: int | None = None
    labels: tuple[str, ...] | None = None
    redaction: Redaction | None = None
    signed_by: SignedBy | None = None
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


class AboveLimitError(ValueError):
    """Becomes `OverLimit` where any other ValueError becomes `Invalid`."""


def _method(terms: Terms, value: str, _: Context) -> None:
    terms.method = value.upper()
    if terms.method not in METHODS:
        raise ValueError(f"{quoted(value)} is not GET, POST, PUT, PATCH or DELETE")


def _timeout(terms: Terms, value: str, context: Context) -> None:
    terms.timeout_ms = _duration(value, context.limits.max_timeout_ms)
    if terms.timeout_ms == 0:
        raise ValueError("must be longer than nothing")


def _retries(terms: Terms, value: str, context: Context) -> None:
    if not (value.isascii() and value.isdigit()):
        raise ValueError(f"{quoted(value)} is not a whole number of retries, 0 or more")
    # More than 18 digits are over any limit, and cost time to read.
    terms.max_retries = int(value[:18])
    if terms.max_retries > context.limits.max_retries or len(value) > 18:
        raise AboveLimitError(f"{quoted(value)} is above the maximum of {context.limits.max_retries} retries")


def _retry_delay(terms: Terms, value: str, _: Context) -> None:
    terms.retry_delay = RetryDelay(value).text


def _delay(terms: Terms, value: str, context: Context) -> None:
    terms.delay_ms = _duration(value, context.limits.max_delay_ms)


def _duration(value: str, most_ms: int) -> int:
    """The milliseconds, within a limit that is named whatever exceeds it."""
    try:
        duration_ms = parse_duration(value)
    except TooLongError:
        duration_ms = None
    if duration_ms is None or duration_ms > most_ms:
        raise AboveLimitError(f"{quoted(value)} is above the maximum of {format_duration(most_ms)}")
    return duration_ms


def _not_before(terms: Terms, value: str, context: Context) -> None:
    match = _UNIX_SECONDS.fullmatch(value)
    if match is None:
        raise ValueError(f"{quoted(value)} is not a Unix time in seconds")
    seconds, fraction = match.groups(default="")
    terms.not_before = int(seconds) * 1000 + int((fraction + "000")[:3])
    if terms.not_before - context.now > context.limits.max_delay_ms:
        raise AboveLimitError(
            f"{quoted(value)} is more than the maximum of {format_duration(context.limits.max_delay_ms)} from now"
        )


def _deduplication_id(terms: Terms, value: str, _: Context) -> None:
    if not value:
        raise ValueError("must not be empty")
    terms.deduplication_id = value


def _content_based_deduplication(terms: Terms, value: str, _: Context) -> None:
    terms.content_based_deduplication = _boolean(value)


def _label(terms: Terms, value: str, context: Context) -> None:
    labels = tuple(dict.fromkeys(label for part in value.split(",") if (label := part.strip())))
    if len(labels) > context.limits.max_labels:
        raise AboveLimitError(f"has {len(labels)} labels, above the maximum of {context.limits.max_labels}")
    for label in labels:
        if len(label) > context.limits.max_label_length:
            raise AboveLimitError(
                f"{quoted(label)} is longer than the maximum of {context.limits.max_label_length} characters"
            )
    terms.labels = labels


def _redact_fields(terms: Terms, value: str, _: Context) -> None:
    body = headers = False
    names: list[str] = []
    for member in filter(None, (part.strip() for part in value.split(","))):
        if member.lower() == "body":
            body = True
        elif member.lower() in ("header", "headers"):
            headers = True
        elif match := _REDACTED_HEADER.fullmatch(member):
            name = match[1].strip().lower()
            if FIELD_NAME.fullmatch(name) is None:
                raise ValueError(f"{quoted(member)} does not name a header")
            names.append(name)
        else:
            raise ValueError(f"{quoted(member)} is not body, header or header[Name]")
    terms.redaction = Redaction(body=body, headers=headers, header_names=tuple(dict.fromkeys(names)))


def _signature(terms: Terms, value: str, _: Context) -> None:
    terms.signed_by = _one_of(SignedBy, value)


def _header_forward(terms: Terms, value: str, _: Context) -> None:
    terms.forwards_all = _boolean(value)


def _flow_control_key(terms: Terms, value: str, _: Context) -> None:
    if not is_indexable(value):
        raise ValueError(f"must have 1 to {MAX_INDEXED_BYTES} bytes in UTF-8")
    terms.flow_key = value


def _flow_control_value(terms: Terms, value: str, _: Context) -> None:
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
        raise AboveLimitError("has a period above the maximum of one week")
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
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and 1 <= int(text) <= MAX_FLOW_LIMIT):
        raise ValueError(f"has a {name}, {quoted(text)}, that is not a number from 1 to {MAX_FLOW_LIMIT}")
    return int(text)


def _queue_name(terms: Terms, value: str, _: Context) -> None:
    terms.queue = _name(value)


def _callback_url(terms: Terms, value: str, _: Context) -> None:
    terms.callback = value


def _failure_callback_url(terms: Terms, value: str, _: Context) -> None:
    terms.failure_callback = value


def _cron(terms: Terms, value: str, _: Context) -> None:
    terms.cron = Cron.parse(value)


def _schedule_id(terms: Terms, value: str, _: Context) -> None:
    terms.schedule_id = _name(value)


def _catch_up(terms: Terms, value: str, _: Context) -> None:
    terms.catch_up = _one_of(CatchUp, value)


def _overlap(terms: Terms, value: str, _: Context) -> None:
    terms.overlap = _one_of(Overlap, value)


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


_Read = Callable[[Terms, str, Context], None]
_ANYWHERE = frozenset(Door)
_ON_MESSAGES = _ANYWHERE - {Door.CALLBACK}
_ON_NEW_MESSAGES = _ON_MESSAGES - {Door.RETRY}


class Setting(Struct, frozen=True):
    """A header with a value of its own: `read` raises ValueError with the problem."""

    name: str
    read: _Read
    doors: Collection[Door]


SETTINGS = (
    Setting("Upstash-Method", _method, _ANYWHERE),
    Setting("Upstash-Timeout", _timeout, _ANYWHERE),
    Setting("Upstash-Retries", _retries, _ANYWHERE),
    Setting("Upstash-Retry-Delay", _retry_delay, _ANYWHERE),
    # The QStash changelog of March 2025: a message with a delayed callback is refused.
    Setting("Upstash-Delay", _delay, _ON_MESSAGES),
    Setting("Upstash-Not-Before", _not_before, {Door.PUBLISH, Door.RETRY}),
    Setting("Upstash-Deduplication-Id", _deduplication_id, {Door.PUBLISH}),
    Setting("Upstash-Content-Based-Deduplication", _content_based_deduplication, {Door.PUBLISH}),
    Setting("Upstash-Label", _label, _ON_MESSAGES),
    Setting("Upstash-Redact-Fields", _redact_fields, _ON_MESSAGES),
    # A callback is signed as its message is: its own settings can only be spelled Upstash-Callback-*.
    Setting("Relay-Signature", _signature, _ON_MESSAGES),
    Setting("Upstash-Header-Forward", _header_forward, _ON_NEW_MESSAGES),
    Setting("Upstash-Flow-Control-Key", _flow_control_key, _ANYWHERE),
    Setting("Upstash-Flow-Control-Value", _flow_control_value, _ANYWHERE),
    Setting("Upstash-Callback", _callback_url, _ANYWHERE),
    Setting("Upstash-Failure-Callback", _failure_callback_url, _ANYWHERE),
    Setting("Upstash-Queue-Name", _queue_name, {Door.SCHEDULE}),
    Setting("Upstash-Cron", _cron, {Door.SCHEDULE}),
    Setting("Upstash-Schedule-Id", _schedule_id, {Door.SCHEDULE}),
    Setting("Relay-Schedule-Catch-Up", _catch_up, {Door.SCHEDULE}),
    Setting("Relay-Schedule-Overlap", _overlap, {Door.SCHEDULE}),
)
#: By door, and by the header's name in lower case.
READERS: dict[Door, dict[str, _Read]] = {
    door: {setting.name.lower(): setting.read for setting in SETTINGS if door in setting.doors}
    for door in Door
}
