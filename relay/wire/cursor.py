"""Where a list goes on: opaque to clients, and refused when it cannot have come from us."""

import re

from msgspec import Struct

from relay.domain.errors import Invalid, quoted

_CURSOR = re.compile(r"([0-9]{1,19})-([0-9]{1,7})")
_MAX_POSITION = (1 << 63) - 1
#: A dead letter's id shows its milliseconds and what is below them.
_LOW_BITS = 20
_LOW = (1 << _LOW_BITS) - 1


class Cursor(Struct, frozen=True, kw_only=True):
    """The first row of the next page. `index` counts the log entries of that row, in page order, already shown."""

    position: int
    index: int = 0


def log_cursor(cursor: Cursor) -> str:
    return f"{cursor.position}-{cursor.index}"


def parse_log_cursor(text: str) -> Cursor:
    """Raises `Invalid`."""
    match = _CURSOR.fullmatch(text)
    if match is None or int(match[1]) > _MAX_POSITION:
        raise Invalid("cursor", f"{quoted(text)} is not a cursor of this list")
    return Cursor(position=int(match[1]), index=int(match[2]))


def dead_letter_text(number: int) -> str:
    """A dead letter's id as clients see it: the milliseconds of its making, and a number that makes it unique.

    >>> dead_letter_text(1725323658779 << 20 | 7)
    '1725323658779-7'
    """
    return f"{number >> _LOW_BITS}-{number & _LOW}"


def dead_letter_number(text: str) -> int | None:
    """The number behind a client's `dlqId`, or None when it cannot be one of ours.

    >>> dead_letter_number("1725323658779-7") == 1725323658779 << 20 | 7
    True
    >>> dead_letter_number("1725323658779-07") is None
    True
    """
    match = _CURSOR.fullmatch(text)
    if match is None:
        return None
    number = int(match[1]) << _LOW_BITS | int(match[2])
    # Anything but the one spelling of an id would be a second name for the same entry.
    return number if number <= _MAX_POSITION and dead_letter_text(number) == text else None


def parse_dead_letter_cursor(text: str) -> Cursor:
    """The cursor of a list of dead letters is the id of the first one to come. Raises `Invalid`."""
    number = dead_letter_number(text)
    if number is None:
        raise Invalid("cursor", f"{quoted(text)} is not a cursor of this list")
    return Cursor(position=number)
