"""Header fields as JSON shows them: names canonical, the values of a name in a list."""

from functools import lru_cache

from relay.domain.message import Headers


@lru_cache(maxsize=1024)
def canonical(name: str) -> str:
    """A field name as the API shows it: the first letter and those after a hyphen in upper case, the rest lower.

    >>> canonical("x-api-KEY")
    'X-Api-Key'
    """
    return "-".join([part.capitalize() for part in name.split("-")])


def readable(value: str) -> str:
    """As every JSON encoder takes it: lone surrogates, which stand for bytes that were not UTF-8, replaced."""
    if value.isascii():
        return value
    return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def values_by_name(headers: Headers) -> dict[str, list[str]]:
    """A response may repeat a field: every name has its values in the order they came."""
    shown: dict[str, list[str]] = {}
    for name, value in headers:
        shown.setdefault(readable(canonical(name)), []).append(readable(value))
    return shown
