"""Where a request goes, as far as others are compared with it: its host and its path."""

from functools import lru_cache
from urllib.parse import urlsplit

#: Longer ones are not remembered: what a cache holds must be bounded in bytes too.
_LONGEST_REMEMBERED = 1024


def place_of(url: str) -> tuple[str, str]:
    """Host (lower case, without port; may be empty) and path (`/` when empty) of a destination.

    >>> place_of("https://Example.com:8443?a=b")
    ('example.com', '/')
    """
    return _remembered_place(url) if len(url) <= _LONGEST_REMEMBERED else _place(url)


def _place(url: str) -> tuple[str, str]:
    try:
        parts = urlsplit(url)
        return parts.hostname or "", parts.path or "/"
    except ValueError:
        return "", "/"


_remembered_place = lru_cache(maxsize=1024)(_place)
