"""Everything the relay refuses or fails to do, as one small tree.

The class says whose fault it is, the message is a sentence that can be shown to the caller as it stands.
What status an error becomes is decided where HTTP is spoken, in one table.

Rules that read a single value (a duration, a cron) do not know which header it came from: they raise
`ValueError` with the problem alone, and whoever knows the header turns that into `Invalid(header, problem)`.
"""
# ruff: noqa: N818 - the names are the vocabulary of the API layer's table: `Invalid`, not `InvalidError`

_LONGEST_QUOTE = 64


class RelayError(Exception):
    """Base of all errors that are meant for the caller."""


class Invalid(RelayError):
    """The caller sent something unacceptable: `field` is the header or parameter as they spell it."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


class OverLimit(Invalid):
    """Well-formed, but beyond a configured quota; asking again will not help."""


class NotOffered(RelayError):
    """`what` is a part of the protocol that this version does not have, or for a reason that none will."""

    def __init__(self, what: str, reason: str | None = None) -> None:
        super().__init__(f"{what} is not offered" + (f": {reason}" if reason else " by this version"))


class TooLarge(RelayError):
    """`what` (a noun phrase such as "the message body") has more bytes than are accepted."""

    def __init__(self, what: str, limit_bytes: int) -> None:
        super().__init__(f"{what} is larger than the limit of {limit_bytes} bytes")
        self.limit_bytes = limit_bytes


class Unauthorized(RelayError):
    """The caller did not show a token that is known here."""


class Forbidden(RelayError):
    """The token is known, but not for this."""


class NotFound(RelayError):
    """`what` names the kind and the id: "message msg_1"."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} not found")
        self.what = what


class Unavailable(RelayError):
    """The relay can promise nothing now (storage is locked, full or torn): take nothing as accepted."""

    def __init__(self, reason: str, *, retry_after_s: int = 1) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


def quoted(text: str) -> str:
    """A caller's text as it may appear in a message: on one line, shortened, encodable as UTF-8.

    >>> print(quoted("5x"))
    "5x"
    >>> print(quoted("a\\nb" + "c" * 100))
    "a\\nbcccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc..."
    """
    shown = text if len(text) <= _LONGEST_QUOTE else text[: _LONGEST_QUOTE - 1] + "..."
    # Header bytes that were not UTF-8 arrive as lone surrogates, which no JSON encoder takes.
    return '"' + "".join(c if c.isprintable() else repr(c)[1:-1] for c in shown) + '"'
