"""Where a list goes on: opaque to clients, and refused when it cannot have come from us."""

import re

from msgspec import Struct

from relay.domain.errors import Invalid, quoted
from relay.ids import dead_letter_number

_CURSOR = re.compile(r"([0-9]{1,19})-([0-9]{1,7})")
_MAX_POSITION = (1 << 63) - 1


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


def parse_dead_letter_cursor(text: str) -> Cursor:
    """The cursor of a list of dead letters is the id of the first one to come. Raises `Invalid`."""
    number = dead_letter_number(text)
    if number is None:
        raise Invalid("cursor", f"{quoted(text)} is not a cursor of this list")
    return Cursor(position=number)
