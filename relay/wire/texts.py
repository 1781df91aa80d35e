"""Which texts of clients a database can hold, compare and find again: one rule for both backends.

PostgreSQL holds no NUL, neither backend holds half a surrogate pair, which is what bytes that are not UTF-8 become.
PostgreSQL's indexes take rows of at most 2704 bytes, however the text is spelled and whether or not it can be
compressed.
"""

from relay.domain.errors import Invalid

#: Bytes, in UTF-8, of any text by which something is found. Leaves room for what else is in a row of an index.
MAX_INDEXED_BYTES = 2048


def is_storable(text: str) -> bool:
    # What is printable holds neither; most texts are.
    return text.isprintable() or ("\0" not in text and not any("\ud800" <= c <= "\udfff" for c in text))


def storable(text: str, field: str) -> str:
    """The text itself; raises `Invalid` naming `field`."""
    if not is_storable(text):
        raise Invalid(field, "has a character that no value can have")
    return text


def is_indexable(text: str) -> bool:
    """Whether a storable text fits into every index, and is one that can be asked for."""
    return 1 <= len(text.encode()) <= MAX_INDEXED_BYTES
