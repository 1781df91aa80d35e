"""When an endpoint wants to be called again, read from the headers of its answer."""

import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from decimal import ROUND_CEILING, Decimal

_NAMES = frozenset(
    {"retry-after", "x-ratelimit-reset", "x-ratelimit-reset-requests", "x-ratelimit-reset-tokens"}
)
_CAP_MS = 86_400_000
_LONGEST_TEXT = 64  # no honest value comes near; bounds what an endpoint can make us compute

_NUMBER = r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
_SECONDS = re.compile(rf"([-+]?)({_NUMBER})")
_GO_DURATION = re.compile(rf"([-+]?)((?:{_NUMBER}(?:ns|us|µs|μs|ms|s|m|h))+)")
_GO_GROUP = re.compile(rf"({_NUMBER})([a-zµμ]+)")
_GO_UNIT_MS = {
    "ns": Decimal("1e-6"),
    "us": Decimal("1e-3"),
    "\u00b5s": Decimal("1e-3"),
    "\u03bcs": Decimal("1e-3"),
    "ms": Decimal(1),
    "s": Decimal(1_000),
    "m": Decimal(60_000),
    "h": Decimal(3_600_000),
}
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_DATE = re.compile(
    r"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun), ([0-9]{1,2}) ([A-Z][a-z]{2}) ([0-9]{4})"
    r" ([0-9]{2}):([0-9]{2}):([0-9]{2}) (?:GMT|UTC|([-+])([0-9]{2})([0-9]{2}))"
)


def retry_after_ms(headers: Iterable[tuple[str, str]], now_ms: int) -> int | None:
    """The longest wait that `Retry-After` or one of `X-RateLimit-Reset[-Requests|-Tokens]` asks for, or None.

    A value is a number of seconds, an RFC 1123 date, or a Go duration. What is over already means 0; what is
    beyond one day, and everything else an endpoint may put there, is as good as absent. Rounded up to whole
    milliseconds, so that nobody is called before the time they named.

    >>> retry_after_ms([("retry-after", "2"), ("X-RateLimit-Reset-Tokens", "6m5s")], now_ms=0)
    365000
    """
    waits = (_wait_ms(value.strip(" \t"), now_ms) for name, value in headers if name.lower() in _NAMES)
    return max((wait for wait in waits if wait is not None and wait <= _CAP_MS), default=None)


def _wait_ms(text: str, now_ms: int) -> int | None:
    """Never negative; None for what cannot be read."""
    if len(text) > _LONGEST_TEXT:
        return None
    if seconds := _SECONDS.fullmatch(text):
        sign, number = seconds.groups()
        return _whole_ms(sign, Decimal(number) * 1000)
    if duration := _GO_DURATION.fullmatch(text):
        sign, groups = duration.groups()
        total_ms = sum((Decimal(n) * _GO_UNIT_MS[unit] for n, unit in _GO_GROUP.findall(groups)), Decimal())
        return _whole_ms(sign, total_ms)
    if date := _DATE.fullmatch(text):
        at_ms = _instant_ms(date)
        return None if at_ms is None else max(0, at_ms - now_ms)
    return None


def _whole_ms(sign: str, wait_ms: Decimal) -> int:
    return 0 if sign == "-" else int(wait_ms.to_integral_value(ROUND_CEILING))


def _instant_ms(date: re.Match[str]) -> int | None:
    day, month, year, hour, minute, second, sign, zone_hours, zone_minutes = date.groups()
    try:
        local = datetime(
            int(year), _MONTHS.index(month) + 1, int(day), int(hour), int(minute), int(second), tzinfo=UTC
        )
    except ValueError:
        return None
    epoch_ms = (local - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
    if sign is None:
        return epoch_ms
    offset_ms = (int(zone_hours) * 60 + int(zone_minutes)) * 60_000
    return epoch_ms + offset_ms if sign == "-" else epoch_ms - offset_ms
