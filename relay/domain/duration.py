"""Durations as callers spell them: `10s`, `2m`, `1d10h30m`, or a bare number of seconds."""

import re

from relay.domain.errors import quoted

_UNIT_MS = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1_000}
_LONGEST_MS = 36_500 * _UNIT_MS["d"]  # a century: keeps every sum of instants far inside 64 bits
_LONGEST_TEXT = 64
_WHOLE = re.compile(r"[0-9]+|(?:[0-9]+[smhd])+")
_GROUP = re.compile(r"([0-9]+)([smhd]?)")


class TooLongError(ValueError):
    """A duration that is well spelled and beyond every limit there is."""


def parse_duration(text: str) -> int:
    """The milliseconds that `text` names.

    Groups may come in any order and add up. Anything else is a ValueError that says what is wrong: signs,
    decimals, blanks, other units; `TooLongError` for more than 100 years.

    >>> parse_duration("1h30m3s")
    5403000
    >>> parse_duration("90")
    90000
    """
    if len(text) > _LONGEST_TEXT or _WHOLE.fullmatch(text) is None:
        raise ValueError(f"{quoted(text)} is not a duration such as 10s, 2m or 1d10h")
    total_ms = sum(int(count) * _UNIT_MS[unit or "s"] for count, unit in _GROUP.findall(text))
    if total_ms > _LONGEST_MS:
        raise TooLongError(f"{quoted(text)} is longer than 100 years")
    return total_ms


def format_duration(duration_ms: int) -> str:
    """The shortest spelling of a non-negative duration, for people; a part below one second is shown in `ms`.

    >>> format_duration(5_403_000)
    '1h30m3s'
    >>> format_duration(1_250)
    '1s250ms'
    """
    groups: list[str] = []
    rest = duration_ms
    for unit, unit_ms in (*_UNIT_MS.items(), ("ms", 1)):
        count, rest = divmod(rest, unit_ms)
        if count:
            groups.append(f"{count}{unit}")
    return "".join(groups) or "0s"
