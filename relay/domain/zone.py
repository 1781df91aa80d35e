"""The local clock of an IANA zone: which offset holds at an instant, and where it changes.

The zone data is that of the `tzdata` package, whatever the host has or lacks.
Instants and offsets are in whole seconds here: offsets were not always whole minutes.
"""

from datetime import UTC, datetime
from functools import cache, lru_cache
from importlib.resources import files
from zoneinfo import ZoneInfo

from msgspec import Struct

from relay.domain.errors import quoted

_PROBE_S = 86_400  # no zone changes its clock and back within a day; a test holds all of them to it


class Change(Struct, frozen=True, kw_only=True):
    """From `at_s` on the local clock is `after_s` ahead of UTC, until then it was `before_s`."""

    at_s: int
    before_s: int
    after_s: int


class Zone:
    """Made by `load_zone`, once a name."""

    __slots__ = ("_info", "name")

    def __init__(self, name: str, info: ZoneInfo) -> None:
        self.name = name
        self._info = info

    def offset_s(self, at_s: int) -> int:
        """How far the local clock is ahead of UTC."""
        offset = datetime.fromtimestamp(at_s, self._info).utcoffset()
        assert offset is not None
        return offset.days * 86_400 + offset.seconds

    def changes(self, after_s: int, until_s: int) -> list[Change]:
        """The changes in (after_s, until_s], in order. Each calendar year is searched once and remembered."""
        first, last = _year(after_s), _year(until_s)
        return [
            change
            for year in range(first, last + 1)
            for change in _changes_in_year(self, year)
            if after_s < change.at_s <= until_s
        ]


@cache
def load_zone(name: str) -> Zone:
    """ValueError for what is not a name (spelled exactly so) in the IANA database."""
    if name not in _names():
        raise ValueError(f"{quoted(name)} is not a time zone of the IANA database, such as Europe/Berlin")
    with files("tzdata").joinpath("zoneinfo", *name.split("/")).open("rb") as tzif:
        return Zone(name, ZoneInfo.from_file(tzif, key=name))


@cache
def _names() -> frozenset[str]:
    return frozenset(files("tzdata").joinpath("zones").read_text("ascii").split())


def _year(at_s: int) -> int:
    return datetime.fromtimestamp(at_s, UTC).year


@lru_cache(maxsize=4096)
def _changes_in_year(zone: Zone, year: int) -> tuple[Change, ...]:
    # Without the first second of the year and with that of the next, like the bounds of `changes`.
    start, end = (int(datetime(y, 1, 1, tzinfo=UTC).timestamp()) for y in (year, year + 1))
    found: list[Change] = []
    before = zone.offset_s(start)
    for begin in range(start, end, _PROBE_S):
        stop = min(begin + _PROBE_S, end)
        after = zone.offset_s(stop)
        if after != before:
            found.extend(_changes_between(zone, begin, before, stop, after))
        before = after
    return tuple(found)


def _changes_between(zone: Zone, begin: int, before: int, stop: int, after: int) -> list[Change]:
    if before == after:
        return []
    if stop - begin == 1:
        return [Change(at_s=stop, before_s=before, after_s=after)]
    middle = (begin + stop) // 2
    between = zone.offset_s(middle)
    return [
        *_changes_between(zone, begin, before, middle, between),
        *_changes_between(zone, middle, between, stop, after),
    ]
