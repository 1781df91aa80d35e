"""The only source of identity: time-ordered integers, and random names.

A message id is one 63-bit integer, `milliseconds << 20 | node << 12 | counter`, so that the primary key of
everything written on the hot path grows at its right edge (a random text key costs half as much again to
insert). Its text form is `msg_` and the number in base 32.
"""

import re
import secrets

_COUNTER_BITS = 12
_NODE_BITS = 8
_SHIFT = _COUNTER_BITS + _NODE_BITS
_COUNTER_END = 1 << _COUNTER_BITS

#: Crockford's alphabet in lower case: no i, l, o, u, and its order is the order of the numbers.
_DIGITS = "0123456789abcdefghjkmnpqrstvwxyz"
_VALUES = {digit: value for value, digit in enumerate(_DIGITS)}
_PAIRS = tuple(a + b for a in _DIGITS for b in _DIGITS)
_TEXT_LENGTH = 13
_MAX = (1 << 63) - 1

_LOW = (1 << _SHIFT) - 1
_DEAD_LETTER = re.compile(r"([0-9]{1,19})-([0-9]{1,7})")


class Ids:
    """Unique, ever growing integers for one process.

    `node` (0 to 255) is unique among the processes that share a database. `last` is the greatest id the
    database already holds: numbers go on above it even when the machine's clock has been set back. Beyond
    4096 ids in one millisecond the numbers run ahead of the clock instead of repeating.
    """

    def __init__(self, *, node: int = 0, last: int = 0) -> None:
        if not 0 <= node < 1 << _NODE_BITS:
            raise ValueError(f"node must be 0 to {(1 << _NODE_BITS) - 1}, not {node}")
        self._node = node << _COUNTER_BITS
        self._ms = last >> _SHIFT
        self._counter = _COUNTER_END if last else 0

    def next(self, now: int) -> int:
        """The next id, for something that happens at `now` (Unix ms)."""
        if now > self._ms:
            self._ms = now
            self._counter = 0
        elif self._counter >= _COUNTER_END:
            self._ms += 1
            self._counter = 0
        number = self._ms << _SHIFT | self._node | self._counter
        self._counter += 1
        return number


def first_at(at: int) -> int:
    """The smallest id that belongs to the instant `at` (Unix ms): turns a time range into a key range."""
    return at << _SHIFT


def text_of(prefix: str, number: int) -> str:
    """The id as clients see it, 13 digits after the prefix.

    >>> text_of("msg_", 1)
    'msg_0000000000001'
    """
    low, mid, high = number & 0xFFFFF, number >> 20 & 0xFFFFF, number >> 40
    return (
        f"{prefix}{_DIGITS[high >> 20]}{_PAIRS[high >> 10 & 1023]}{_PAIRS[high & 1023]}"
        f"{_PAIRS[mid >> 10]}{_PAIRS[mid & 1023]}{_PAIRS[low >> 10]}{_PAIRS[low & 1023]}"
    )


def number_of(prefix: str, text: str) -> int | None:
    """The number behind a client's id, or None when it cannot be one of ours.

    >>> number_of("msg_", "msg_0000000000001")
    1
    >>> number_of("msg_", "msg_?") is None
    True
    """
    if len(text) != len(prefix) + _TEXT_LENGTH or not text.startswith(prefix):
        return None
    number = 0
    for digit in text[len(prefix) :]:
        value = _VALUES.get(digit)
        if value is None:
            return None
        number = number << 5 | value
    return number if number <= _MAX else None


def dead_letter_text(number: int) -> str:
    """A dead letter's id as clients see it: the milliseconds of its making, and a number that makes it unique.

    >>> dead_letter_text(1725323658779 << 20 | 7)
    '1725323658779-7'
    """
    return f"{number >> _SHIFT}-{number & _LOW}"


def dead_letter_number(text: str) -> int | None:
    """The number behind a client's `dlqId`, or None when it cannot be one of ours.

    >>> dead_letter_number("1725323658779-7") == 1725323658779 << 20 | 7
    True
    >>> dead_letter_number("1725323658779-07") is None
    True
    """
    match = _DEAD_LETTER.fullmatch(text)
    if match is None:
        return None
    number = int(match[1]) << _SHIFT | int(match[2])
    # Anything but the one spelling of an id would be a second name for the same entry.
    return number if number <= _MAX and dead_letter_text(number) == text else None


def random_name(prefix: str) -> str:
    """An unguessable name such as `scd_` and 20 hexadecimal digits (80 bits)."""
    return prefix + secrets.token_hex(10)
